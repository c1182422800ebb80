"""Serving: a whole model on several GPUs, attention data parallel, experts as one of the kernel-level schedulers says.

Each rank prefills its own sequences and then decodes them, one token a step; what the ranks do together are the experts of
every layer. All of it is one Plan: prompts and generations have lengths that are known.

| op | lane | reads -> writes |
|---|---|---|
| embed | gpu.R | token.R (decode) -> hidden.R.p |
| pre_attn | gpu.R | hidden.R.p -> qkv.R |
| attn_prefill, attn_decode | gpu.R | qkv.R -> attn.R |
| o_proj | gpu.R | attn.R -> hidden.R.p |
| gate ... unpermute | | see `sim.ep` |
| sample | gpu.R | hidden.R.p -> token.R |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from sim.ep import names
from sim.events import Arrived, Event, Request
from sim.plan import Plan, PlanBuilder
from sim.schedulers.ep.kernels import Kernels, Layer
from sim.tasks import Command, Time, Work


class Serving:
    """Serves the requests that arrive at the beginning, rank r those whose number modulo the ranks is r, with `experts`
    adding the expert part of each layer."""

    pools: ClassVar[Mapping[str, int]] = {}

    def __init__(self, experts: Kernels) -> None:
        self.experts = experts
        self.model = experts.model
        self._requests: list[list[Request]] = [[] for _ in range(experts.ranks)]

    @property
    def lanes(self) -> tuple[str, ...]:
        return self.experts.lanes

    def memory(self, requests: Sequence[Request]) -> dict[str, dict[str, int]]:
        """As the experts' scheduler says for the prefill, the longer of the two."""
        return self.experts.memory(requests)

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        if not isinstance(event, Arrived):
            return ()
        self._requests[event.request.request_id % len(self._requests)].append(event.request)
        return [self.plan()] if event.last else ()

    def plan(self, first: int = 0) -> Plan:
        builder = PlanBuilder(first)
        passed = self._pass(builder, None, 0)
        steps = max((r.output_tokens or r.max_output_tokens for mine in self._requests for r in mine), default=1)
        for step in range(1, steps):
            passed = self._pass(builder, passed, step)
        return builder.build()

    def _pass(self, builder: PlanBuilder, before: _Pass | None, step: int) -> _Pass:
        """The prefill (step 0), or one decode step."""
        layers = _Pass(self.experts, self._requests, builder, before, step)
        layers.embed()
        for _ in range(self.model.layers):
            layers.attention()
            self.experts.add_layer(layers)
            layers.number += 1
        layers.sample()
        return layers


class _Pass(Layer):
    """One pass of all ranks through the layers. Layers are numbered on from the pass `before`."""

    def __init__(
        self, experts: Kernels, requests: Sequence[Sequence[Request]], builder: PlanBuilder, before: _Pass | None, step: int
    ) -> None:
        self._model, self._of, self._step = experts.model, requests, step
        tokens = [len(mine) if step else sum(r.prompt_tokens for r in mine) for mine in requests]
        super().__init__(experts.shape(tokens), experts.launches, experts.chunks, builder)
        if before is not None:
            self.number, self._done = before.number, before._done

    def add(
        self, work: Work, lane: str | None, deps: Iterable[int], rank: int, chunk: int = 0, peer: int = -1, *,
        reads: Iterable[str] = (), writes: Iterable[str] = (),
    ) -> int:  # fmt: skip
        return self.builder.add(
            work, lane, deps, reads=reads, writes=writes, layer=self.number % self._model.layers, rank=rank, microbatch=chunk, page=peer,
            phase="decode" if self._step else "prefill", step=self._step, requests=tuple(r.request_id for r in self._of[rank]),
        )  # fmt: skip

    def _next(self, rank: int, work: Work, reads: Iterable[str], writes: Iterable[str]) -> None:
        """The next op of a rank's own; what comes after waits for it."""
        self._done[rank] = [self.add(work, names.gpu(rank), self._done[rank], rank, reads=reads, writes=writes)]

    def embed(self) -> None:
        for r in self.ranks:
            work = Work("embed", tokens=self.shape.tokens[r], sequences=len(self._of[r]))
            self._next(r, work, [f"token.{r}"] if self._step else [], [names.hidden(r, self.number)])

    def attention(self) -> None:
        for r in self.ranks:
            hidden, qkv, attn = names.hidden(r, self.number), f"qkv.{r}", f"attn.{r}"
            tokens, sequences = self.shape.tokens[r], len(self._of[r])
            self._next(r, Work("pre_attn", tokens=tokens, sequences=sequences), [hidden], [qkv])
            op = "attn_decode" if self._step else "attn_prefill"
            self._next(r, Work(op, tokens=tokens, sequences=sequences, context=self._context(r)), [qkv], [attn])
            self._next(r, Work("o_proj", tokens=tokens, sequences=sequences), [attn, hidden], [hidden])

    def _context(self, rank: int) -> int:
        """Decode: cache entries read, the new ones included; prefill: causal pairs of query and key."""
        prompts = [r.prompt_tokens for r in self._of[rank]]
        return sum(p + self._step for p in prompts) if self._step else sum(p * (p + 1) // 2 for p in prompts)

    def sample(self) -> None:
        for r in self.ranks:
            count = len(self._of[r])
            self._next(r, Work("sample", tokens=count, sequences=count), [names.hidden(r, self.number)], [f"token.{r}"])
