"""Workloads: seeded requests with prompt and generation lengths, built in or from YAML."""

from __future__ import annotations

from pathlib import Path

from sim import configuration
from sim.errors import unknown
from sim.workloads.outcomes import Outcomes
from sim.workloads.schema import Workload

__all__ = ["Outcomes", "Workload", "load", "names"]

_BUILTIN = Path(__file__).parent


def names() -> tuple[str, ...]:
    """The built-in workloads."""
    return tuple(sorted(p.stem for p in _BUILTIN.glob("*.yaml")))


def load(name_or_file: str | Path) -> Workload:
    """A built-in workload by name, or one from a YAML file.

    Raises `UserError` for an unknown name (with the nearest one) or a bad file (with all its errors).
    """
    name = str(name_or_file)
    if name in names():
        return configuration.load(_BUILTIN / f"{name}.yaml", Workload)
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return configuration.load(Path(name), Workload)
    raise unknown("--workload", name, names())
