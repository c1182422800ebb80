"""Machines of ranks: the lanes that one rank runs, and this computer as N ranks for the simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sim.ep import names
from sim.machines.schema import Lane, Machine, OpRate, Resource

RIG = "ranks"
"""What profiles of ranks name as their rig."""


def lanes_of(rank: int, ranks: int) -> Machine:
    """A machine with nothing but the lanes of one rank: what its threads need to know. A pair's puts leave one after
    another: they share one stream."""
    puts = (Lane(name=names.put(rank, p), order="ready", kind="copy") for p in range(ranks) if p != rank)
    own = (Lane(name=name, kind="compute") for name in (names.gpu(rank), names.comm(rank), names.host(rank)))
    return Machine(name=f"rank-{rank}", clock="measured", lanes=(*own, *puts), ops=())


def of_ranks(
    name: str, hosts: Sequence[int], threads: int, cores: Resource, links: Mapping[tuple[int, int], Resource], ops: Sequence[OpRate],
    description: str = "",
) -> Machine:  # fmt: skip
    """Ranks on computers that each have `cores`; rank r runs on computer hosts[r] with `threads` threads of its compute lane.

    links: from computer to computer, where ranks of both exchange rows; ranks of one computer exchange them through its
    memory, at the cost of its cores.
    """
    resources = {f"cores.{h}": cores for h in sorted(set(hosts))}
    resources |= {f"link.{a}.{b}": link for (a, b), link in links.items()}
    lanes = []
    for rank, host in enumerate(hosts):
        own = (names.gpu(rank), threads, "gpu"), (names.comm(rank), 0, "comm"), (names.host(rank), 0, "host")
        lanes += [Lane(name=n, kind="compute", cores=f"cores.{host}", threads=t, families=(family,)) for n, t, family in own]
    lanes += [_put(a, b, hosts) for a in range(len(hosts)) for b in range(len(hosts)) if a != b]
    return Machine(name=name, description=description, rig=RIG, clock="measured", resources=resources, lanes=tuple(lanes), ops=tuple(ops))


def _put(a: int, b: int, hosts: Sequence[int]) -> Lane:
    """The sender's computer pays for a put: where the other is another one, its half is a small part of what that one does."""
    same = hosts[a] == hosts[b]
    path = () if same else (f"link.{hosts[a]}.{hosts[b]}",)
    family = "put.local" if same else "put.network"
    return Lane(
        name=names.put(a, b), order="ready", kind="copy", path=path, cores=f"cores.{hosts[a]}", threads=1, families=(family, "put")
    )


def ranks_of(machine: Machine) -> int:
    """How many ranks a profile describes; 0: it is none of ranks."""
    return sum(lane.name.startswith("gpu.") for lane in machine.lanes) if machine.rig == RIG else 0
