"""Layers whose experts are placed anywhere, in any number of copies: the overlapped schedule between who has rows and who has experts.

As `overlapped`, but a rank without rows sends none and one without experts of a layer is sent none, and copies of experts travel on the
same links. What a Plan's tasks say decides all of it:

| op | lane | says |
|---|---|---|
| gate | gpu.R | `requests` = whose rows, in order; `work.expert_tokens` = the step that each of them is at |
| experts | gpu.R | reads weights.R.L.E: copies that R serves with while the Plan runs. `sim.ep.copies` says which serves which row |
| put, variant "weights" | put.A.B | weights.A.L.E -> weights.B.L.E: part `microbatch` of an expert's rows; rows of tokens go first |
| load | host.R | -> weights.R.L.E from where weights are kept, for an expert that nobody alive holds |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sim.ep import names
from sim.models.spec import ModelSpec
from sim.plan import PlanBuilder
from sim.schedulers.ep.base import Shape
from sim.schedulers.ep.kernels import Launches, Layer
from sim.tasks import Work

WEIGHTS = "weights"
"""Variant of puts that carry copies of experts."""
BEHIND = 1
"""Priority of what has time until the Plan's end."""
WINDOW = 2
"""Dispatch puts of a rank that are under way at once, as `overlapped` has it."""
AT_ONCE = Launches()


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one rank in one step. steps: at which each request is."""

    requests: tuple[int, ...]
    steps: tuple[int, ...]


def part_rows(model: ModelSpec, most: int) -> list[int]:
    """An expert's weights as rows as long as activations, in parts that fit into a message of `most`."""
    whole = 3 * model.ffn
    return [min(most, whole - at) for at in range(0, whole, most)]


class PlacedLayers(Layer):
    """Adds steps to a Plan. held: by layer, the experts of each rank that has any. loading: number of the load that brings a copy
    (rank, layer, expert), where one does."""

    def __init__(self, model: ModelSpec, ranks: int, held: Sequence[Mapping[int, Sequence[int]]], builder: PlanBuilder) -> None:
        super().__init__(_shape(model, [0] * ranks), AT_ONCE, 1, builder)
        self.model, self.held = model, held
        self.loading: dict[tuple[int, int, int], int] = {}
        self.gates: dict[int, int] = {}
        """Layer of each gate, by number."""
        self._step = 0
        self._rows: Mapping[int, Rows] = {}

    # Copies of experts --------------------------------------------------------------------------

    def load(self, rank: int, layer: int, expert: int) -> None:
        work = Work("load", bytes=self.model.expert_bytes)
        self.loading[rank, layer, expert] = self.builder.add(
            work, names.host(rank), layer=layer, rank=rank, page=expert, writes=[names.weights(rank, layer, expert)]
        )

    def move(self, layer: int, expert: int, source: int, target: int, most: int) -> int:
        """One put for each part of `most` rows; they arrive in this order. Returns the last."""
        parts = part_rows(self.model, most)
        for part, rows in enumerate(parts):
            last = self.builder.add(
                Work("put", tokens=rows, bytes=rows * self.shape.row_bytes, variant=WEIGHTS), names.put(source, target),
                layer=layer, microbatch=part, rank=source, page=target, priority=BEHIND, notify=part == len(parts) - 1,
                reads=[names.weights(source, layer, expert)], writes=[names.weights(target, layer, expert)],
            )  # fmt: skip
        return last

    # Steps --------------------------------------------------------------------------------------

    def step(self, rows: Mapping[int, Rows]) -> list[int]:
        """All layers over the rows of ranks that have any. Returns the last task of each of them."""
        self._rows = rows
        self.shape = _shape(self.model, [len(rows[r].requests) if r in rows else 0 for r in range(len(self.ranks))])
        for layer in range(self.model.layers):
            self._layer(layer)
            self.number += 1
        self._step += 1
        return [self._done[r][0] for r in sorted(rows)]

    def add(
        self, work: Work, lane: str | None, deps: Iterable[int], rank: int, chunk: int = 0, peer: int = -1, *,
        reads: Iterable[str] = (), writes: Iterable[str] = (), notify: bool = False,
    ) -> int:  # fmt: skip
        return self.builder.add(
            work, lane, deps, reads=reads, writes=writes, layer=self.number % self.model.layers, rank=rank, microbatch=chunk, page=peer,
            phase="decode", step=self._step, requests=self._rows[rank].requests if rank in self._rows else (), notify=notify,
        )  # fmt: skip

    def _layer(self, layer: int) -> None:
        serving = sorted(r for r, experts in self.held[layer].items() if experts)
        sources = sorted(self._rows)
        sent = {a: self._sent(a) for a in sources}
        arrived = {a: self._dispatched(a, sent[a], serving) for a in sources}
        back: dict[int, list[int]] = {a: [] for a in sources}
        count = len(self.ranks)
        for turn in range(count):  # a rank's own rows first, then those of the one before it, ...
            for r in serving:
                a = (r - turn) % count
                if a in sent:
                    back[a].append(self._served(layer, r, a, arrived[a].get(r, sent[a])))
        for a in sources:
            self._summed(a, serving, back[a])

    def _sent(self, rank: int) -> int:
        """Gate and permute. Returns the permute."""
        mine, hidden, routes = self._rows[rank], names.hidden(rank, self.number), names.routes(rank)
        gate = Work("gate", tokens=len(mine.requests), experts=self.shape.experts, expert_tokens=mine.steps)
        deps = [*self._done[rank], *self.launch("gate", 1, rank)]
        gated = self.add(gate, names.gpu(rank), deps, rank, reads=[hidden], writes=[routes], notify=True)
        self.gates[gated] = self.number % self.model.layers
        deps = [gated, *self.launch("permute", 1, rank)]
        work = Work("permute", tokens=len(mine.requests))
        return self.add(work, names.gpu(rank), deps, rank, reads=[hidden, routes], writes=[names.send(rank, 0)])

    def _dispatched(self, source: int, permuted: int, serving: Sequence[int]) -> dict[int, int]:
        """Puts to who serves, the next rank first. By target."""
        puts: dict[int, int] = {}
        for target in sorted((r for r in serving if r != source), key=lambda r: (r - source) % len(self.ranks)):
            before = [list(puts.values())[-WINDOW]] if len(puts) >= WINDOW else []
            deps = [permuted, *before, *self.launch("dispatch", 1, source)]
            puts[target] = self._put("dispatch", source, target, deps, self._most(source, target))
        return puts

    def _served(self, layer: int, rank: int, source: int, ready: int) -> int:
        """The rows of one source through the experts of a rank, and back. Returns what ends last."""
        experts = self.held[layer][rank]
        loads = [self.loading[rank, layer, e] for e in experts if (rank, layer, e) in self.loading]
        rows = names.send(rank, 0) if source == rank else names.recv(rank, source, 0)
        work = Work("experts", tokens=self._most(source, rank), experts=len(experts))
        done = self.add(
            work, names.gpu(rank), [ready, *loads, *self.launch("experts", 1, rank)], rank, 0, source,
            reads=[rows, *(names.weights(rank, layer, e) for e in experts)], writes=[names.result(rank, source, 0)],
        )  # fmt: skip
        if source == rank:
            return done
        return self._put("combine", rank, source, [done, *self.launch("combine", 1, rank)], self._most(source, rank))

    def _put(self, variant: str, source: int, target: int, deps: Iterable[int], most: int) -> int:
        work = Work("put", tokens=most, bytes=most * self.shape.row_bytes, variant=variant)
        if variant == "dispatch":
            read, written = names.send(source, 0), names.recv(target, source, 0)
        else:
            read, written = names.result(source, target, 0), names.back(target, source, 0)
        return self.add(work, names.put(source, target), deps, source, 0, target, reads=[read], writes=[written])

    def _most(self, source: int, target: int) -> int:
        held = self.held[self.number % self.model.layers].get(target, ())
        return self.shape.tokens[source] * min(self.model.top_k, len(held))

    def _summed(self, rank: int, serving: Sequence[int], back: Sequence[int]) -> None:
        results = [names.result(rank, rank, 0) if r == rank else names.back(rank, r, 0) for r in serving]
        last = self.number % self.model.layers == self.model.layers - 1
        done = self.add(
            Work("unpermute", tokens=self.shape.tokens[rank]), names.gpu(rank), [*back, *self.launch("unpermute", 1, rank)], rank,
            reads=[names.routes(rank), *results], writes=[names.hidden(rank, self.number + 1)], notify=last,
        )  # fmt: skip
        self._done[rank] = [done]


def _shape(model: ModelSpec, tokens: Sequence[int]) -> Shape:
    return Shape(tuple(tokens), model.hidden, model.ffn, model.experts, model.top_k, model.dtype_bytes)
