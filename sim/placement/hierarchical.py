"""Hierarchical: local first, then regional, then global.

Every region, and within it every node, gets the hottest experts of its own, as many as its memory allows while the cold
ones still have a place somewhere: a token then finds most of its experts in its node, most others in its region, and
only the rest elsewhere. Within a node, copies are handed out and packed as by EPLB. Source: the two-level placement of
hierarchical web caches (Korupolu, Plaxton, Rajaraman, SODA 1999), with its greedy choice by popularity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sim.placement.packing import pack, spread
from sim.placement.placement import Bools, Placement
from sim.placement.policy import Tell, silent
from sim.placement.problem import Floats, Gpus, Ints, Problem


@dataclass(frozen=True)
class Hierarchical:
    whole_layers: ClassVar[bool] = False

    def place(self, problem: Problem, tell: Tell = silent) -> Placement:
        held = np.zeros((problem.layers, problem.experts, len(problem.gpus)), np.bool_)
        for layer, load in enumerate(problem.load):
            _regions(held[layer], load, problem.gpus, np.minimum(problem.gpus.slots, problem.experts))
        return Placement(held)


def _regions(held: Bools, load: Floats, gpus: Gpus, slots: Ints) -> None:
    everything = np.arange(len(load))
    for region, experts, share in _dealt(load, everything, gpus.region, slots, gpus.speed):
        inside = np.flatnonzero(gpus.region == region)
        for node, mine, part in _dealt(share, experts, gpus.node[inside], slots[inside], gpus.speed[inside]):
            members = inside[gpus.node[inside] == node]
            held[np.ix_(mine, members)] = spread(part, slots[members], gpus.speed[members], int(slots[members].sum()))


def _dealt(load: Floats, experts: Ints, unit: Ints, slots: Ints, speed: Floats) -> list[tuple[int, Ints, Floats]]:
    """(unit, its experts, their load there) of regions or nodes: the hottest in all of them, the others in one each.

    load: of the experts given. unit, slots, speed [gpus].
    """
    units = np.unique(unit)
    room = np.array([min(len(experts), int(slots[unit == u].sum())) for u in units])
    fast = np.array([speed[unit == u].sum() for u in units])
    units, fast, room = units[room > 0], fast[room > 0], room[room > 0]
    order = np.argsort(-load, kind="stable")
    hot = _everywhere(len(experts), room)
    cold = order[hot:]
    where = pack(np.arange(len(cold)), load[cold], room - hot, fast) if len(cold) else cold
    found = []
    for i, u in enumerate(units):
        mine = np.concatenate([order[:hot], cold[where == i]])
        part = np.concatenate([load[order[:hot]] * fast[i] / fast.sum(), load[cold[where == i]]])
        ranked = np.argsort(mine)
        found.append((int(u), experts[mine[ranked]], part[ranked]))
    return found


def _everywhere(experts: int, room: Ints) -> int:
    """The most experts that every unit can hold while each of the others finds a place in one."""
    for hot in range(min(experts, int(room.min())), -1, -1):
        if int((room - hot).sum()) >= experts - hot:
            return hot
    raise AssertionError(f"{experts} experts do not fit into {room}")
