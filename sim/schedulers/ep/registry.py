"""Schedulers of expert parallelism by name, or a user's own by file."""

from __future__ import annotations

import importlib
from typing import Any

from sim.errors import UserError, unknown
from sim.schedulers import registry
from sim.schedulers.ep.base import ExpertParallel

NAMES: dict[str, tuple[str, str]] = {
    "bulk-sync": ("sim.schedulers.ep.bulk_sync", "BulkSync"),
    "graph-replayed": ("sim.schedulers.ep.bulk_sync", "GraphReplayed"),
    "chunked": ("sim.schedulers.ep.chunked", "Chunked"),
    "overlapped": ("sim.schedulers.ep.overlapped", "Overlapped"),
    "comet": ("sim.schedulers.ep.comet", "Comet"),
    "deepep-ll": ("sim.schedulers.ep.deepep_ll", "DeepEPLowLatency"),
    "flashdmoe": ("sim.schedulers.ep.flashdmoe", "FlashDMoE"),
    "static-wave": ("sim.schedulers.ep.static_wave", "StaticWave"),
}
"""Module and class of each, imported when asked for."""


def load(name: str) -> type[Any]:
    """The class of a built-in scheduler, or `FILE.py:CLASS`. Raises UserError for an unknown name."""
    if ".py:" in name:
        found = registry.load(name)
        if not issubclass(found, ExpertParallel):
            raise UserError(f"--schedulers: {name} is no scheduler of ranks; derive it from sim.schedulers.ep.base.ExpertParallel")
        return found
    if name not in NAMES:
        raise unknown("--schedulers", name, NAMES)
    module, attribute = NAMES[name]
    loaded: type[Any] = getattr(importlib.import_module(module), attribute)
    return loaded
