"""Workloads: seeded requests with prompt and generation lengths, built in or from YAML."""

from __future__ import annotations

from pathlib import Path

from sim import configuration
from sim.workloads.outcomes import Outcomes
from sim.workloads.schema import Workload

__all__ = ["Outcomes", "Workload", "load", "names"]

_BUILTIN = Path(__file__).parent


def names() -> tuple[str, ...]:
    """The built-in workloads."""
    return configuration.names(_BUILTIN)


def load(name_or_file: str | Path) -> Workload:
    """A built-in workload by name, or one from a YAML file.

    Raises `UserError` for an unknown name (with the nearest one) or a bad file (with all its errors).
    """
    return configuration.load(configuration.locate("--workload", str(name_or_file), _BUILTIN), Workload)
