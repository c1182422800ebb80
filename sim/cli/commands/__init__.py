"""The flags of each command, apart from what it does: a call for help loads nothing else."""
