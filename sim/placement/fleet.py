"""The GPUs that `--machine` names, with slots for a model's experts: of a machine, of several of it, or of a cluster.

Slots are dealt out for a number of copies, or follow from what a model's experts weigh. Then every GPU holds all dense
weights, as where attention is data-parallel, and keeps a share of its memory for the KV cache.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from sim import clusters, machines
from sim.clusters import Cluster
from sim.configuration import read
from sim.errors import UserError, unknown
from sim.machines import Machine
from sim.models import ModelSpec
from sim.placement.problem import Gpus, Ints, apportion

USABLE = 0.9
"""Share of a cluster's GPU memory that a plan may fill, as in the built-in machines."""
KV_SHARE = 0.25
"""Share of what is usable that is kept for the KV cache (guessed)."""


def gpus_of(name: str, experts: int, gpus: int | None = None, spares: int = 0) -> Gpus:
    """GPUs with slots for `experts` + `spares` copies a layer, dealt out by memory; at most one of each expert a GPU.

    gpus: how many, from the first on; of a machine as many nodes as that takes. Raises `UserError` that names the flag.
    """
    found = _gpus(name, gpus)
    most = experts * len(found)
    if experts + spares > most:
        raise UserError(f"--spares: is {spares}; {len(found)} GPUs hold at most one copy of each expert, so {most - experts} or fewer")
    return replace(found, slots=dealt(experts + spares, found.slots, experts))


def gpus_for(name: str, model: ModelSpec, gpus: int | None = None, spares: int | None = None) -> tuple[Gpus, Ints]:
    """GPUs with slots for the model's experts, and the copies that fit on each over all layers [gpus].

    spares: slots a layer beyond one for each expert; None: all that fit. Raises `UserError` with the sizes where they do not.
    """
    found = _gpus(name, gpus)
    room = np.maximum(0, found.slots * (1 - KV_SHARE) - model.dense_bytes).astype(np.int64)
    copies = room // model.expert_bytes
    most = np.minimum(copies // model.moe_layers, model.experts)
    wanted = model.experts + (spares or 0)
    if most.sum() < wanted:
        raise UserError(_too_large(name, model, found, room, wanted, int(most.sum())))
    if spares is None:
        return replace(found, slots=most), copies
    slots = dealt(wanted, most, most)
    return replace(found, slots=slots), slots * model.moe_layers


def _too_large(name: str, model: ModelSpec, found: Gpus, room: Ints, wanted: int, fit: int) -> str:
    """What is needed, what there is, and what took it."""
    need, have = model.expert_bytes * wanted * model.moe_layers / 1e9, room.sum() / 1e9
    usable, dense = found.slots.sum() / 1e9, model.dense_bytes / 1e9
    return (
        f"--model: {model.name} does not fit on {len(found)} GPUs of {name}: {wanted} copies a layer x {model.moe_layers} layers x "
        f"{model.expert_bytes / 1e6:,.1f} MB are {need:,.1f} GB; room is for {fit} a layer, {have:,.1f} GB of {usable:,.1f} GB usable, "
        f"less {KV_SHARE:.0%} for the KV cache and {dense:,.1f} GB of dense weights on each; more --gpus or fewer --spares are needed"
    )


def _gpus(name: str, gpus: int | None) -> Gpus:
    """With usable bytes of memory in place of slots."""
    return _of_cluster(clusters.load(name), gpus) if is_cluster(name) else _of_machine(machines.load(name), gpus)


def is_cluster(name: str) -> bool:
    """Whether the name is a cluster's and not a machine's. Raises `UserError` for one that is neither's."""
    if name in clusters.names() or name.endswith(".ini"):
        return True
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return read(Path(name)).get("kind") == "cluster"
    if name not in machines.names():
        raise unknown("--machine", name, (*machines.names(), *clusters.names()))
    return False


def dealt(total: int, memory: Ints, most: int | Ints) -> Ints:
    """`total` slots in proportion to memory [gpus], none more than `most` (of all, or of each [gpus])."""
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
        usable = int(machine.topology.gpu.memory_bytes * machine.topology.gpu.usable)
    else:
        lane = max((lane for lane in machine.lanes if lane.home is not None), key=lambda lane: lane.ranks, default=None)
        held = per_node = lane.ranks if lane is not None else 1
        usable = machine.memories[lane.home].budget_bytes // held if lane is not None and lane.home is not None else 1
    n = gpus or held
    number = np.arange(n)
    names = tuple(f"node{g // per_node}/gpu{g % per_node}" if n > per_node else f"gpu{g}" for g in number)
    return Gpus(names, number // per_node, np.zeros(n, np.int64), np.ones(n), np.full(n, usable))


def _of_cluster(cluster: Cluster, gpus: int | None) -> Gpus:
    """Speed is memory bandwidth: a decode step reads the weights of the experts that it uses."""
    found = cluster.gpu[: gpus or None]
    if gpus is not None and gpus > len(cluster.gpu):
        raise UserError(f"--gpus: is {gpus}; {cluster.name} has {len(cluster.gpu)}")
    nodes, regions = list(dict.fromkeys(g.node for g in found)), list(dict.fromkeys(g.region for g in found))
    speed = np.array([g.spec.bytes_per_s for g in found])
    return Gpus(
        tuple(g.name for g in found), np.array([nodes.index(g.node) for g in found]), np.array([regions.index(g.region) for g in found]),
        speed / speed.max(), np.array([int(g.spec.memory_bytes * USABLE) for g in found]),
    )  # fmt: skip
