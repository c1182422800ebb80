"""MoE-Lightning (arXiv 2411.11217): its throughput tables, ablations, and policy map."""
