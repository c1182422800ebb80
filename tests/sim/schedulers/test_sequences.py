"""Who may join a batch that is served."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sim.events import Request
from sim.schedulers.policy import Policy
from sim.schedulers.sequences import Sequences


def test_a_newcomer_leaves_room_for_those_that_go_on_for_longer() -> None:
    """One micro-batch of 14 entries. Request 0 will fill 4 + 6; beside it request 2 would need 4 + 1."""
    s = Sequences(Policy(batch=2, microbatch=2, cache_tokens=14))
    for r in (Request(0, 4, 6, 6), Request(1, 1, 1, 1), Request(2, 4, 1, 1)):
        s.arrive(r, last=r.request_id == 2)
    s.admit()
    assert [r.requests for r in s.prefill_rows()] == [(0,)], "generation is 6 while both are candidates: 4 + 6 + 1 + 6 is too much"
    s.sampled(s.decode_rows()[0], ended=())
    assert s.admit() == [[]]


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=14), st.integers(1, 3), st.integers(1, 3),
    st.none() | st.integers(15, 30), st.booleans(), st.integers(0, 2**20),
)  # fmt: skip
def test_no_micro_batch_outgrows_its_cache(
    sizes: list[tuple[int, int]], microbatch: int, microbatches: int, cache: int | None, padded: bool, ends: int
) -> None:
    policy = Policy(batch=microbatch * microbatches, microbatch=microbatch, cache_tokens=cache, padded=padded)
    s = Sequences(policy)
    for i, (prompt, gen) in enumerate(sizes):
        s.arrive(Request(i, prompt, gen, gen), last=i == len(sizes) - 1)
    while s.waiting or s.live:
        if s.may_admit:
            s.admit()
        assert all(sum(x.rows + x.limit for x in slot) <= s._cache_tokens for slot in s._slots)
        for rows in s.decode_rows():
            gone = [r for k, r in enumerate(rows.requests) if ends >> (k + 5 * rows.cache) & 1]
            s.sampled(rows, gone)
