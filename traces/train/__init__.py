"""Trains the bundled Mixture-of-Experts language model from nothing; needs torch."""
