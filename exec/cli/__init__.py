"""The command line of real runs: calibrate, run, validate, generate, demo."""
