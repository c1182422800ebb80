"""All-reduce, paged gather and compaction on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels import all_reduce, compaction, page_gather
from tests.kernels.arrays import assert_close, floats, poisoned
from tests.kernels.moving import fragmented

RNG = np.random.default_rng(5)


@pytest.mark.parametrize(("ranks", "elements"), [(1, 7), (2, 1), (4, 33), (3, 2)])
def test_all_reduce(ranks: int, elements: int) -> None:
    buffers = floats(RNG, ranks, elements)
    wanted = np.tile(buffers.astype(float).sum(0), (ranks, 1))
    ring, _ = all_reduce.reference(buffers.astype(float))
    np.testing.assert_allclose(ring, wanted, atol=1e-12)
    all_reduce.forward(buffers)
    assert_close(buffers, wanted)


def test_ring_work_is_a_rank_s_share() -> None:
    assert all_reduce.ring_work(4, 100, 2) == (75, 300) and all_reduce.ring_work(1, 100, 2) == (0, 0)


def test_page_gather() -> None:
    arena, pages = RNG.integers(-9, 9, (6, 35)).astype(np.int32), np.array([5, 0, 5, 2], np.int32)
    out = poisoned(4, 35, dtype=np.int32)
    page_gather.forward(arena, pages, out)
    assert (out == page_gather.reference(arena, pages)).all()


@given(st.integers(1, 8), st.integers(0, 40), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_compaction_keeps_every_segment(segments: int, longest: int, chunk: int, seed: int) -> None:
    arena, starts, lengths = fragmented(np.random.default_rng(seed), segments, longest)
    wanted = compaction.reference(arena, starts, lengths)
    old = [arena[s : s + n].copy() for s, n in zip(starts, lengths, strict=True)]
    moves, new = compaction.plan(starts, lengths, chunk)
    assert (moves[:, 2] <= chunk).all() and (moves[:, 1] < moves[:, 0]).all()
    compaction.forward(arena, moves)
    assert (arena[: len(wanted)] == wanted).all()
    assert all((arena[s : s + len(o)] == o).all() for s, o in zip(new, old, strict=True))


@given(st.integers(1, 8), st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_a_move_waits_for_exactly_the_moves_whose_source_it_covers(segments: int, longest: int, chunk: int, seed: int) -> None:
    _, starts, lengths = fragmented(np.random.default_rng(seed), segments, longest)
    moves, _ = compaction.plan(starts, lengths, chunk)
    for m, (_, to, words, first, last) in enumerate(moves.tolist()):
        covered = [o for o in range(m) if moves[o, 0] < to + words and to < moves[o, 0] + moves[o, 2]]
        assert covered == list(range(first, last))


def test_compaction_refuses_overlapping_segments() -> None:
    with pytest.raises(AssertionError, match="overlap"):
        compaction.plan(np.array([0, 3]), np.array([4, 2]))
