"""The command line. Its modules load the rest of `sim` only when a command runs: `--help` answers at once."""
