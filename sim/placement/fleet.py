"""The GPUs that `--machine` names, with slots for a model's experts: of a machine, of several of it, or of a cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from sim import clusters, machines
from sim.clusters import Cluster
from sim.configuration import read
from sim.errors import UserError, unknown
from sim.machines import Machine
from sim.placement.problem import Gpus, Ints, apportion


def gpus_of(name: str, experts: int, gpus: int | None = None, spares: int = 0) -> Gpus:
    """GPUs with slots for `experts` + `spares` copies a layer, dealt out by memory; at most one of each expert a GPU.

    gpus: how many, from the first on; of a machine as many nodes as that takes. Raises `UserError` that names the flag.
    """
    if is_cluster(name):
        found = _of_cluster(clusters.load(name), gpus)
    else:
        found = _of_machine(machines.load(name), gpus)
    most = experts * len(found)
    if experts + spares > most:
        raise UserError(f"--spares: is {spares}; {len(found)} GPUs hold at most one copy of each expert, so {most - experts} or fewer")
    return replace(found, slots=dealt(experts + spares, found.slots, experts))


def is_cluster(name: str) -> bool:
    """Whether the name is a cluster's and not a machine's. Raises `UserError` for one that is neither's."""
    if name in clusters.names() or name.endswith(".ini"):
        return True
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return read(Path(name)).get("kind") == "cluster"
    if name not in machines.names():
        raise unknown("--machine", name, (*machines.names(), *clusters.names()))
    return False


def dealt(total: int, memory: Ints, most: int) -> Ints:
    """`total` slots in proportion to memory [gpus], none more than `most`."""
    slots = np.zeros(len(memory), np.int64)
    while slots.sum() < total:
        open_ = np.flatnonzero(slots < most)
        slots[open_] += apportion(total - int(slots.sum()), memory[open_].astype(np.float64))
        slots = np.minimum(slots, most)
    return slots


def _of_machine(machine: Machine, gpus: int | None) -> Gpus:
    """GPUs in the order of ranks; nodes follow each other as long as GPUs are wanted."""
    if machine.topology is not None:
        held, per_node = machine.topology.ranks, machine.topology.gpus
    else:
        held = per_node = max(lane.ranks for lane in machine.lanes)
    n = gpus or held
    number = np.arange(n)
    names = tuple(f"node{g // per_node}/gpu{g % per_node}" if n > per_node else f"gpu{g}" for g in number)
    return Gpus(names, number // per_node, np.zeros(n, np.int64), np.ones(n), np.ones(n, np.int64))


def _of_cluster(cluster: Cluster, gpus: int | None) -> Gpus:
    """Speed is memory bandwidth: a decode step reads the weights of the experts that it uses."""
    found = cluster.gpu[: gpus or None]
    if gpus is not None and gpus > len(cluster.gpu):
        raise UserError(f"--gpus: is {gpus}; {cluster.name} has {len(cluster.gpu)}")
    nodes, regions = list(dict.fromkeys(g.node for g in found)), list(dict.fromkeys(g.region for g in found))
    speed = np.array([g.spec.bytes_per_s for g in found])
    return Gpus(
        tuple(g.name for g in found), np.array([nodes.index(g.node) for g in found]), np.array([regions.index(g.region) for g in found]),
        speed / speed.max(), np.array([g.spec.memory_bytes for g in found]),
    )  # fmt: skip
