"""What the kernel-level schedulers share: launches, the stages of a layer, and collectives made of puts.

They do not know the routing: `tokens` and `bytes` of what depends on it are upper bounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

from sim.ep import names
from sim.fabric.collectives import exchange
from sim.models.spec import ModelSpec
from sim.plan import Plan, PlanBuilder
from sim.schedulers.ep.base import ExpertParallel, Shape
from sim.schedulers.policy import Policy
from sim.tasks import Work


class Launches(NamedTuple):
    """Kernels and collectives that the host enqueues for each stage of one layer."""

    gate: int = 1
    permute: int = 1
    dispatch: int = 1
    experts: int = 1
    combine: int = 1
    unpermute: int = 1

    @classmethod
    def of(cls, total: int) -> Launches:
        """`total` launches split evenly (guessed: only totals were published), at least one a stage where there are so many."""
        share, more = divmod(total, len(cls._fields))
        return cls(*(share + (i < more) for i in range(len(cls._fields))))

    @property
    def total(self) -> int:
        return sum(self)


def chunk_rows(tokens: int, chunk: int, chunks: int) -> range:
    """Tokens of one rank that belong to a chunk."""
    return range(tokens * chunk // chunks, tokens * (chunk + 1) // chunks)


class Kernels(ExpertParallel):
    """Base of the schedulers whose tasks are whole kernels.

    chunks: parts that a rank's tokens are cut into. launches: what the host enqueues for a layer.
    """

    default_launches: ClassVar[Launches] = Launches()
    default_chunks: ClassVar[int] = 1

    def __init__(
        self, model: ModelSpec, policy: Policy, *, seed: int = 0, ranks: int = 8, layers: int = 1, chunks: int | None = None,
        launches: Launches | None = None,
    ) -> None:  # fmt: skip
        super().__init__(model, policy, seed=seed, ranks=ranks, layers=layers)
        self.chunks = self.default_chunks if chunks is None else chunks
        self.launches = self.default_launches if launches is None else launches
        self.at_least_one(chunks=self.chunks)

    @property
    def lanes(self) -> tuple[str, ...]:
        ranks = range(self.ranks)
        own = (lane(r) for r in ranks for lane in (names.gpu, names.comm, names.host))
        return (*own, *(names.put(a, b) for a in ranks for b in ranks if a != b))

    def plan(self, tokens: Sequence[int], first: int = 0) -> Plan:
        """All layers over `tokens` [ranks]; tasks numbered from `first`."""
        layer = Layer(self.shape(tokens), self.launches, self.chunks, PlanBuilder(first))
        for _ in range(self.layers):
            self.add_layer(layer)
            layer.number += 1
        return layer.builder.build()

    def add_layer(self, layer: Layer) -> None:
        raise NotImplementedError


class Layer:
    """Adds the tasks of one layer after another. Each method returns the numbers of what it added, by rank."""

    def __init__(self, shape: Shape, launches: Launches, chunks: int, builder: PlanBuilder) -> None:
        self.shape, self.launches, self.chunks, self.builder = shape, launches, chunks, builder
        self.number = 0
        self.ranks = range(shape.ranks)
        self._done: list[list[int]] = [[] for _ in self.ranks]
        """What the next layer's gate waits for, of each rank."""

    def add(
        self, work: Work, lane: str | None, deps: Iterable[int], rank: int, chunk: int = 0, peer: int = -1, *,
        reads: Iterable[str] = (), writes: Iterable[str] = (),
    ) -> int:  # fmt: skip
        return self.builder.add(
            work, lane, deps, reads=reads, writes=writes, layer=self.number, rank=rank, microbatch=chunk, page=peer
        )

    def launch(self, stage: str, count: int, rank: int, chunk: int = 0, after: Iterable[int] = ()) -> list[int]:
        """`count` launches; the last of them, which the stage waits for. `after`: what the host waits for first."""
        last: list[int] = []
        for _ in range(count):
            last = [self.add(Work("launch", variant=stage), names.host(rank), after if not last else (), rank, chunk)]
        return last

    def tokens(self, rank: int, chunk: int) -> int:
        return len(chunk_rows(self.shape.tokens[rank], chunk, self.chunks))

    def gate(self) -> list[int]:
        numbers = []
        for r in self.ranks:
            work = Work("gate", tokens=self.shape.tokens[r], experts=self.shape.experts)
            deps = [*self._done[r], *self.launch("gate", self.launches.gate, r)]
            numbers.append(self.add(work, names.gpu(r), deps, r, reads=[names.hidden(r, self.number)], writes=[names.routes(r)]))
        return numbers

    def permute(self, chunk: int, gated: Sequence[int]) -> list[int]:
        numbers = []
        for r in self.ranks:
            deps = [gated[r], *self.launch("permute", self.launches.permute, r, chunk)]
            reads = [names.hidden(r, self.number), names.routes(r)]
            work = Work("permute", tokens=self.tokens(r, chunk))
            numbers.append(self.add(work, names.gpu(r), deps, r, chunk, reads=reads, writes=[names.send(r, chunk)]))
        return numbers

    def enter(self, variant: str, chunk: int, deps: Sequence[Sequence[int]]) -> list[int]:
        """Ranks join a collective. deps [ranks]: what each waits for."""
        return [self.add(Work("enter", variant=variant), names.comm(r), deps[r], r, chunk) for r in self.ranks]

    def put(self, variant: str, source: int, target: int, chunk: int, deps: Iterable[int]) -> int:
        """Rows of `source` to the experts of `target`, or their results from `source` back to `target`."""
        dispatch = variant == "dispatch"
        rows = self.shape.most_rows(self.tokens(source if dispatch else target, chunk))
        work = Work("put", tokens=rows, bytes=rows * self.shape.row_bytes, variant=variant)
        read = names.send(source, chunk) if dispatch else names.result(source, target, chunk)
        written = names.recv(target, source, chunk) if dispatch else names.back(target, source, chunk)
        return self.add(work, names.put(source, target), deps, source, chunk, target, reads=[read], writes=[written])

    def all_to_all(self, variant: str, chunk: int, deps: Sequence[Sequence[int]]) -> int:
        """A collective: a pair moves when both are in it, and it returns for all at once. Returns the barrier."""
        entered = [(e,) for e in self.enter(variant, chunk, deps)]
        puts = exchange(len(self.ranks), lambda a, b, ready: self.put(variant, a, b, chunk, ready), entered)
        return self.add(Work("barrier", variant=variant), None, puts.values() or entered[0], 0, chunk)

    def experts(self, rank: int, chunk: int, deps: Iterable[int], peer: int = -1) -> int:
        """Over the rows of all ranks, or of `peer` alone."""
        sources = self.ranks if peer < 0 else (peer,)
        rows = sum(self.shape.most_rows(self.tokens(a, chunk)) for a in sources)
        reads = [names.send(rank, chunk) if a == rank else names.recv(rank, a, chunk) for a in sources]
        writes = [names.result(rank, a, chunk) for a in sources]
        work = Work("experts", tokens=rows, experts=self.shape.experts_per_rank)
        return self.add(work, names.gpu(rank), deps, rank, chunk, peer, reads=reads, writes=writes)

    def unpermute(self, chunk: int, deps: Sequence[Iterable[int]]) -> None:
        for r in self.ranks:
            reads = [names.routes(r), *(names.result(r, r, chunk) if b == r else names.back(r, b, chunk) for b in self.ranks)]
            waits = [*deps[r], *self.launch("unpermute", self.launches.unpermute, r, chunk)]
            work = Work("unpermute", tokens=self.tokens(r, chunk))
            done = self.add(work, names.gpu(r), waits, r, chunk, reads=reads, writes=[names.hidden(r, self.number + 1)])
            self._done[r] = [done]
