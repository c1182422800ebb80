"""Machines of ranks: the lanes that one rank runs, and this computer as N ranks for the simulator."""

from __future__ import annotations

from sim.ep import names
from sim.machines.schema import Lane, Machine


def rank_lanes(rank: int, ranks: int) -> tuple[Lane, ...]:
    """Lanes whose threads rank `rank` has. A pair's puts leave one after another: they share one stream."""
    puts = (Lane(name=names.put(rank, p), order="ready", kind="copy") for p in range(ranks) if p != rank)
    own = (Lane(name=name, kind="compute") for name in (names.gpu(rank), names.comm(rank), names.host(rank)))
    return (*own, *puts)


def lanes_of(rank: int, ranks: int) -> Machine:
    """A machine with nothing but the lanes of one rank: what its threads need to know."""
    return Machine(name=f"rank-{rank}", clock="measured", resources={}, memories={}, lanes=rank_lanes(rank, ranks), ops=())
