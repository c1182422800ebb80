"""The entry of both command lines, `sim` and `exec`: what their errors mean."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from sim.errors import UserError
from traces import entry
from traces.entry import BAD_INPUT, RUN_FAILED


def run(app: typer.Typer, program: str, arguments: Sequence[str] | None = None) -> int:
    """Exit code of one call, see `traces.entry`."""
    return entry.run(app, program, arguments, _meaning)


def _meaning(error: Exception) -> tuple[str, int] | None:
    """What a user did wrong is bad input, a deadlock is a failed run; all else is a bug."""
    from sim.drive import Deadlock

    if isinstance(error, UserError):
        return str(error), BAD_INPUT
    if isinstance(error, Deadlock):
        return f"the run failed, nothing was saved: {error}", RUN_FAILED
    if isinstance(error, RuntimeError) and str(error).startswith("cannot cache function"):  # Numba's, which has no class for it
        return "NUMBA_CACHE_DIR: is not set, and no usual folder for compiled code can be written; one that can be is needed", BAD_INPUT
    return None
