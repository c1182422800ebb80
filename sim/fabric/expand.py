"""A machine with a topology as one with resources and lanes for each rank.

Rank R has resources gpu.R.flops (FLOP/s of bf16), gpu.R.hbm and gpu.R.sms, memory gpu.R, and lanes
host.R (launches), gpu.R (compute stream), comm.R (communication stream) in order of submission, and
put.R.P for each peer P, where every put that is ready runs. A put crosses each link direction of its
route. The HBM at both ends is left out: at most an eighth of it, and sharing it equally with hundreds of
blocks, as max-min would, is not what a memory controller does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import permutations
from typing import Any

from sim.ep import names
from sim.errors import UserError
from sim.machines.parts import Lane, Memory, Resource
from sim.machines.schema import Machine
from sim.machines.topology import Topology

PUTS = 4096
"""Puts of one pair of ranks that may run at once: more than anybody asks for."""


def topology_of(machine: Machine) -> Topology:
    """Raises UserError where the machine has none."""
    if machine.topology is None:
        raise UserError(f"machine {machine.name}: has no topology; 8xh100 or a YAML profile with `topology:` would do")
    return machine.topology


def ranks(machine: Machine) -> int:
    """GPUs of all nodes. Raises UserError where the machine has no topology."""
    return topology_of(machine).ranks


def with_nodes(machine: Machine, nodes: int) -> Machine:
    """The machine with another number of equal nodes. Raises UserError where its topology joins no nodes."""
    topology = topology_of(machine)
    if nodes > 1 and not topology.network:
        raise UserError(f"machine {machine.name}: topology.network: missing; {nodes} nodes need one (8xh800 has one)")
    values = topology.model_dump() | {"nodes": nodes}
    return machine.model_copy(update={"name": f"{nodes}x{machine.name}", "topology": Topology.model_validate(values)})


def expand(machine: Machine, pairs: Iterable[tuple[int, int]] | None = None, servers: Mapping[str, int] | None = None) -> Machine:
    """`machine` as ranks. `pairs`: (source, target) of the put lanes that are needed; none: all. `servers`: further
    lanes of each rank by family, where whichever of their tasks is ready runs (blocks of a persistent kernel:
    {"blocks": 263, "scheduler": 1, "subscriber": 3} makes blocks.R, scheduler.R, subscriber.R). O(ranks^2).

    Raises UserError where the machine has no topology, ValueError for a pair that does not exist.
    """
    topology = topology_of(machine)
    everyone = range(topology.ranks)
    resources = {name: r for rank in everyone for name, r in _gpu_resources(topology, rank).items()}
    resources |= _link_resources(topology)
    lanes = [lane for rank in everyone for lane in _rank_lanes(topology, rank, servers or {})]
    lanes += [_put_lane(topology, a, b) for a, b in (permutations(everyone, 2) if pairs is None else pairs)]
    families = {lane.name for lane in lanes} | {family for lane in lanes for family in lane.families}
    gpu = topology.gpu
    memory = Memory(bytes=gpu.memory_bytes, usable=gpu.usable, source=gpu.source)
    return Machine(
        name=machine.name, description=machine.description, price=machine.price, topology=topology, resources=resources,
        memories={f"gpu.{rank}": memory for rank in everyone}, lanes=tuple(lanes),
        ops=tuple(op for op in topology.ops if op.lane in families),
    )  # fmt: skip


def _gpu_resources(topology: Topology, rank: int) -> dict[str, Resource]:
    gpu = topology.gpu
    return {
        f"gpu.{rank}.flops": Resource(kind="flops", capacity=gpu.peaks["bf16"], source=gpu.source),
        f"gpu.{rank}.hbm": Resource(kind="memory", capacity=gpu.hbm_bytes_per_s, source=gpu.source),
        f"gpu.{rank}.sms": Resource(kind="cores", capacity=gpu.sms, source=gpu.source),
    }


def _link_resources(topology: Topology) -> dict[str, Resource]:
    found: dict[str, Resource] = {}
    for _, _, edge in topology.graph().edges(data=True):
        name, source = edge["resource"], edge["source"]
        found[name] = Resource(kind="link", capacity=edge["bytes_per_s"], source=source)
        if edge["messages_per_s"] is not None:
            found[name + ".messages"] = Resource(kind="messages", capacity=edge["messages_per_s"], source=source)
    return found


def _rank_lanes(topology: Topology, rank: int, servers: Mapping[str, int]) -> list[Lane]:
    device: dict[str, Any] = {
        "kind": "compute", "compute": f"gpu.{rank}.flops", "memory": f"gpu.{rank}.hbm", "cores": f"gpu.{rank}.sms", "home": f"gpu.{rank}",
    }  # fmt: skip
    streams = [
        Lane(name=names.host(rank), kind="compute", families=("host",)),
        Lane(name=names.gpu(rank), threads=topology.gpu.sms, families=("gpu",), **device),
        Lane(name=names.comm(rank), families=("comm",), **device),
    ]
    return streams + [
        Lane(name=f"{family}.{rank}", order="ready", servers=count, families=(family,), **device) for family, count in servers.items()
    ]


def _put_lane(topology: Topology, a: int, b: int) -> Lane:
    route = topology.route(a, b)
    return Lane(
        name=names.put(a, b), order="ready", servers=PUTS, kind="copy", path=route.resources,
        cores=f"gpu.{a}.sms", home=f"gpu.{b}", latency_s=route.latency_s, families=(f"put.{route.kind}", "put"),
    )  # fmt: skip
