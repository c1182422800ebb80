"""The CUDA backend: streams for lanes, events between them, one allocation under a hard budget."""
