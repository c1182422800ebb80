"""Machines of ranks: the lanes that one rank runs, and this computer as N ranks for the simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sim.ep import names
from sim.machines.schema import Lane, Machine, OpRate, Resource

RIG = "ranks"
"""What profiles of ranks name as their rig."""
LOCAL, NETWORK = "put.local", "put.network"
"""Families of lanes of puts within a host, and between two."""


def lanes_of(rank: int, ranks: int) -> Machine:
    """A machine with nothing but the lanes of one rank: what its threads need to know. A pair's puts leave one after
    another: they share one stream."""
    puts = (Lane(name=names.put(rank, p), order="ready", kind="copy") for p in range(ranks) if p != rank)
    own = (Lane(name=name, kind="compute") for name in (names.gpu(rank), names.comm(rank), names.host(rank)))
    return Machine(name=f"rank-{rank}", clock="measured", lanes=(*own, *puts), ops=())


class Place(NamedTuple):
    """Where a rank runs: computer, whose cores it shares; host, whose network it shares (a computer, or a namespace on one)."""

    computer: int
    host: int


def of_ranks(
    name: str, places: Sequence[Place], threads: int, cores: Resource, links: Mapping[int, Resource], ops: Sequence[OpRate],
    description: str = "", device: Resource | None = None,
) -> Machine:  # fmt: skip
    """Ranks on computers that each have `cores`, with `threads` threads of each compute lane. device: each rank has such a one
    that computes, of which a task takes all.

    links: each host's, one way; what goes from one host to another crosses the sender's link out and the receiver's link in.
    Ranks of one host exchange rows through its memory, at the cost of its computer's cores.
    """
    resources = {f"cores.{c}": cores for c in sorted({p.computer for p in places})}
    resources |= {f"link.{host}.{way}": link for host, link in links.items() for way in ("out", "in")}
    if device is not None:
        resources |= {names.gpu(rank): device for rank in range(len(places))}
    lanes = []
    for rank, place in enumerate(places):
        cpu = f"cores.{place.computer}"
        gpu = (cpu, threads) if device is None else (names.gpu(rank), 1)
        own = (names.gpu(rank), *gpu, "gpu"), (names.comm(rank), cpu, 0, "comm"), (names.host(rank), cpu, 0, "host")
        lanes += [Lane(name=n, kind="compute", cores=at, threads=t, families=(family,)) for n, at, t, family in own]
    lanes += [_put(a, b, places) for a in range(len(places)) for b in range(len(places)) if a != b]
    return Machine(name=name, description=description, rig=RIG, clock="measured", resources=resources, lanes=tuple(lanes), ops=tuple(ops))


def _put(a: int, b: int, places: Sequence[Place]) -> Lane:
    """The sender's computer pays for a put."""
    same = places[a].host == places[b].host
    path = () if same else (f"link.{places[a].host}.out", f"link.{places[b].host}.in")
    family = LOCAL if same else NETWORK
    cores = f"cores.{places[a].computer}"
    return Lane(name=names.put(a, b), order="ready", kind="copy", path=path, cores=cores, threads=1, families=(family, "put"))


def ranks_of(machine: Machine) -> int:
    """How many ranks a profile describes; 0: it is none of ranks."""
    return sum(lane.name.startswith("gpu.") for lane in machine.lanes) if machine.rig == RIG else 0


def has_devices(machine: Machine) -> bool:
    """Whether the ranks of a profile compute on devices of their own."""
    return names.gpu(0) in machine.resources
