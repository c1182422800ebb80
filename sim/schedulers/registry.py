"""Schedulers by name, a user's own by file, and whether a machine has what one needs."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from sim.errors import UserError, unknown
from sim.machines.schema import Machine

NAMES: dict[str, tuple[str, str]] = {
    "cgopipe": ("sim.schedulers.cgopipe", "CGOPipe"),
    "fastdecode": ("sim.schedulers.fastdecode", "FastDecode"),
    "flexgen-c": ("sim.schedulers.flexgen_c", "FlexGenC"),
    "flexgen": ("sim.schedulers.flexgen", "FlexGen"),
    "deepspeed": ("sim.schedulers.deepspeed", "DeepSpeed"),
    "resident": ("sim.schedulers.resident", "Resident"),
    "ticket": ("sim.schedulers.ticket", "Ticket"),
}
"""Module and class of each, imported when asked for."""

NEEDED = ("lanes", "pools", "on", "memory")
"""What the class of a scheduler must have; `pools` may be set by its constructor."""


def names() -> tuple[str, ...]:
    return tuple(NAMES)


def load(name: str, flag: str = "--scheduler") -> type[Any]:
    """The class of a built-in scheduler, or `FILE.py:CLASS`; `flag` is what gave it.

    Raises UserError for an unknown name (with the nearest one), and for a file that cannot be read
    or holds no such scheduler.
    """
    if ".py:" in name:
        path, _, attribute = name.rpartition(":")
        return _from_file(Path(path), attribute, flag)
    if name not in NAMES:
        if name.endswith(".py"):
            raise UserError(f"{flag}: {name} names no class; FILE.py:CLASS is needed")
        raise unknown(flag, name, NAMES)
    module, attribute = NAMES[name]
    found: type[Any] = getattr(importlib.import_module(module), attribute)
    return found


def _from_file(path: Path, attribute: str, flag: str) -> type[Any]:
    if not path.is_file():
        raise UserError(f"{flag}: no file {path}; give FILE.py:CLASS or one of {', '.join(NAMES)}")
    module = _import(path, flag)
    found = getattr(module, attribute, None)
    if found is None:
        raise unknown(f"{flag}: {path}", attribute, (n for n, v in vars(module).items() if isinstance(v, type)))
    if not isinstance(found, type):
        raise UserError(f"{flag}: {path}: {attribute} is no class; a class with {', '.join(NEEDED)} is needed")
    missing = [n for n in NEEDED if not hasattr(found, n) and n != "pools"]
    if missing:
        raise UserError(f"{flag}: {path}: class {attribute} has no {', '.join(missing)}; derive it from sim.schedulers.base.Scheduler")
    return found


def _import(path: Path, flag: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"scheduler_{path.stem}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        del sys.modules[spec.name]
        raise UserError(f"{flag}: {path} cannot be imported: {type(e).__name__}: {e}") from e
    return module


def check_lanes(name: str, lanes: Sequence[str], machine: Machine) -> None:
    """Raises UserError where `machine` lacks a lane that scheduler `name` needs, or runs it in
    another way than launch orders count on: one task at a time, as submitted."""
    if not machine.lanes:
        raise UserError(f"machine {machine.name} is a set of ranks; scheduler {name} drives one GPU (8xh100 is both)")
    for lane in lanes:
        found = machine.lane.get(lane)
        if found is None:
            raise UserError(f"machine {machine.name} has no lane {lane!r} that scheduler {name} needs; it has {', '.join(machine.lane)}")
        if found.order != "submitted" or found.servers != 1:
            raise UserError(
                f"machine {machine.name}: lane {lane!r} has order {found.order!r} and {found.servers} servers; "
                f"scheduler {name} needs order 'submitted' and 1 server"
            )
