"""Collectives as puts and joins in a PlanBuilder.

`after[r]` are the tasks behind which rank r takes part (for one that reads its send buffer, those that fill
it). In a library with rendezvous (NCCL) a put from a to b begins when both take part; one-sided puts (NVSHMEM)
need their sender only. All labels given are those of the puts; a put's `rank` is its sender, its `page` the receiver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sim.ep import names
from sim.plan import PlanBuilder
from sim.tasks import Work

_JOIN = Work("join")

Numbers = Sequence[int]

Puts = dict[tuple[int, int], int]
"""(source, target) -> number."""


@dataclass(frozen=True, slots=True)
class Collective:
    """Numbers of the tasks of one collective over W ranks.

    Attributes
    ----------
    puts: (source, target) -> its last put. received [W]: join over all that rank r gets and, as the buffers
        that it sends from are free again only then, over all that it sends. done: join over every rank; what waits
        for it models a library where the operation returns for all at once.
    """

    puts: Puts
    received: tuple[int, ...]
    done: int


def exchange(ranks: int, put: Callable[[int, int, Numbers], int], after: Sequence[Numbers], rendezvous: bool = True) -> Puts:
    """A put from every rank to every other one, each to the next first. put(source, target, deps) adds one and returns its number."""
    pairs = [(a, (a + step) % ranks) for a in range(ranks) for step in range(1, ranks)]
    return {(a, b): put(a, b, (*after[a], *after[b]) if rendezvous else tuple(after[a])) for a, b in pairs}


def all_to_all(
    builder: PlanBuilder, sizes: Sequence[Sequence[int]], after: Sequence[Numbers], *, op: str = "put", variant: str = "",
    rendezvous: bool = True, rows: Sequence[Sequence[int]] | None = None, messages: Sequence[Sequence[int]] | None = None, **labels: Any,
) -> Collective:  # fmt: skip
    """All-to-all-v of sizes [W, W] bytes (what stays on a rank is no put). rows, messages [W, W]: what is noted in the
    work of each put; a pair without bytes gets one empty put, since its receiver waits for its count. O(W^2)."""

    def put(a: int, b: int, deps: Numbers) -> int:
        count, cut = rows[a][b] if rows else 0, messages[a][b] if messages else 1
        work = Work(op, tokens=int(count), bytes=int(sizes[a][b]), variant=variant, messages=int(cut))
        return builder.add(work, names.put(a, b), deps, rank=a, page=b, **labels)

    return _collective(builder, len(sizes), exchange(len(sizes), put, after, rendezvous), after, labels)


def all_gather(
    builder: PlanBuilder, sizes: Sequence[int], after: Sequence[Numbers], *, op: str = "put", variant: str = "", **labels: Any
) -> Collective:
    """Ring: in each of W - 1 steps every rank hands on to the next the part that it got last; sizes [W] bytes of each rank's part."""
    n = len(sizes)
    puts: Puts = {}
    for step in range(n - 1):
        before = dict(puts)
        for a in range(n):
            b = (a + 1) % n
            deps = (*after[a], *after[b]) if step == 0 else (before[(a - 1) % n, a], before[a, b])
            work = Work(op, bytes=int(sizes[(a - step) % n]), variant=variant, messages=1)
            puts[a, b] = builder.add(work, names.put(a, b), deps, rank=a, page=b, **labels)
    return _collective(builder, n, puts, after, labels)


def reduce_scatter(
    builder: PlanBuilder, sizes: Sequence[int], after: Sequence[Numbers], *, op: str = "put", variant: str = "reduce", **labels: Any
) -> Collective:
    """Ring, as `all_gather`; sizes [W] bytes of the part that each rank ends with. The part of rank r starts at r + 1 and each
    rank adds its own on the way, in the put's kernel: price it in the row `put.reduce` (bytes_scale for the reads)."""
    n = len(sizes)
    return all_gather(builder, [sizes[(a - 1) % n] for a in range(n)], after, op=op, variant=variant, **labels)


def barrier(builder: PlanBuilder, after: Sequence[Numbers], *, op: str = "signal", variant: str = "", **labels: Any) -> Collective:
    """Dissemination: in round k rank r signals rank r + 2^k; ceil(log2 W) rounds of empty puts."""
    n = len(after)
    puts: Puts = {}
    ready: list[Numbers] = [tuple(a) for a in after]
    hop = 1
    while hop < n:
        signals = [
            builder.add(Work(op, variant=variant, messages=1), names.put(a, (a + hop) % n), ready[a], rank=a, page=(a + hop) % n, **labels)
            for a in range(n)
        ]
        puts |= {(a, (a + hop) % n): signals[a] for a in range(n)}
        ready = [(*ready[b], signals[(b - hop) % n]) for b in range(n)]
        hop *= 2
    received = tuple(builder.add(_JOIN, None, ready[r], rank=r, **labels) for r in range(n))
    return Collective(puts, received, builder.add(_JOIN, None, received, **labels))


def _collective(
    builder: PlanBuilder, n: int, puts: Puts, after: Sequence[Numbers], labels: dict[str, Any]
) -> Collective:
    """Joins behind the puts. One rank alone has none, and is done when it takes part."""
    waits: list[list[int]] = [list(after[r]) if n == 1 else [] for r in range(n)]
    for (a, b), number in puts.items():
        waits[a].append(number)
        waits[b].append(number)
    received = tuple(builder.add(_JOIN, None, waits[r], rank=r, **labels) for r in range(n))
    return Collective(puts, received, builder.add(_JOIN, None, received, **labels))
