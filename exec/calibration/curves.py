"""Measured curves of the compute ops: solo seconds per unit over rows, see `sim.ops.Component`.

Each kernel is called as the backend calls it, on a thread with the lane's thread count, with its
weights out of the caches and its activations in them: in a run the weights have just arrived over
the link or were last used a whole pass ago, while the activations come from the op before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from exec import decoder
from exec.calibration.measure import Eviction, Work, on_thread, solo
from exec.products import product, thread_count
from exec.weights import Weights, expert_floats
from kernels import combine, dispatch, embed, rms_norm, rope, router
from sim.machines.schema import OpRate

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
EXPERT_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 65, 96, 128, 256)
"""Rows of one expert: dense where decode works, and around the row count at which the BLAS takes over."""
CONTEXTS = (4, 16, 32, 64, 128, 256, 512, 1024)
PROMPTS = (8, 16, 32, 64, 128, 256, 512, 1024)


class Piece(NamedTuple):
    """One call to time: its units (see `sim.ops.Component`) and what it reads warm."""

    call: Work
    units: float
    warm: tuple[np.ndarray, ...]


class Workbench:
    """Buffers, random activations and weights that the pieces are made of."""

    def __init__(self, spec: Any, weights: Weights, threads: int) -> None:
        self.spec, self.weights, self.threads = spec, weights, threads
        self.rng = np.random.default_rng(0)
        most = max(ROWS)
        self.scratch = np.zeros(decoder.scratch_floats(spec, most, longest=max(PROMPTS), threads=threads), np.float32)
        self.turn = 0

    def rows(self, count: int, width: int) -> np.ndarray:
        return self.rng.standard_normal((count, width), dtype=np.float32)

    @property
    def layer(self) -> int:
        """The next layer in turn."""
        self.turn = (self.turn + 1) % self.spec.layers
        return self.turn

    def product(self, weight: Callable[[int], np.ndarray]) -> Callable[[int], Piece]:
        n, k = weight(0).shape

        def piece(rows: int) -> Piece:
            x, out = self.rows(rows, k), np.empty((rows, n), np.float32)
            return Piece(lambda: product(x, weight(self.layer), out), n * k, (x, out))

        return piece

    def rms_norm(self, rows: int) -> Piece:
        x, out = self.rows(rows, self.spec.hidden), np.empty((rows, self.spec.hidden), np.float32)
        weight = self.weights.final_norm
        return Piece(lambda: rms_norm.forward(x, weight, self.spec.norm_eps, out), self.spec.hidden, (x, out))

    def rope(self, rows: int) -> Piece:
        heads = self.spec.heads + self.spec.kv_heads
        qkv, positions = self.rows(rows, decoder.qkv_width(self.spec)), np.arange(rows)
        table = decoder._rope_table(self.spec.rope_theta, self.spec.head_dim, 2048)
        return Piece(lambda: rope.forward(qkv, positions, table, heads), heads * self.spec.head_dim, (qkv,))

    def router(self, rows: int) -> Piece:
        x, logits = self.rows(rows, self.spec.hidden), np.empty((rows, self.spec.experts), np.float32)

        def call() -> None:
            product(x, self.weights.layers[self.layer].router, logits)
            decoder.route(logits, self.spec.top_k)

        return Piece(call, self.spec.hidden * self.spec.experts, (x, logits))

    def _dispatched(self, rows: int) -> tuple[np.ndarray, ...]:
        spec = self.spec
        ids = np.empty((rows, spec.top_k), np.int16)
        weights = np.empty((rows, spec.top_k), np.float32)
        router.select(self.rows(rows, spec.experts), ids, weights)
        positions, offsets = np.empty((rows, spec.top_k), np.int32), np.empty(spec.experts + 1, np.int32)
        return self.rows(rows, spec.hidden), ids, weights, offsets, positions, np.empty((rows * spec.top_k, spec.hidden), np.float32)

    def dispatch(self, rows: int) -> Piece:
        x, ids, _, offsets, positions, out = self._dispatched(rows)
        units = self.spec.top_k * self.spec.hidden
        return Piece(lambda: dispatch.forward(x, ids, offsets, positions, out, thread_count()), units, (x, out))

    def combine(self, rows: int) -> Piece:
        x, ids, weights, offsets, positions, out = self._dispatched(rows)
        dispatch.forward(x, ids, offsets, positions, out)
        units = self.spec.top_k * self.spec.hidden
        return Piece(lambda: combine.forward(out, positions, weights, x, thread_count()), units, (x, out))

    def expert_ffn(self, rows: int) -> Piece:
        """All experts of a layer, `rows` rows each: their weights alone are more than a cache holds."""
        spec = self.spec
        x = self.rows(rows * spec.experts, spec.hidden)
        offsets = np.arange(spec.experts + 1, dtype=np.int32) * rows
        space = np.zeros(len(x) * 3 * spec.ffn + 64, np.float32)

        def call() -> None:
            decoder.run_experts(spec, (self.weights.experts[self.layer],), x, offsets, decoder.Scratch(space))
            x[:] = 1.0  # the kernel works in place: without this the rows would grow without bound

        return Piece(call, spec.experts * expert_floats(spec), (x,))

    def embed(self, rows: int) -> Piece:
        ids, out = self.rng.integers(0, self.spec.vocab, rows), np.empty((rows, self.spec.hidden), np.float32)
        return Piece(lambda: embed.forward(self.weights.embed, ids, out), self.spec.hidden, (ids, out))

    def sample(self, rows: int) -> Piece:
        spec, w = self.spec, self.weights
        x, logits = self.rows(rows, spec.hidden), np.empty((rows, spec.vocab), np.float32)
        return Piece(lambda: decoder.sample_tokens(spec, w.final_norm, w.lm_head, x, logits, self.scratch), w.lm_head.size, (x,))

    def attn_prefill(self, prompt: int) -> Piece:
        """Prompts of one length, 256 rows in all at the least."""
        spec = self.spec
        count = max(1, 256 // prompt)
        qkv, attn = self.rows(count * prompt, decoder.qkv_width(spec)), np.empty((count * prompt, spec.heads * spec.head_dim), np.float32)
        offsets = np.arange(count + 1) * prompt
        return Piece(lambda: decoder.attn_prefill(spec, qkv, offsets, attn, self.scratch), count * spec.heads * spec.head_dim, (qkv, attn))

    def attn_decode(self, context: int, sequences: int = 16) -> Piece:
        spec = self.spec
        width = spec.kv_heads * spec.head_dim
        k, v = (self.rows(sequences * context, width).reshape(sequences, context, width) for _ in range(2))
        qkv, attn = self.rows(sequences, decoder.qkv_width(spec)), np.empty((sequences, spec.heads * spec.head_dim), np.float32)
        slots, lengths = np.arange(sequences), np.full(sequences, context - 1)
        return Piece(
            lambda: decoder.attn_decode(spec, qkv, k, v, slots, lengths, attn, self.scratch), sequences * spec.kv_dim, (qkv, attn)
        )

    def pieces(self) -> dict[str, tuple[tuple[int, ...], Callable[[int], Piece]]]:
        """By component: the rows to measure and the call for each."""
        layers = self.weights.layers
        return {
            "rms_norm": (ROWS, self.rms_norm),
            "qkv_proj": (ROWS, self.product(lambda i: layers[i].wqkv)),
            "rope": (ROWS, self.rope),
            "attn_prefill": (PROMPTS, self.attn_prefill),
            "attn_decode": (CONTEXTS, self.attn_decode),
            "o_proj": (ROWS, self.product(lambda i: layers[i].wo)),
            "router": (ROWS, self.router),
            "dispatch": (ROWS, self.dispatch),
            "expert_ffn": (EXPERT_ROWS, self.expert_ffn),
            "combine": (ROWS, self.combine),
            "embed": (ROWS, self.embed),
            "sample": (ROWS[:9], self.sample),
        }


def measure(spec: Any, weights: Weights, lane: str, threads: int, only: tuple[str, ...] = ()) -> Iterator[OpRate]:
    """Rows of the op table for compute lane `lane`, one component after the other."""
    bench = Workbench(spec, weights, threads)
    evict = Eviction()
    for op, (grid, make) in bench.pieces().items():
        if only and op not in only:
            continue
        seconds = on_thread(lambda make=make, grid=grid: [_seconds_per_unit(make(rows), evict) for rows in grid], threads)
        curve = tuple((float(r), s) for r, s in zip(grid, seconds, strict=True))
        yield OpRate(op=op, lane=lane, curve=curve, source="calibrated: solo, cold weights")


def _seconds_per_unit(piece: Piece, evict: Eviction) -> float:
    def before() -> None:
        evict()
        for array in piece.warm:
            array.sum()

    return solo(piece.call, before) / piece.units
