"""Arenas: hard budgets, alignment, reuse, measured peaks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exec.arena import ALIGN, Arena
from sim.errors import UserError


def test_pieces_are_aligned_apart_and_counted():
    arena = Arena("gpu", 4096)
    a, b = arena.take("a", (3, 5)), arena.take("b", 7)
    a[:] = 1
    b[:] = 2
    assert (a == 1).all() and a.shape == (3, 5) and a.dtype == np.float32
    assert all(x.ctypes.data % ALIGN == 0 for x in (a, b))
    assert arena.used_bytes == arena.peak_bytes == 64 + 64


def test_over_budget_names_what_is_missing_and_the_knob():
    arena = Arena("gpu", 1024)
    arena.take("weights", 200)
    says = r"memory 'gpu': 256 bytes are missing for kv \(448 bytes; 832 of 1,024 are in use\); lower --microbatch"
    with pytest.raises(UserError, match=says):
        arena.take("kv", 110)
    assert arena.used_bytes == 832
    arena.take("small", 48)


def test_adopted_memory_counts():
    arena = Arena("cpu", 1024)
    arena.adopt("weights", 1000)
    with pytest.raises(UserError, match="memory 'cpu': 40 bytes are missing for kv"):
        arena.take("kv", 4)
    assert arena.peak_bytes == 1000


def test_fragments_are_not_one_piece():
    arena = Arena("gpu", 256)
    for name in "abcd":
        arena.take(name, 16)
    arena.give("a")
    arena.give("c")
    with pytest.raises(UserError, match="64 bytes are missing in one piece for e"):
        arena.take("e", 32)
    assert arena.used_bytes == 128


def test_poison_shows_reads_before_writes_and_after_the_end():
    arena = Arena("gpu", 256, poison=True)
    a = arena.take("a", 4)
    assert np.isnan(a).all()
    a[:] = 1
    arena.give("a")
    assert np.isnan(a).all()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), max_size=60))
def test_taking_and_giving_never_overlaps_and_ends_empty(moves):
    """Against a plain model: every live piece keeps its own value, and all memory comes back."""
    arena = Arena("gpu", 2048)
    live: dict[str, np.ndarray] = {}
    for which, count in moves:
        name = str(which)
        if name in live:
            assert (live.pop(name) == which).all()
            arena.give(name)
        else:
            try:
                piece = arena.take(name, count)
            except UserError:
                continue
            piece.fill(which)
            live[name] = piece
        assert arena.used_bytes == sum(-(-p.nbytes // ALIGN) * ALIGN for p in live.values()) <= arena.peak_bytes
    for name in list(live):
        arena.give(name)
    assert arena.take("all", 512).nbytes == 2048
