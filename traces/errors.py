"""What is wrong with a trace file, in one line that names the file and the column."""

from __future__ import annotations


class TraceError(ValueError):
    """A trace file cannot be read, written or believed. The command line prints it and exits with 2."""
