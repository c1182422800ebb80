"""Space: the policies among which the search chooses, and one point of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sim.machines.schema import Machine
from sim.models.spec import ModelSpec
from sim.schedulers import registry
from sim.schedulers.policy import Policy

MOST_MICROBATCHES = 128
MOST_IN_MICROBATCH = 2048
MOST_IN_BATCH = 32768
PER_OCTAVE = 8
"""Micro-batches tried between a power of two and the next, from 16 on; all below."""
PREFILL_PARTS = (1, 2, 4, 8)


class Order(NamedTuple):
    """A launch order: the scheduler, and where it computes decode attention (A_g of MoE-Lightning)."""

    scheduler: str
    attention: Literal["cpu", "gpu"]

    def load(self) -> type[Any]:
        return registry.load(self.scheduler)


@dataclass(frozen=True, slots=True)
class Point:
    """One policy and the scheduler that follows it.

    microbatch, microbatches: mu and n; the batch N is their product. static_experts: of each layer (r_w in
    whole experts). prefill_microbatch: sequences of a prefill micro-batch. pages: None: one for each micro-batch.
    """

    order: Order
    microbatch: int
    microbatches: int
    static_experts: int = 0
    prefill_microbatch: int = 0
    pages: int | None = None

    @property
    def batch(self) -> int:
        return self.microbatch * self.microbatches

    @property
    def prefill_rows(self) -> int:
        return self.prefill_microbatch or self.microbatch

    def policy(self, padded: bool = False) -> Policy:
        return Policy(
            batch=self.batch, microbatch=self.microbatch, pages=self.pages, attention=self.order.attention,
            static_experts=self.static_experts, prefill_microbatch=self.prefill_rows, padded=padded, scheduler=self.order.scheduler,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Space:
    """The product of its fields, all ascending, restricted to what the machine's memories hold.

    prefill_parts: a prefill micro-batch is 1/k of a decode one, rounded up. most: sequences of the largest batch.
    """

    orders: tuple[Order, ...]
    microbatch: tuple[int, ...]
    microbatches: tuple[int, ...]
    static_experts: tuple[int, ...]
    prefill_parts: tuple[int, ...] = (1,)
    pages: int | None = None
    most: int = MOST_IN_BATCH

    def __len__(self) -> int:
        """Points, whether they fit or not."""
        sizes = sum(len(self.prefills(m)) * len(self.counts(m)) for m in self.microbatch)
        return sizes * sum(len(self.statics(order)) for order in self.orders)

    def counts(self, microbatch: int) -> tuple[int, ...]:
        """Numbers of micro-batches that make a batch of at most `most`."""
        return tuple(n for n in self.microbatches if n * microbatch <= self.most)

    def statics(self, order: Order) -> tuple[int, ...]:
        """Numbers of static experts: the largest where the scheduler streams none."""
        return self.static_experts if order.load().streams else self.static_experts[-1:]

    def prefills(self, microbatch: int) -> tuple[int, ...]:
        """Sizes of a prefill micro-batch, the largest first."""
        return tuple(sorted({-(-microbatch // k) for k in self.prefill_parts}, reverse=True))

    def points(self) -> Iterator[Point]:
        """All of them; for small spaces."""
        for order in self.orders:
            for mu in self.microbatch:
                for c in self.prefills(mu):
                    for e in self.statics(order):
                        for n in self.counts(mu):
                            yield Point(order, mu, n, e, c, self.pages)

    @property
    def largest(self) -> int:
        """Sequences of the largest batch."""
        return max(m * n for m in self.microbatch for n in self.counts(m)[-1:])


def default(model: ModelSpec, machine: Machine) -> Space:
    """Everything: each built-in scheduler that the machine has the lanes for, with every place of attention that
    it knows; micro-batches of 1 to 2048 sequences on a grid of at most 12 % steps; 1 to 128 of them; each number
    of static experts."""
    counts, experts = tuple(range(1, MOST_MICROBATCHES + 1)), tuple(range(model.experts + 1))
    return Space(orders(machine), grid(MOST_IN_MICROBATCH), counts, experts, PREFILL_PARTS)


def orders(machine: Machine) -> tuple[Order, ...]:
    """Fused schedules are left out: seen from outside they are those of their kernels."""
    found = []
    for name in registry.names():
        scheduler = registry.load(name)
        if not scheduler.fused and all(lane in machine.lane for lane in scheduler.lanes):
            found += [Order(name, where) for where in scheduler.attention]
    return tuple(found)


def grid(most: int) -> tuple[int, ...]:
    """All numbers up to 2 * PER_OCTAVE, then PER_OCTAVE of each octave."""
    sizes = list(range(1, min(most, 2 * PER_OCTAVE) + 1))
    step = 2
    while sizes[-1] + step <= most:
        sizes.append(sizes[-1] + step)
        if sizes[-1] >= 2 * PER_OCTAVE * step:
            step *= 2
    return tuple(sizes)
