"""The decoder of the Mixtral architecture as stateless steps over arrays that the caller owns.

Shape letters: T tokens, S sequences, H hidden, h query heads, g key/value heads, D head dimension,
E experts, k experts a token, F FFN width, V vocabulary. Arrays are float32, C-contiguous NumPy;
every step writes into what it is given and takes its temporaries from `scratch`, a flat float32
array of `scratch_floats` elements, so that an arena can budget for all of it.

Numerics are those of transformers' `MixtralForCausalLM`. All heavy parts release the GIL and run on as
many threads as `exec.products.set_threads` gave the calling thread.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from exec.products import product, streamed_rows, thread_count
from exec.weights import LayerWeights
from kernels import attention_decode, attention_prefill, combine, dispatch, embed, expert_ffn, rms_norm, rope, router, sample
from kernels.fused_moe.host import HostLaunch, Layer

EXPERT_ROWS = 512
"""Rows of one expert computed at once: bounds the FFN's intermediates."""


class Scratch:
    """Cuts temporaries off a flat float32 array, first to last."""

    def __init__(self, floats: np.ndarray) -> None:
        self._floats = floats
        self._used = 0

    @property
    def left(self) -> int:
        """Floats that nobody has taken."""
        return self._floats.size - self._used

    def take(self, *shape: int) -> np.ndarray:
        start = self._used
        self._used += int(np.prod(shape))
        assert self._used <= self._floats.size, f"scratch of {self._floats.size} floats, {self._used} needed for {shape}"
        return self._floats[start : self._used].reshape(shape)


def scratch_floats(
    spec: Any, tokens: int, *, sequences: int | None = None, longest: int = 0, threads: int = 1, in_turn: bool = False
) -> int:
    """float32 elements that any step needs for a micro-batch of `tokens` rows on `threads` threads.

    `sequences`: rows that `sample_tokens` sees (default: tokens); `longest`: longest prompt that
    `attn_prefill` sees. `in_turn`: with room for the intermediates of one expert's even share of the
    rows only; `post_attn` then takes them in pieces of that size.
    """
    routed = tokens * spec.top_k
    at_once = -(-routed // spec.experts) if in_turn else routed
    ffn = min(at_once, EXPERT_ROWS) * 3 * spec.ffn
    post = tokens * (spec.hidden + spec.experts + spec.top_k) + routed * spec.hidden + (spec.experts + 1) + ffn
    decode = int(np.prod(attention_decode.scratch_shape(spec.heads, threads)))
    prefill = int(np.prod(attention_prefill.scratch_shape(longest, threads)))
    return max(post, decode, prefill, (tokens if sequences is None else sequences) * spec.hidden)


def qkv_width(spec: Any) -> int:
    """Columns of a QKV row: (h + 2 g) D."""
    return int((spec.heads + 2 * spec.kv_heads) * spec.head_dim)


@functools.lru_cache(maxsize=8)
def _rope_table(theta: float, head_dim: int, positions: int) -> np.ndarray:
    return rope.table(theta, head_dim, positions)


def embed_tokens(table: np.ndarray, token_ids: np.ndarray, hidden: np.ndarray) -> None:
    """hidden [T, H] = rows `token_ids` [T] int64 of table [V, H]."""
    assert token_ids.min() >= 0 and token_ids.max() < len(table), (token_ids.min(), token_ids.max(), len(table))
    embed.forward(table, token_ids, hidden)


def pre_attn(
    spec: Any, layer: LayerWeights, hidden: np.ndarray, positions: np.ndarray, qkv: np.ndarray, scratch: np.ndarray
) -> None:
    """qkv [T, (h + 2 g) D] = RoPE(Wqkv norm(hidden [T, H])) at `positions` [T] int64."""
    normed = Scratch(scratch).take(*hidden.shape)
    rms_norm.forward(hidden, layer.attn_norm, spec.norm_eps, normed)
    product(normed, layer.wqkv, qkv)
    size = max(1024, 1 << int(positions.max()).bit_length())
    rope.forward(qkv, positions, _rope_table(spec.rope_theta, spec.head_dim, size), spec.heads + spec.kv_heads)


def attn_prefill(spec: Any, qkv: np.ndarray, seq_offsets: np.ndarray, attn: np.ndarray, scratch: np.ndarray) -> None:
    """Causal attention of whole prompts: prompt s is rows seq_offsets[s] to seq_offsets[s + 1] of qkv.

    seq_offsets [S + 1] int64; attn [T, h D].
    """
    longest = int(np.diff(seq_offsets).max(initial=0))
    space = Scratch(scratch).take(*attention_prefill.scratch_shape(longest, thread_count()))
    attention_prefill.forward(qkv, seq_offsets, spec.heads, spec.kv_heads, space, attn)


def append_kv(
    qkv: np.ndarray, k_cache: np.ndarray, v_cache: np.ndarray, slots: np.ndarray, seq_offsets: np.ndarray, lengths: np.ndarray
) -> None:
    """Copy K and V of prompts from qkv rows to cache rows lengths[s] and on of slot slots[s] (all int64)."""
    attention_decode.append(qkv, k_cache, v_cache, slots, seq_offsets, lengths)


def attn_decode(
    spec: Any, qkv: np.ndarray, k_cache: np.ndarray, v_cache: np.ndarray, slots: np.ndarray, lengths: np.ndarray,
    attn: np.ndarray, scratch: np.ndarray,
) -> None:  # fmt: skip
    """Append the new K and V of each sequence to its cache, then attend over it.

    qkv [S, (h + 2 g) D]; k_cache, v_cache [slots, max_len, g D] of one layer, C-contiguous (a
    sequence's entries are one run of bytes, so copies and attention both stream); slots [S] int64;
    lengths [S] int64, entries before the append; attn [S, h D].
    """
    space = Scratch(scratch).take(*attention_decode.scratch_shape(spec.heads, min(thread_count(), len(qkv))))
    attention_decode.forward(qkv, k_cache, v_cache, slots, lengths, spec.heads, spec.kv_heads, space, attn)


def post_attn(
    spec: Any, layer: LayerWeights, experts: Iterable[np.ndarray], attn: np.ndarray, hidden: np.ndarray, scratch: np.ndarray,
    forced_routing: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Output projection, residual, norm, router, experts, residual; hidden [T, H] is updated in place.

    experts: the layer's experts in order as one or more flat pieces of whole experts (for example
    the static ones, then the streamed half), each expert gate [F, H], up [F, H], down [H, F].
    forced_routing [T, k] int16 replays a trace's choice, the weights still being the router's.
    Returns expert ids [T, k] int16 and weights [T, k] float32, newly allocated.
    """
    tokens = len(hidden)
    space = Scratch(scratch)
    normed, rows = space.take(tokens, spec.hidden), space.take(tokens * spec.top_k, spec.hidden)
    routes = gate(spec, layer, attn, hidden, normed, rows, space, forced_routing)
    run_experts(spec, experts, rows, routes.offsets, space)
    combine.forward(rows, routes.positions, routes.weights, hidden, thread_count())
    return routes.ids, routes.weights


class Routes(NamedTuple):
    """Where tokens go: ids [T, k] int16, weights [T, k]; of the rows sorted by expert, expert e has offsets[e] to
    offsets[e + 1] ([E + 1] int32), and token t's i-th choice is row positions[t, i] (int32)."""

    ids: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    offsets: np.ndarray


def gate(
    spec: Any, layer: LayerWeights, attn: np.ndarray, hidden: np.ndarray, normed: np.ndarray, rows: np.ndarray, space: Scratch,
    forced_routing: np.ndarray | None = None,
) -> Routes:  # fmt: skip
    """A layer from the attention's output [T, h D] to its routes: hidden [T, H] with the residual, normed [T, H], and
    those rows sorted by expert, rows [T k, H]. positions and offsets lie in `space`."""
    logits = space.take(len(hidden), spec.experts)
    _attn_out(spec, layer, attn, hidden, normed)
    product(normed, layer.router, logits)
    ids, weights = route(logits, spec.top_k, forced_routing)
    positions = space.take(len(hidden), spec.top_k).view(np.int32)
    offsets = space.take(spec.experts + 1).view(np.int32)
    dispatch.forward(normed, ids, offsets, positions, rows, thread_count())
    return Routes(ids, weights, positions, offsets)


def _numbered(spec: Any, experts: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Each piece of a layer's experts with the number of its first; all of them are there."""
    first, size = 0, 3 * spec.hidden * spec.ffn
    for piece in experts:
        assert piece.size % size == 0, (piece.size, size)
        yield first, piece
        first += piece.size // size
    assert first == spec.experts, f"weights of {first} experts given, {spec.experts} needed"


def _attn_out(spec: Any, layer: LayerWeights, attn: np.ndarray, hidden: np.ndarray, normed: np.ndarray) -> None:
    """Output projection, residual and norm."""
    product(attn, layer.wo, normed)
    np.add(hidden, normed, out=hidden)
    rms_norm.forward(hidden, layer.ffn_norm, spec.norm_eps, normed)


def fused_post_attn(
    spec: Any, layer: LayerWeights, experts: np.ndarray, attn: np.ndarray, hidden: np.ndarray, scratch: np.ndarray, launch: HostLaunch
) -> tuple[np.ndarray, np.ndarray]:
    """As `post_attn`, from the router on in one launch. experts: all of them in one piece; scratch: tokens x hidden
    elements more than the launch needs."""
    tokens, space = len(hidden), Scratch(scratch)
    normed = space.take(tokens, spec.hidden)
    _attn_out(spec, layer, attn, hidden, normed)
    ids, weights = np.empty((tokens, spec.top_k), np.int16), np.empty((tokens, spec.top_k), np.float32)
    launch.use(space.take(launch.floats))
    launch(Layer(normed, layer.router, experts, hidden, hidden, ids, weights))
    return ids, weights


def route(logits: np.ndarray, top_k: int, forced: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Expert ids [T, k] int16 and weights [T, k] of router logits [T, E], or of the forced ids."""
    weights = np.empty((len(logits), top_k), np.float32)
    if forced is None:
        ids = np.empty((len(logits), top_k), np.int16)
        router.select(logits, ids, weights, thread_count())
        return ids, weights
    assert forced.shape == weights.shape, (forced.shape, weights.shape)
    ids = np.ascontiguousarray(forced, np.int16)
    router.weigh(logits, ids, weights)
    return ids, weights


def run_experts(spec: Any, experts: Iterable[np.ndarray], rows: np.ndarray, offsets: np.ndarray, space: Scratch) -> None:
    """All of a layer's experts, given in order as pieces of whole ones, each over its own `rows` [T k, H], in place."""
    run_pieces(spec, _numbered(spec, experts), rows, offsets, rows, space)


def run_pieces(
    spec: Any, pieces: Iterable[tuple[int, np.ndarray]], rows: np.ndarray, offsets: np.ndarray, out: np.ndarray, space: Scratch
) -> None:
    """Each expert's FFN over its own `rows` [T k, H] to the same rows of `out`, which may be `rows`; as many rows at a
    time as `space` has room for. pieces: (number of the first expert, flat weights of whole experts) of each."""
    chunk = min(len(rows), EXPERT_ROWS, space.left // (3 * spec.ffn))
    assert chunk > 0, f"room for {space.left} floats, {3 * spec.ffn} needed for one row"
    gate_up, act = space.take(chunk, 2 * spec.ffn), space.take(chunk, spec.ffn)
    few = len(rows) <= chunk and int(np.diff(offsets).max()) <= streamed_rows()
    size = 3 * spec.hidden * spec.ffn
    for first, piece in pieces:
        if few and piece.size:
            expert_ffn.grouped(rows, offsets, piece, first, gate_up, act, out, thread_count())
        elif not few:
            for e in range(piece.size // size):
                mine = slice(offsets[first + e], offsets[first + e + 1])
                _run_expert(spec, piece[e * size : (e + 1) * size], rows[mine], out[mine], gate_up, act)


def _run_expert(spec: Any, weights: np.ndarray, rows: np.ndarray, out: np.ndarray, gate_up: np.ndarray, act: np.ndarray) -> None:
    """One expert over any number of rows, `len(act)` at a time; out may be rows."""
    split = 2 * spec.ffn * spec.hidden
    expand, contract = weights[:split].reshape(2 * spec.ffn, spec.hidden), weights[split:].reshape(spec.hidden, spec.ffn)
    for start in range(0, len(rows), len(act)):
        part = rows[start : start + len(act)]
        count = len(part)
        product(part, expand, gate_up[:count])
        expert_ffn.swiglu(gate_up[:count], act[:count])
        product(act[:count], contract, out[start : start + count])


def sample_tokens(
    spec: Any, final_norm: np.ndarray, lm_head: np.ndarray, hidden_last: np.ndarray, logits: np.ndarray, scratch: np.ndarray
) -> np.ndarray:
    """Greedy token ids [S] int64 (newly allocated); logits [S, V] of the rows hidden_last [S, H]."""
    normed = Scratch(scratch).take(*hidden_last.shape)
    rms_norm.forward(hidden_last, final_norm, spec.norm_eps, normed)
    product(normed, lm_head, logits)
    tokens = np.empty(len(logits), np.int64)
    sample.argmax(logits, tokens)
    return tokens
