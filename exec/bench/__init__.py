"""`exec bench`: kernels beside torch's, and pp / tg tests of the whole executor."""
