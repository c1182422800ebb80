"""Pass: one walk of a batch through all layers, and the ops that it is made of.

Every method launches the tasks of one op for one micro-batch; a scheduler is the order in which it
calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sim import buffers
from sim.plan import Plan
from sim.schedulers.launch import At, Launcher
from sim.schedulers.sizes import Sizes
from sim.schedulers.weights import Weights
from sim.tasks import Work

HIDDEN_SLOTS, KV_LINES, KV_STAGE = "hidden_slots", "kv_lines", "kv_stage"


class Rows(NamedTuple):
    """The sequences of one micro-batch in one pass.

    microbatch: index of its activation buffers. cache: micro-batch that keeps the KV cache; another
    one where prefill runs in smaller micro-batches. tokens: rows of the activations. lengths: KV
    entries of each sequence at the end of the pass, the new ones included.
    """

    microbatch: int
    cache: int
    requests: tuple[int, ...]
    tokens: int
    lengths: tuple[int, ...]

    @property
    def sequences(self) -> int:
        return len(self.requests)

    def entries(self, seen: int | None, before: int = 0) -> int:
        """KV entries, summed over sequences; at most `seen` of each. before: how many tokens ago."""
        if seen is None:
            return sum(self.lengths) - before * len(self.lengths)
        return sum(min(n - before, seen) for n in self.lengths)

    def pairs(self, seen: int | None) -> int:
        """Causal query-key pairs of the prompts: the t-th token looks at t entries, at most at `seen`."""
        whole = sum(n * (n + 1) // 2 for n in self.lengths)
        if seen is None:
            return whole
        return whole - sum((n - seen) * (n - seen + 1) // 2 for n in self.lengths if n > seen)


@dataclass(slots=True)
class Pass:
    """rows: micro-batches in launch order. notify: whether samplings raise Finished. expert_kernel:
    variant of post_attn; body: what happens inside it where it has experts, for that many rows.
    samples: the sampling task of each micro-batch, once launched."""

    launch: Launcher
    sizes: Sizes
    weights: Weights
    at: At
    rows: Sequence[Rows]
    notify: bool
    expert_kernel: str = ""
    body: Callable[[int], Plan | None] = lambda tokens: None
    samples: dict[int, Rows] = field(default_factory=dict)

    @property
    def layers(self) -> range:
        return range(self.sizes.layers)

    @property
    def last(self) -> int:
        """Index of the last micro-batch."""
        return len(self.rows) - 1

    # Compute on the GPU -------------------------------------------------------------------------

    def embed(self, r: Rows, takes: Sequence[tuple[str, int]] = ()) -> int:
        """Look up the next tokens: the prompts, or what was sampled last."""
        reads = (buffers.token(r.cache),) if self.at.phase == "decode" else ()
        return self._compute("embed", r, reads=reads, writes=(buffers.hidden(r.microbatch),), takes=takes)

    def pre_attn(self, i: int, r: Rows, takes: Sequence[tuple[str, int]] = (), after: Sequence[int] = ()) -> int:
        """RMSNorm, QKV projection, RoPE."""
        j = r.microbatch
        return self._compute("pre_attn", r, i, reads=(buffers.hidden(j),), writes=(buffers.qkv(j),), takes=takes, after=after)

    def attn_prefill(self, i: int, r: Rows, cached: bool = False) -> int:
        """Causal attention over the prompts; `cached`: K and V also go to the cache on the GPU."""
        j = r.microbatch
        writes = (buffers.attn(j), buffers.kv_gpu(i, r.cache)) if cached else (buffers.attn(j),)
        return self._compute("attn_prefill", r, i, context=r.pairs(self.sizes.seen(i)), reads=(buffers.qkv(j),), writes=writes)

    def attn_gpu(self, i: int, r: Rows, cache: str, releases: Sequence[int] = ()) -> int:
        """Append K and V to `cache`, a buffer on the GPU, and attend to it."""
        j = r.microbatch
        reads, writes = (buffers.qkv(j), cache), (buffers.attn(j), cache)
        context = r.entries(self.sizes.seen(i))
        return self._compute("attn_decode", r, i, context=context, reads=reads, writes=writes, releases=releases)

    def post_attn(self, i: int, r: Rows) -> int:
        """O projection, router and experts. The last micro-batch's gives the layer's weights back."""
        j = r.microbatch
        reads = (buffers.attn(j), buffers.hidden(j), *self.weights.buffers(i))
        releases = self.weights.free(i) if r is self.rows[-1] else ()
        experts = self.sizes.experts if self.sizes.routed(i) else 0
        work = Work("post_attn", r.tokens, r.sequences, experts=experts, variant=self.expert_kernel)
        body = self.body(r.tokens) if experts else None
        return self._add(work, "gpu", r, i, reads=reads, writes=(buffers.hidden(j),), releases=releases, body=body)

    def sample(self, r: Rows, releases: Sequence[int] = ()) -> None:
        """Final norm, LM head and the next token of each sequence."""
        reads, writes = (buffers.hidden(r.microbatch),), (buffers.token(r.cache),)
        work = Work("sample", r.sequences, r.sequences)
        number = self._add(work, "gpu", r, reads=reads, writes=writes, releases=releases, notify=self.notify)
        self.samples[number] = r

    def finish(self, i: int, r: Rows) -> int:
        """post_attn, whose number is returned, and the sampling behind the last layer."""
        number = self.post_attn(i, r)
        if i == self.sizes.layers - 1:
            self.sample(r)
        return number

    def begin(self, i: int, r: Rows, after: Sequence[int] = ()) -> None:
        """pre_attn, and the embedding before the first layer."""
        if i == 0:
            self.embed(r)
        self.pre_attn(i, r, after=after)

    # Attention on the CPU -----------------------------------------------------------------------

    def attn_cpu(self, i: int, r: Rows, variant: str = "") -> None:
        """Append K and V to the host cache and attend to it there."""
        j, kv = r.microbatch, buffers.kv_host(i, r.cache)
        work = Work("attn_decode", r.tokens, r.sequences, r.entries(self.sizes.seen(i)), variant=variant)
        self._add(work, "cpu", r, i, reads=(buffers.qkv_host(j), kv), writes=(buffers.attn_host(j), kv))

    def offload_qkv(self, i: int, r: Rows) -> None:
        """D1: Q, K and V of the new tokens to the host."""
        j = r.microbatch
        self._copy("offload_qkv", "d2h", r, i, self.sizes.qkv_bytes, (buffers.qkv(j),), (buffers.qkv_host(j),))

    def load_hidden(self, i: int, r: Rows) -> int:
        """D2: the output of CPU attention to the GPU."""
        j = r.microbatch
        return self._copy("load_hidden", "h2d", r, i, self.sizes.attn_bytes, (buffers.attn_host(j),), (buffers.attn(j),))

    # KV cache and activations between GPU and host ----------------------------------------------

    def kv_to_cpu(self, i: int, r: Rows, *, after: Sequence[int] = (), releases: Sequence[int] = ()) -> None:
        """New K and V rows to the host cache; of a prompt as many as the layer keeps."""
        rows = r.entries(self.sizes.seen(i)) if self.at.phase == "prefill" else r.tokens
        work = Work("kv_to_cpu", r.tokens, r.sequences, bytes=rows * self.sizes.kv_bytes)
        reads, writes = (buffers.qkv(r.microbatch),), (buffers.kv_host(i, r.cache),)
        self._add(work, "d2h", r, i, reads=reads, writes=writes, after=after, releases=releases)

    def kv_to_gpu(self, i: int, r: Rows, slot: int, after: Sequence[int] = ()) -> int:
        """D4: the host cache, without the entries to come, to staging slot `slot`."""
        context = r.entries(self.sizes.seen(i), before=1)
        work = Work("kv_to_gpu", r.tokens, r.sequences, context, bytes=context * self.sizes.kv_bytes)
        reads, writes = (buffers.kv_host(i, r.cache),), (buffers.kv_stage(slot),)
        return self._add(work, "h2d", r, i, reads=reads, writes=writes, takes=((KV_STAGE, 1),), after=after)

    def hidden_to_cpu(self, i: int, r: Rows, releases: Sequence[int] = ()) -> None:
        j = r.microbatch
        reads, writes = (buffers.hidden(j),), (buffers.hidden_host(j),)
        self._copy("hidden_to_cpu", "d2h", r, i, self.sizes.hidden_bytes, reads, writes, releases=releases)

    def hidden_to_gpu(self, i: int, r: Rows, *, after: Sequence[int] = (), takes: Sequence[tuple[str, int]] = ()) -> int:
        j = r.microbatch
        reads, writes = (buffers.hidden_host(j),), (buffers.hidden(j),)
        return self._copy("hidden_to_gpu", "h2d", r, i, self.sizes.hidden_bytes, reads, writes, after=after, takes=takes)

    # What all of them come to -------------------------------------------------------------------

    def _compute(
        self, op: str, r: Rows, i: int = -1, *, context: int = 0, reads: Sequence[str], writes: Sequence[str],
        takes: Sequence[tuple[str, int]] = (), releases: Sequence[int] = (), after: Sequence[int] = (),
    ) -> int:  # fmt: skip
        work = Work(op, r.tokens, r.sequences, context)
        return self._add(work, "gpu", r, i, reads=reads, writes=writes, after=after, takes=takes, releases=releases)

    def _copy(
        self, op: str, lane: str, r: Rows, i: int, row_bytes: int, reads: Sequence[str], writes: Sequence[str], *,
        after: Sequence[int] = (), takes: Sequence[tuple[str, int]] = (), releases: Sequence[int] = (),
    ) -> int:  # fmt: skip
        work = Work(op, r.tokens, r.sequences, bytes=r.tokens * row_bytes)
        return self._add(work, lane, r, i, reads=reads, writes=writes, after=after, takes=takes, releases=releases)

    def _add(
        self, work: Work, lane: str, r: Rows, i: int = -1, *, reads: Sequence[str], writes: Sequence[str], after: Sequence[int] = (),
        takes: Sequence[tuple[str, int]] = (), releases: Sequence[int] = (), notify: bool = False, body: Plan | None = None,
    ) -> int:  # fmt: skip
        return self.launch.add(
            work, lane, reads=reads, writes=writes, after=after, takes=takes, releases=releases,
            requests=r.requests, at=self.at, layer=i, microbatch=r.microbatch, notify=notify, body=body,
        )  # fmt: skip


def steady_from(sizes: Sizes, rows: Sequence[Rows]) -> int:
    """First decode step from which `advance` holds, for `rows` before any: every sequence is beyond
    the window of sliding layers, so that a full window tells such a layer's work from the others'."""
    if not sizes.sliding:
        return 1
    return max(1, sizes.window + 2 - min(n for r in rows for n in r.lengths))


def advance(sizes: Sizes, work: Work, steps: int) -> Work:
    """The same work `steps` decode steps later: every cache is that many entries longer, but where
    it is a window."""
    if sizes.sliding and work.context == work.sequences * sizes.window:
        return work
    if work.op == "attn_decode":
        return work._replace(context=work.context + steps * work.sequences)
    if work.op == "kv_to_gpu":
        context = work.context + steps * work.sequences
        return work._replace(context=context, bytes=context * sizes.kv_bytes)
    return work
