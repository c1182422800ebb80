"""FlashDMoE (arXiv 2506.04667): its bars, an outside re-run, DeepEP's tables and DeepSeek's profile, simulated."""
