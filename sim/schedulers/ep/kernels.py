"""What the kernel-level schedulers share: launches, the stages of a layer, and collectives made of puts.

An object hears Started and Arrived, and answers the last arrival with one Plan for all ranks. It does
not know the routing: `tokens` and `bytes` of what depends on it are upper bounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple

from sim.ep import names
from sim.errors import UserError
from sim.events import Arrived, Event, Request
from sim.models.spec import ModelSpec
from sim.plan import Plan, PlanBuilder
from sim.schedulers.policy import Policy
from sim.tasks import Command, Time, Work


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


class Shape(NamedTuple):
    """What a Plan is made for: `tokens` [ranks] of each rank."""

    tokens: tuple[int, ...]
    hidden: int
    experts: int
    top_k: int
    row_bytes: int

    @property
    def ranks(self) -> int:
        return len(self.tokens)

    @property
    def experts_per_rank(self) -> int:
        return self.experts // self.ranks

    def most_rows(self, tokens: int) -> int:
        """Rows that so many tokens can send to one rank: each token picks an expert at most once."""
        return tokens * min(self.top_k, self.experts_per_rank)


def shape_of(model: ModelSpec, tokens: Sequence[int]) -> Shape:
    """Raises UserError where the experts cannot be split evenly over the ranks."""
    if model.experts % len(tokens):
        raise UserError(f"{model.name}: has {model.experts} experts; a multiple of the {len(tokens)} ranks is needed")
    return Shape(tuple(tokens), model.hidden, model.experts, model.top_k, model.hidden * model.dtype_bytes)


def chunk_rows(tokens: int, chunk: int, chunks: int) -> range:
    """Tokens of one rank that belong to a chunk."""
    return range(tokens * chunk // chunks, tokens * (chunk + 1) // chunks)


class Kernels:
    """Base of the schedulers whose tasks are whole kernels.

    ranks: GPUs that share the experts. layers: MoE layers, one after another. chunks: parts that a rank's
    tokens are cut into. launches: what the host enqueues for a layer. Raises UserError for sizes that
    do not fit together. Requests arrive as `sim.ep` says; the Plan is handed out on the last.
    """

    pools: ClassVar[Mapping[str, int]] = {}
    default_launches: ClassVar[Launches] = Launches()
    default_chunks: ClassVar[int] = 1

    def __init__(
        self, model: ModelSpec, policy: Policy, *, seed: int = 0, ranks: int = 8, layers: int = 1, chunks: int | None = None,
        launches: Launches | None = None,
    ) -> None:  # fmt: skip
        self.model, self.policy, self.seed = model, policy, seed
        self.layers = layers
        self.chunks = self.default_chunks if chunks is None else chunks
        self.launches = self.default_launches if launches is None else launches
        for name, value in (("ranks", ranks), ("layers", layers), ("chunks", self.chunks)):
            if value < 1:
                raise UserError(f"{name}: is {value}; 1 or more is needed")
        self._tokens = [0] * ranks
        self._shape([1] * ranks)

    @property
    def ranks(self) -> int:
        return len(self._tokens)

    @property
    def lanes(self) -> tuple[str, ...]:
        ranks = range(self.ranks)
        own = (lane(r) for r in ranks for lane in (names.gpu, names.comm, names.host))
        return (*own, *(names.put(a, b) for a in ranks for b in ranks if a != b))

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        if not isinstance(event, Arrived):
            return ()
        self._tokens[event.request.request_id % self.ranks] += event.request.prompt_tokens
        return [self.plan(self._tokens)] if event.last else ()

    def plan(self, tokens: Sequence[int], first: int = 0) -> Plan:
        """All layers over `tokens` [ranks]; tasks numbered from `first`."""
        layer = Layer(self._shape(tokens), self.launches, self.chunks, PlanBuilder(first))
        for _ in range(self.layers):
            self.add_layer(layer)
            layer.number += 1
        return layer.builder.build()

    def add_layer(self, layer: Layer) -> None:
        raise NotImplementedError

    def memory(self, requests: Sequence[Request]) -> dict[str, dict[str, int]]:
        """Bytes on the GPU that holds most: weights of its experts, and each buffer at its upper bound."""
        tokens = [0] * self.ranks
        for request in requests:
            tokens[request.request_id % self.ranks] += request.prompt_tokens
        shape = self._shape(tokens)
        arrive = sum(shape.most_rows(t) for t in tokens)
        most = max(tokens)
        return {"gpu": {
            "weights": self.layers * shape.experts_per_rank * self.model.expert_bytes, "hidden": 2 * most * shape.row_bytes,
            "send": most * shape.top_k * shape.row_bytes, "recv": arrive * shape.row_bytes, "result": arrive * shape.row_bytes,
            "back": most * shape.top_k * shape.row_bytes,
        }}  # fmt: skip

    def _shape(self, tokens: Sequence[int]) -> Shape:
        return shape_of(self.model, tokens)


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
        entered = self.enter(variant, chunk, deps)
        pairs = [(a, b) for a in self.ranks for b in self.ranks if a != b]
        puts = [self.put(variant, a, b, chunk, (entered[a], entered[b])) for a, b in pairs]
        return self.add(Work("barrier", variant=variant), None, puts or entered, 0, chunk)

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
