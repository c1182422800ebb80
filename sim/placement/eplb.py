"""EPLB: DeepSeek's expert-parallel load balancer, hierarchical and global.

Source: github.com/deepseek-ai/EPLB (MIT), described in its README: pack expert groups onto nodes, hand out spare copies
within each node to the largest load a copy, pack copies onto the node's GPUs. Global is the same with one group and one
node; it is taken where the groups do not divide over the nodes, as published. On equal GPUs the result is the published
one unless that would put two copies of an expert on one GPU; unequal slots and speeds are our extension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sim.errors import UserError
from sim.placement.packing import pack, replicate
from sim.placement.placement import Placement
from sim.placement.policy import Tell, silent
from sim.placement.problem import Floats, Ints, Problem, apportion

MODES = ("auto", "global", "hierarchical")


@dataclass(frozen=True)
class Eplb:
    """mode: "auto" as published; "global"; "hierarchical": over the nodes whatever the groups, one expert a group if need be."""

    whole_layers: ClassVar[bool] = False
    mode: str = "auto"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"option mode: has {self.mode!r}; must be one of {', '.join(MODES)}")

    def place(self, problem: Problem, tell: Tell = silent) -> Placement:
        slots = physical(problem, self.mode)
        held = np.zeros((problem.layers, problem.experts, len(problem.gpus)), np.bool_)
        layer, gpu, slot = np.nonzero(slots >= 0)
        held[layer, slots[layer, gpu, slot], gpu] = True
        return Placement(held)


def physical(problem: Problem, mode: str = "auto") -> Ints:
    """Expert in each slot [layers, gpus, slots], -1 where it is empty: the published `phy2log` in its order."""
    gpus = problem.gpus
    slots = np.minimum(gpus.slots, problem.experts)
    groups = _groups(problem, mode)
    found = np.full((problem.layers, len(gpus), int(slots.max())), -1, np.int64)
    for layer, load in enumerate(problem.load):
        if groups:
            _hierarchical(load, groups, problem, slots, found[layer])
        else:
            _fill(load, np.arange(problem.experts), np.arange(len(gpus)), problem, slots, found[layer])
    return found


def _groups(problem: Problem, mode: str) -> int:
    """Groups to deal out over the nodes; 0: global."""
    nodes, groups = problem.gpus.nodes, problem.groups
    if mode == "global" or nodes == 1:
        return 0
    if problem.experts % groups or groups < nodes:
        groups = problem.experts if mode == "hierarchical" else 0
    fits = groups and groups % nodes == 0
    return groups if fits or mode == "hierarchical" else 0


def _hierarchical(load: Floats, groups: int, problem: Problem, slots: Ints, found: Ints) -> None:
    """Groups to nodes, each node with its share of the groups; then every node alone."""
    gpus, size = problem.gpus, problem.experts // groups
    room = np.bincount(gpus.node, weights=slots).astype(np.int64)
    speed = np.bincount(gpus.node, weights=gpus.speed).astype(np.float64)
    share = np.minimum(apportion(groups, room.astype(np.float64)), room // size)
    if share.sum() < groups:  # slots of some nodes do not divide by the size of a group
        return _fill(load, np.arange(problem.experts), np.arange(len(gpus)), problem, slots, found)
    node = _pack(np.arange(groups), np.asarray(load.reshape(groups, size).sum(axis=1)), share, speed)
    for n in range(gpus.nodes):
        experts = np.flatnonzero(np.repeat(node == n, size))
        ordered = _as_packed(load.reshape(groups, size).sum(axis=1), node, n, size) if len(experts) else experts
        _fill(load, ordered, np.flatnonzero(gpus.node == n), problem, slots, found)


def _as_packed(load: Floats, node: Ints, n: int, size: int) -> Ints:
    """Experts of node n in the order in which its groups were packed, which decides between equals further on."""
    order = np.argsort(-load, kind="stable")
    mine = order[node[order] == n]
    return np.asarray((mine[:, None] * size + np.arange(size)).ravel())


def _fill(load: Floats, experts: Ints, members: Ints, problem: Problem, slots: Ints, found: Ints) -> None:
    """Copies of these experts onto these GPUs."""
    if not len(experts):
        return
    mine, speed = slots[members], problem.gpus.speed[members]
    items = replicate(load[experts], int(mine.sum()), int((mine > 0).sum()))
    copies = np.bincount(items, minlength=len(experts))
    value = (load[experts] / copies)[items]
    where = _pack(items, value, mine, speed)
    used = np.zeros(len(members), np.int64)
    for i in np.argsort(-value, kind="stable"):
        if where[i] >= 0:
            found[members[where[i]], used[where[i]]] = experts[items[i]]
            used[where[i]] += 1


def _pack(items: Ints, load: Floats, slots: Ints, speed: Floats) -> Ints:
    """As `pack`; but one item for each of as many equal places stays in order, as published."""
    if len(items) == len(slots) and (slots == 1).all() and (speed == speed[0]).all():
        return np.arange(len(items))
    return np.asarray(pack(items, load, slots, speed))
