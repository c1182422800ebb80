"""Work formulas against the arithmetic that the references really do and the arrays that they touch."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import kernels
from kernels import (
    all_reduce,
    attention,
    combine,
    compaction,
    dispatch,
    embed,
    expert_ffn,
    linear,
    page_gather,
    rms_norm,
    rope,
    router,
    sample,
)
from kernels.cost import Cost
from kernels.fused_moe import tiles
from kernels.fused_moe.reference import reference as fused_reference
from tests.kernels.counting import count
from tests.kernels.moving import fragmented
from tests.kernels.routing import RULES

SIZE = st.integers(1, 9)
RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def moved(*arrays: np.ndarray) -> int:
    """Bytes of arrays that hold 8-byte floats, or 2-byte, 4-byte and 8-byte integers as stored."""
    return sum(a.nbytes for a in arrays)


def routes(tokens: int, experts: int, top_k: int) -> np.ndarray:
    return np.stack([RNG.permutation(experts)[:top_k] for _ in range(tokens)]).astype(np.int16)


def test_costs_add() -> None:
    assert Cost(1, 2) + Cost(10, 20) == Cost(11, 22)


@given(SIZE, SIZE)
def test_rms_norm(tokens: int, hidden: int) -> None:
    x, weight = floats(tokens, hidden), floats(hidden)
    assert rms_norm.work(tokens, hidden, 8) == Cost(count(rms_norm.reference, x, weight, 1e-5), moved(x, weight, x))


@given(SIZE, SIZE, SIZE)
def test_linear(rows: int, k: int, n: int) -> None:
    x, weight = floats(rows, k), floats(n, k)
    out = linear.reference(x, weight)
    assert linear.work(rows, k, n, 8) == Cost(count(linear.reference, x, weight), moved(x, weight, out))


def test_linear_without_rows_touches_nothing() -> None:
    assert linear.work(0, 3, 4, 8) == expert_ffn.work(0, 3, 4, 8) == Cost(0, 0)


@given(SIZE, SIZE, st.integers(1, 4))
def test_rope(tokens: int, heads: int, half: int) -> None:
    d = 2 * half
    x, table = floats(tokens, heads * d), rope.table(1e4, d, tokens).astype(np.float64)
    flops = count(rope.reference, x, np.arange(tokens), table, heads)
    assert rope.work(tokens, heads, d, 8) == Cost(flops, moved(x, x, table))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(1, 3), st.integers(1, 2), SIZE)
def test_decode_attention(lengths: list[int], kv_heads: int, group: int, d: int) -> None:
    heads, flops, moves = kv_heads * group, 0, 0
    for n in lengths:
        qkv, k, v = floats(1, (heads + 2 * kv_heads) * d), floats(n, kv_heads * d), floats(n, kv_heads * d)
        out = qkv[:, : heads * d]
        flops += count(attention.reference, out, k, v, heads, kv_heads, np.array([n - 1]))
        moves += moved(qkv, k[-1:], v[-1:], k, v, out)
    assert attention.decode_work(len(lengths), sum(lengths), heads, kv_heads, d, 8) == Cost(flops, moves)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(1, 3), st.integers(1, 2), SIZE)
def test_prefill_attention(prompts: list[int], kv_heads: int, group: int, d: int) -> None:
    heads, flops, moves = kv_heads * group, 0, 0
    for n in prompts:
        q, k, v = floats(n, heads * d), floats(n, kv_heads * d), floats(n, kv_heads * d)
        flops += count(attention.reference, q, k, v, heads, kv_heads, np.arange(n))
        moves += moved(q, k, v, q)
    pairs = sum(n * (n + 1) // 2 for n in prompts)
    assert attention.prefill_work(sum(prompts), pairs, heads, kv_heads, d, 8) == Cost(flops, moves)


@given(SIZE, SIZE, st.integers(1, 8), st.data())
def test_router(tokens: int, hidden: int, top_k: int, data: st.DataObject) -> None:
    experts = data.draw(st.integers(top_k, 10))
    x, gate = floats(tokens, hidden), floats(experts, hidden)
    logits = linear.reference(x, gate)
    ids, weights = router.reference(logits, top_k)
    flops = count(linear.reference, x, gate) + count(router.reference, logits, top_k)
    moves = moved(x, gate, logits, logits, ids, weights.astype(np.float32))
    assert router.work(tokens, hidden, experts, top_k, 8) == Cost(flops, moves)


@given(st.sampled_from(sorted(RULES)), SIZE, st.integers(2, 4), st.integers(1, 4))
def test_router_rules(name: str, tokens: int, group_size: int, top_k: int) -> None:
    rule, experts = RULES[name], RULES[name].groups * group_size
    top_k = min(top_k, rule.kept_groups * group_size)
    logits, bias = floats(tokens, experts), floats(experts)
    ids, weights = router.reference(logits, top_k, rule, bias)
    flops = count(router.reference, logits, top_k, rule, bias)
    moves = moved(logits, ids, weights.astype(np.float32)) + (moved(bias.astype(np.float32)) if rule.sigmoid else 0)
    assert router.select_work(tokens, experts, top_k, 8, rule) == Cost(flops, moves)


@given(SIZE, SIZE, st.integers(1, 8))
def test_dispatch(tokens: int, hidden: int, top_k: int) -> None:
    x, ids = floats(tokens, hidden), routes(tokens, 9, top_k)
    _, positions, rows = dispatch.reference(x, ids, 9)
    assert dispatch.work(tokens, top_k, hidden, 8) == Cost(0, moved(x, rows, ids, ids, positions))


@given(SIZE, SIZE, SIZE)
def test_expert_ffn(rows: int, hidden: int, ffn: int) -> None:
    x, gate, up, down = floats(rows, hidden), floats(ffn, hidden), floats(ffn, hidden), floats(hidden, ffn)
    flops = count(expert_ffn.reference, x, gate, up, down)
    gate_up, act = floats(rows, 2 * ffn), floats(rows, ffn)
    moves = moved(x, gate, up, gate_up) + moved(gate_up, act) + moved(act, down, x)
    assert expert_ffn.work(rows, hidden, ffn, 8) == Cost(flops, moves)


@given(SIZE, SIZE, st.integers(1, 8))
def test_combine(tokens: int, hidden: int, top_k: int) -> None:
    x, ids = floats(tokens, hidden), routes(tokens, 9, top_k)
    _, positions, rows = dispatch.reference(x, ids, 9)
    weights = floats(tokens, top_k)
    flops = count(combine.reference, rows, positions, weights, x)
    assert combine.work(tokens, top_k, hidden, 8) == Cost(flops, moved(rows, x, x, positions, weights.astype(np.float32)))


def layer(tokens: int, hidden: int, ffn: int, experts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return floats(tokens, hidden), floats(experts, hidden), floats(experts * 3 * ffn * hidden)


@given(SIZE, SIZE, SIZE, st.integers(1, 8), st.data())
def test_fused_moe(tokens: int, hidden: int, ffn: int, top_k: int, data: st.DataObject) -> None:
    """A whole layer moves what its ops move one after another; experts that nobody chose are not touched."""
    experts = data.draw(st.integers(top_k, 10))
    x, gate, weights = layer(tokens, hidden, ffn, experts)
    flops = count(fused_reference, x, gate, weights, x, top_k, ffn)
    logits = linear.reference(x, gate)
    ids, shares = router.reference(logits, top_k)
    offsets, positions, rows = dispatch.reference(x, ids, experts)
    moves = moved(x, gate, logits, logits, ids, shares.astype(np.float32)) + moved(x, rows, ids, ids, positions)
    moves += moved(rows, x, x, positions, shares.astype(np.float32))
    for n in np.diff(offsets).tolist():
        mine, gate_up, act = floats(n, hidden), floats(n, 2 * ffn), floats(n, ffn)
        moves += moved(floats(3 * ffn, hidden), mine, gate_up, gate_up, act, act, mine) if n else 0
    shape = tiles.Shape(tokens, hidden, ffn, experts, top_k)
    assert tiles.work(shape, np.diff(offsets).tolist(), 8) == Cost(flops, moves)


@given(SIZE, SIZE, SIZE, SIZE, st.integers(1, 8), st.data())
def test_tiles(rows: int, columns: int, hidden: int, ffn: int, top_k: int, data: st.DataObject) -> None:
    """Each tile against its part of the reference: its operands once, its result once."""
    experts = data.draw(st.integers(top_k, 10))
    chosen = data.draw(st.integers(1, experts))
    shape = tiles.Shape(rows, hidden, ffn, experts, top_k)
    x, gate, up, down = floats(rows, hidden), floats(columns, hidden), floats(columns, hidden), floats(columns, ffn)
    act, router_columns = floats(rows, ffn), floats(chosen, hidden)
    logits, ids, share = linear.reference(x, router_columns), routes(rows, 10, top_k), floats(rows, top_k).astype(np.float32)
    route = Cost(count(linear.reference, x, router_columns), moved(x, router_columns, logits))
    if chosen == experts:
        route += Cost(count(router.reference, logits, top_k), moved(logits, ids, share))
    assert tiles.cost(tiles.ROUTE, rows, chosen, shape, 8) == route
    _, positions, _ = dispatch.reference(x, ids, 10)
    token_of = np.zeros(rows * top_k, positions.dtype)
    assert tiles.cost(tiles.DISPATCH, rows, 1, shape, 8) == Cost(0, moved(ids, positions, token_of))

    def activated(x: np.ndarray, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        g = x @ gate.T
        return g / (1 + np.exp(-g)) * (x @ up.T)

    gate_up = Cost(count(activated, x, gate, up), moved(x, gate, up, floats(rows, columns)))
    assert tiles.cost(tiles.GATE_UP, rows, columns, shape, 8) == gate_up
    assert tiles.cost(tiles.DOWN, rows, columns, shape, 8) == Cost(
        count(linear.reference, act, down), moved(act, down, floats(rows, columns))
    )
    part, residual = floats(rows * top_k, columns), floats(rows, columns)
    combined = count(combine.reference, part, positions, share.astype(float), residual)
    assert tiles.cost(tiles.COMBINE, rows, columns, shape, 8) == Cost(combined, moved(part, residual, residual, positions, share))


@given(SIZE, SIZE)
def test_embed(tokens: int, hidden: int) -> None:
    ids = np.zeros(tokens, np.int64)
    rows = embed.reference(floats(4, hidden), ids)
    assert embed.work(tokens, hidden, 8) == Cost(0, moved(rows, rows, ids))


@given(SIZE, SIZE, SIZE)
def test_sample(sequences: int, hidden: int, vocab: int) -> None:
    x, norm, head = floats(sequences, hidden), floats(hidden), floats(vocab, hidden)
    logits = linear.reference(x, head)
    flops = count(rms_norm.reference, x, norm, 1e-5) + count(linear.reference, x, head) + count(sample.reference, logits)
    moves = moved(x, norm, x) + moved(x, head, logits) + moved(logits, sample.reference(logits))
    assert sample.work(sequences, hidden, vocab, 8) == Cost(flops, moves)


@given(SIZE, SIZE)
def test_draw(sequences: int, vocab: int) -> None:
    logits, uniform = floats(sequences, vocab), RNG.random(sequences)
    tokens = sample.draw_reference(logits, 0.8, 0.9, uniform)
    flops = count(sample.draw_reference, logits, 0.8, 0.9, uniform)
    p = logits.astype(np.float32)
    moves = moved(logits, *[p] * (1 + sample.ROUNDS + 1), uniform.astype(np.float32), tokens)
    assert sample.draw_work(sequences, vocab, 8) == Cost(flops, moves)


@given(st.integers(1, 6), st.integers(1, 30))
def test_all_reduce(ranks: int, elements: int) -> None:
    buffers = floats(ranks, elements)
    flops = count(all_reduce.reference, buffers)
    _, sent = all_reduce.reference(buffers)
    assert all_reduce.work(ranks, elements, 8) == Cost(flops, 8 * sent)


@given(SIZE, SIZE)
def test_page_gather(pages: int, words: int) -> None:
    numbers = np.zeros(pages, np.int32)
    out = page_gather.reference(np.zeros((3, words), np.int32), numbers)
    assert page_gather.work(pages, 4 * words) == Cost(0, moved(out, out, numbers))


@given(SIZE, SIZE, SIZE)
def test_compaction(segments: int, longest: int, chunk: int) -> None:
    arena, starts, lengths = fragmented(RNG, segments, longest)
    moves, new = compaction.plan(starts, lengths, chunk)
    carried = [arena[s : s + n] for s, n, to in zip(starts, lengths, new, strict=True) if s != to]
    assert compaction.work(sum(map(len, carried)), len(moves)) == Cost(0, 2 * moved(*carried) + moved(moves))


def test_work_formulas_import_no_compiler() -> None:
    names = {m.name for m in pkgutil.iter_modules(kernels.__path__)} - {"atomics"}  # a part of kernels, made of Numba's own
    assert {"attention", "compaction", "cuda", "expert_ffn", "fused_moe", "router"} <= names
    code = f"import sys; from kernels import {', '.join(sorted(names))}; print([m for m in ('numba', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
