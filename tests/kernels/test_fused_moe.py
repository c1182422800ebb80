"""Tiles and tickets: sizes, the list, the CPU form on one and two threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exec import decoder
from kernels import combine, dispatch, expert_ffn, linear, router
from kernels.fused_moe import tiles as moe
from kernels.fused_moe.host import HostLaunch
from kernels.fused_moe.program import JUMP, program
from kernels.fused_moe.tiles import Shape, Tiles, Tiling
from sim.schedulers.ticket import tiles_of
from tests.kernels.arrays import assert_close
from tests.kernels.moe import Case, case, check_timeline, model_of

sizes = st.integers(1, 9)
tilings = st.builds(
    lambda tokens, rows, gate_up, down, combine, share: (tokens, rows, gate_up, down, combine * down, share),
    sizes, sizes, st.integers(1, 20), st.integers(1, 20), st.integers(1, 3), st.floats(0, 1),
)  # fmt: skip


@st.composite
def layers(draw: st.DrawFn) -> Case:
    """Both forms; every number of experts a token; routings in which some expert has all tokens or none."""
    experts = draw(st.integers(1, 9))
    tokens, top_k = draw(st.integers(1, 24)), draw(st.integers(1, min(8, experts)))
    block, rows, gate_up, down, columns, share = draw(tilings)
    decode = experts > 1 and draw(st.booleans())
    route = max(1, round(share * (experts - 1))) if decode else experts
    tiling = Tiling(tokens if decode else block, route, rows, gate_up, down, columns)
    hidden, ffn = draw(st.sampled_from([(4, 4), (33, 50), (64, 24)]))
    return case(tokens, hidden, ffn, experts, top_k, tiling, spread=draw(st.sampled_from(["random", "one"])), seed=draw(st.integers(0, 99)))


@settings(max_examples=60)
def used_slots(tiles: Tiles, expert_rows: tuple[int, ...]) -> tuple[int, ...]:
    """Rows of each slot where expert e has `expert_rows[e]`, in slot order."""
    full = tiles.tiling.rows
    return tuple(min(full, rows - first) for rows in expert_rows for first in range(0, rows, full))


@given(layers(), st.integers(1, 3))
def test_fused_layer_agrees_and_stamps_a_valid_timeline(made: Case, blocks: int) -> None:
    kernel = HostLaunch(made.tiles, made.program, blocks)
    for _ in range(2):
        made.layer.out[:] = np.nan
        kernel(made.layer)
        assert_close(made.layer.out, made.wanted, 5e-6)
        assert (made.layer.ids == made.ids).all()
        assert_close(made.layer.weights, made.weights, 5e-6)
        check_timeline(made, kernel.state, blocks)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("tokens", [1, 3, 16, 17, 70])
def test_tilings_for_threads(tokens: int, blocks: int) -> None:
    """What the scheduler chooses for a few blocks: columns in whole register tiles, the last of each kind ragged."""
    tiles = tiles_of(model_of(130, 100, 5, 2), tokens, blocks=blocks)
    made = case(tokens, 130, 100, 5, 2, tiles.tiling)
    assert tiles.tiling.gate_up % moe.REGISTER_COLUMNS == tiles.tiling.down % moe.REGISTER_COLUMNS == 0
    kernel = HostLaunch(made.tiles, made.program, blocks)
    kernel(made.layer)
    assert_close(made.layer.out, made.wanted, 5e-6)
    check_timeline(made, kernel.state, blocks)


@pytest.mark.parametrize("threads", [1, 2])
def test_fused_and_unfused_agree(threads: int) -> None:
    """The executor's steps one after another, and the one launch, over the same random inputs."""
    for seed, tokens in enumerate((1, 2, 7, 16, 17, 33, 64, 100)):
        made = case(tokens, 64, 48, 8, 3, seed=seed)
        HostLaunch(made.tiles, made.program, threads)(made.layer)
        steps, spec = made.layer.residual.copy(), model_of(64, 48, 8, 3)
        space = decoder.Scratch(np.full(decoder.scratch_floats(spec, tokens), np.nan, np.float32))
        logits = linear.reference(made.layer.x, made.layer.gate)
        ids, weights = decoder.route(logits, 3)
        offsets, positions, rows = dispatch.reference(made.layer.x, ids, 8)
        decoder.run_experts(spec, [made.layer.experts], rows, offsets.astype(np.int32), space)
        combine.forward(rows, positions, weights, steps)
        assert (ids == made.layer.ids).all()
        assert_close(made.layer.out, steps, 5e-6)
        assert_close(steps, made.wanted, 5e-6)


@given(
    st.integers(1, 12).flatmap(lambda e: st.tuples(st.just(e), st.integers(1, e))), st.integers(1, 40), st.integers(1, 9),
    st.integers(0, 99), st.booleans(),
)  # fmt: skip
def test_slots_bound_every_routing(experts: tuple[int, int], tokens: int, rows: int, seed: int, worst: bool) -> None:
    count, top_k = experts
    tiles = Tiles(Shape(tokens, 8, 8, count, top_k), Tiling(tokens, count, rows, 8, 8, 8))
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(count)[:top_k] for _ in range(1 if worst else tokens)] * (tokens if worst else 1)
    used = used_slots(tiles, tuple(np.bincount(np.concatenate(chosen), minlength=count).tolist()))
    assert sum(used) == tokens * top_k and max(used) <= rows and len(used) <= tiles.slots


def test_the_bound_is_reached() -> None:
    tiles = Tiles(Shape(9, 8, 8, 4, 1), Tiling(9, 4, 3, 8, 8, 8))
    assert tiles.slots == 5 == len(used_slots(tiles, (4, 3, 1, 1)))


@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (7, 3), (64, 64)])
def test_tiles_sum_to_the_separate_ops(tokens: int, rows: int) -> None:
    """FLOPs of all tiles of a layer are those of router, expert FFNs and combine; weights are read once a slot."""
    shape, b = Shape(tokens, 24, 20, 6, 2), 2
    tiles = Tiles(shape, Tiling(5, 6, rows, 7, 9, 18))
    expert_rows = (tokens, tokens, 0, 0, 0, 0)
    used = used_slots(tiles, expert_rows)
    t, parts = tiles.tiling, []
    for block in range(tiles.token_blocks):
        n = moe.part(tokens, t.tokens, block)
        parts.append(moe.cost(moe.ROUTE, n, shape.experts, shape, b))
        parts.append(moe.cost(moe.DISPATCH, n, 0, shape, b))
        parts += [moe.cost(moe.COMBINE, n, moe.part(24, t.combine, c), shape, b) for c in range(tiles.combine_chunks)]
    for n in used:
        parts += [moe.cost(moe.GATE_UP, n, moe.part(20, t.gate_up, c), shape, b) for c in range(tiles.gate_up_chunks)]
        parts += [moe.cost(moe.DOWN, n, moe.part(24, t.down, c), shape, b) for c in range(tiles.down_chunks)]
    separate = router.work(tokens, 24, 6, 2, b) + combine.work(tokens, 2, 24, b)
    for n in expert_rows:
        separate += expert_ffn.work(n, 24, 20, b)
    assert sum(p.flops for p in parts) == separate.flops
    assert sum(p.bytes for p in parts) >= 3 * 24 * 20 * b * len(used)


def test_a_surplus_ticket_jumps_over_its_kind() -> None:
    op = np.array([moe.GATE_UP, moe.GATE_UP, moe.GATE_UP, moe.DOWN, moe.DOWN, moe.DOWN, moe.DOWN, moe.COMBINE])
    block = np.array([0, 1, 1, 0, 1, 0, 1, 0])
    rows = program(op, block, np.zeros(8, np.int64))
    assert rows[:, JUMP].tolist() == [3, 3, 3, 5, 5, 7, 7, 8]


@pytest.mark.parametrize(
    ("shape", "tiling", "message"),
    [((0, 8, 8, 4, 2), (1, 4, 1, 8, 8, 8), "positive"), ((1, 8, 8, 2, 3), (1, 2, 1, 8, 8, 8), "at most experts"),
     ((1, 8, 8, 4, 2), (1, 4, 1, 8, 8, 12), "multiple"), ((2, 8, 8, 4, 2), (1, 2, 1, 8, 8, 8), "one block")],
)  # fmt: skip
def test_sizes_that_do_not_fit_together(shape: tuple[int, ...], tiling: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tiles(Shape(*shape), Tiling(*tiling))


def test_two_threads_share_the_work() -> None:
    """Each of two blocks runs some tiles of a layer that takes a while. Where one has drained the list before
    the other began, the layer is run again."""
    made = case(128, 256, 512, 4, 2, Tiling(16, 4, 16, 32, 32, 64))
    kernel = HostLaunch(made.tiles, made.program, 2)
    for _ in range(50):
        kernel(made.layer)
        if len(set(kernel.state.ran_on.tolist()) & {0, 1}) == 2:
            return
    raise AssertionError("the second thread never drew a ticket in 50 launches")
