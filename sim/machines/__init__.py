"""Machines: capacities, memories, lanes and op times, built in or from a YAML profile; and rigs."""

from __future__ import annotations

from pathlib import Path

from sim import configuration
from sim.errors import UserError
from sim.machines.schema import Machine, Rig

__all__ = ["Machine", "Rig", "load", "load_rig", "names", "rig_names"]

_BUILTIN = Path(__file__).parent


def names() -> tuple[str, ...]:
    """The built-in machines."""
    return tuple(sorted(p.stem for p in _BUILTIN.glob("*.yaml")))


def rig_names() -> tuple[str, ...]:
    """The built-in rigs."""
    return tuple(sorted(p.stem for p in _BUILTIN.glob("rigs/*.yaml")))


def load(name_or_file: str | Path) -> Machine:
    """A built-in machine by name, or one from a YAML profile.

    Raises `UserError` for an unknown name (with the nearest one), a bad file (with all its errors), or
    a rig, which has no op times before it is calibrated.
    """
    path = _locate("--machine", str(name_or_file), (*names(), *rig_names()))
    values = configuration.read(path)
    if values.get("kind") == "rig":
        rig = path.stem if path.parent == _BUILTIN / "rigs" else str(path)
        raise UserError(
            f"machine {rig} is a rig without measured op times; run: python -m exec calibrate --rig {rig} -o PROFILE.yaml"
        )
    return configuration.parse(path, values, Machine)


def load_rig(name_or_file: str | Path) -> Rig:
    """A built-in rig by name, or one from a YAML file. Raises `UserError` as `load` does."""
    return configuration.load(_locate("--rig", str(name_or_file), rig_names()), Rig)


def _locate(flag: str, name: str, known: tuple[str, ...]) -> Path:
    if name in known:
        return _BUILTIN / ("rigs" if name in rig_names() else ".") / f"{name}.yaml"
    if name in configuration.names(_BUILTIN.parent / "clusters"):
        raise UserError(f"{flag}: {name} is a cluster, for `swarm` and `place`; a machine is needed: {', '.join(known)}, or a YAML file")
    return configuration.own_file(flag, name, known)
