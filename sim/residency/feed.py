"""Feed: the decode of a routing trace as the events that a cache sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.errors import UserError
from sim.events import Request
from sim.models.spec import ModelSpec
from traces.routing import Routing, Shape, read_routing


@dataclass(frozen=True, eq=False, slots=True)
class Decode:
    """One request's decode. prompt: tokens before it. experts [tokens, layers, k] int16."""

    request_id: int
    prompt: int
    experts: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.experts)


class Step(NamedTuple):
    """One decode step. rows: (sequence, token) of each, in the order of their slots. ended: share of them that end with it."""

    rows: list[tuple[int, int]]
    ended: float


@dataclass(frozen=True, eq=False, slots=True)
class Feed:
    """Sequences in the order of the trace. layers: numbers of the routed layers; column l of `experts` is the l-th of them."""

    shape: Shape
    layers: tuple[int, ...]
    sequences: tuple[Decode, ...]

    def take(self, which: Sequence[int]) -> Feed:
        return replace(self, sequences=tuple(self.sequences[i] for i in which))

    def spread(self, count: int) -> Feed:
        """`count` of the sequences, spread evenly; all, where there are no more."""
        n = len(self.sequences)
        return self if count >= n else self.take([i * n // count for i in range(count)])

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))

    def requests(self) -> tuple[Request, ...]:
        """All of them there at the start, numbered as `sequences`."""
        return tuple(Request(i, max(1, s.prompt), len(s)) for i, s in enumerate(self.sequences))

    def steps(self, batch: int, limit: int | None = None) -> Iterator[Step]:
        """Decode steps of `batch` slots: whoever ends makes place for the next in line. limit: steps at most."""
        waiting = iter(range(len(self.sequences)))
        slots: list[tuple[int, int] | None] = [None] * batch
        count = 0
        while limit is None or count < limit:
            for j, row in enumerate(slots):
                if row is None and (s := next(waiting, None)) is not None:
                    slots[j] = (s, 0)
            rows = [row for row in slots if row is not None]
            if not rows:
                return
            after = [None if row is None or row[1] + 1 == len(self.sequences[row[0]]) else (row[0], row[1] + 1) for row in slots]
            yield Step(rows, sum(a is None for a, row in zip(after, slots, strict=True) if row is not None) / len(rows))
            slots = after
            count += 1

    def asked(self, step: Step) -> list[list[int]]:
        """Distinct experts of each routed layer, in order of their first row."""
        if len(step.rows) == 1:
            s, t = step.rows[0]
            found: list[list[int]] = self.sequences[s].experts[t].tolist()
            return found
        each = [self.sequences[s].experts[t].tolist() for s, t in step.rows]
        return [list(dict.fromkeys(e for of_row in each for e in of_row[layer])) for layer in range(len(self.layers))]

    def popularity(self) -> dict[int, float]:
        """Uses of each key over all sequences."""
        counts: dict[int, float] = {}
        for column, layer in enumerate(self.layers):
            used = np.zeros(self.shape.experts, np.int64)
            for s in self.sequences:
                used += np.bincount(s.experts[:, column].ravel(), minlength=self.shape.experts)
            counts.update({layer * self.shape.experts + e: float(n) for e, n in enumerate(used.tolist())})
        return counts

    def check(self, model: ModelSpec, path: Path) -> None:
        """Raises `UserError` where the trace is of another model shape."""
        shape = self.shape
        for name, found, needed in (
            ("k", shape.k, model.top_k), ("experts", shape.experts, model.experts), ("layers", shape.layers, model.layers),
        ):  # fmt: skip
            if found != needed:
                raise UserError(f"--trace {path}: metadata {name}: is {found}; a trace of {model.name} has {needed}")


def load(path: Path) -> Feed:
    """Read a routing trace. Raises `traces.errors.TraceError`, or `UserError` where it holds no decode."""
    return of(read_routing(path), str(path))


def of(routing: Routing, name: str = "routing") -> Feed:
    """The decode rows of a routing trace. Raises `UserError` where a token lacks a layer."""
    r = routing.take(np.flatnonzero(routing.decode))
    if not len(r):
        raise UserError(f"--trace {name}: holds no decode steps; a cache needs them")
    r = r.take(np.lexsort((r.layer, r.position, r.request_id)))
    layers = np.unique(r.layer)
    if len(r) % len(layers) or not (r.layer.reshape(-1, len(layers)) == layers).all():
        raise UserError(f"--trace {name}: some tokens have no row in some layers; every token needs all {len(layers)}")
    experts = r.experts.reshape(-1, len(layers), routing.shape.k)
    ids, positions = r.request_id[:: len(layers)], r.position[:: len(layers)]
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    ends = [*starts[1:].tolist(), len(ids)]
    sequences = tuple(
        Decode(int(ids[a]), int(positions[a]), experts[a:b]) for a, b in zip(starts.tolist(), ends, strict=True)
    )
    return Feed(routing.shape, tuple(layers.tolist()), sequences)
