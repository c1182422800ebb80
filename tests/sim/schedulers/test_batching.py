"""Algorithm 2, on numbers small enough to follow by hand."""

from __future__ import annotations

import pytest

from sim.errors import UserError
from sim.events import Request
from sim.schedulers.batching import Partition, cache_tokens, fill, prompt_rows
from sim.schedulers.policy import Policy


def fill_up(prompts: list[int], partitions: int, microbatch: int, cache: int = 1000, gen: int = 1):  # type: ignore[no-untyped-def]
    requests = [Request(i, p, gen) for i, p in enumerate(prompts)]
    parts = [Partition() for _ in range(partitions)]
    order, aborted = fill(requests, parts, microbatch=microbatch, cache_tokens=cache, rows=prompt_rows(requests, False), gen=gen)
    return [[r.request_id for r in parts[k].added] for k in order], [r.request_id for r in aborted]


def test_longest_first_into_the_partition_with_fewest_tokens() -> None:
    """Sorted 9 7 5 4: 9 -> A, 7 -> B, 5 -> B (7 < 9), which is full; 4 -> A."""
    assert fill_up([5, 9, 4, 7], partitions=2, microbatch=2) == ([[3, 0], [1, 2]], [])


def test_a_tie_goes_to_the_first_partition_and_the_first_request() -> None:
    assert fill_up([3, 3, 3, 3], partitions=2, microbatch=2) == ([[0, 2], [1, 3]], [])


def test_requests_beyond_all_partitions_are_aborted_in_order_of_arrival() -> None:
    assert fill_up([2, 9, 1, 8], partitions=1, microbatch=2) == ([[1, 3]], [0, 2])


def test_partitions_that_do_not_fill_up_are_emitted_last() -> None:
    """6 -> A, 5 -> B, 4 -> C; 3 -> C (4), full; 2 -> B, full."""
    assert fill_up([6, 5, 4, 3, 2], partitions=3, microbatch=2) == ([[2, 3], [1, 4], [0]], [])


@pytest.mark.parametrize(("cache", "aborted"), [(18, []), (17, [1])])
def test_cache_size_counts_prompts_and_room_for_every_generation(cache: int, aborted: list[int]) -> None:
    """6 + 4 prompt entries and 2 * 4 to come."""
    assert fill_up([6, 4], partitions=1, microbatch=3, cache=cache, gen=4)[1] == aborted


def test_what_is_too_long_for_the_emptiest_partition_does_not_stop_shorter_ones() -> None:
    assert fill_up([9, 8, 2], partitions=1, microbatch=3, cache=13, gen=1) == ([[0, 2]], [1])


def test_partitions_in_use_keep_their_sequences() -> None:
    """A refill: A has 10 tokens in 1 sequence, B 3 in 2."""
    requests = [Request(0, 5, 1), Request(1, 4, 1), Request(2, 1, 1)]
    parts = [Partition(10, 1), Partition(3, 2)]
    order, aborted = fill(requests, parts, microbatch=3, cache_tokens=100, rows=prompt_rows(requests, False), gen=1)
    assert order == [1, 0] and not aborted
    assert [[r.request_id for r in p.added] for p in parts] == [[1, 2], [0]]
    assert [(p.tokens, p.count) for p in parts] == [(15, 3), (8, 3)]


def test_a_full_partition_takes_nobody() -> None:
    requests = [Request(0, 5, 1)]
    order, aborted = fill(requests, [Partition(1, 2)], microbatch=2, cache_tokens=100, rows={0: 5}, gen=1)
    assert (order, aborted) == ([], requests)


def test_padded_prompts_are_as_long_as_the_longest() -> None:
    requests = [Request(0, 5, 1), Request(1, 9, 1)]
    assert prompt_rows(requests, padded=True) == {0: 9, 1: 9}
    assert prompt_rows(requests, padded=False) == {0: 5, 1: 9}


def test_cache_size_is_the_average_of_the_first_batch() -> None:
    policy = Policy(batch=8, microbatch=4)
    assert cache_tokens(policy, [10, 21], gen=5) == 4 * (15 + 5)
    assert cache_tokens(policy, [10], gen=5, so_far=80) == 80
    assert cache_tokens(policy, [100], gen=5, so_far=80) == 105, "the longest always fits"
    assert cache_tokens(Policy(batch=1, microbatch=1), [2, 30], gen=5) == 35


def test_a_cache_that_the_longest_sequence_does_not_fit_is_refused() -> None:
    assert cache_tokens(Policy(batch=2, microbatch=2, cache_tokens=35), [30], gen=5) == 35
    with pytest.raises(UserError, match=r"policy\.cache_tokens: is 34; the longest sequence alone needs 35 entries"):
        cache_tokens(Policy(batch=2, microbatch=2, cache_tokens=34), [30], gen=5)
