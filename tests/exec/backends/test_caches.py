"""KV caches keep each sequence's rows, whoever comes and goes."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exec.arena import Arena
from exec.backends.caches import KVCache
from sim.errors import UserError

LAYERS, WIDTH = 3, 4


def _cache(entries: int) -> KVCache:
    return KVCache(Arena("cpu", 1 << 20), LAYERS, WIDTH, entries * LAYERS)


def _rows(cache: KVCache, request: int, entries: int) -> list[np.ndarray]:
    starts = [int(cache.starts([request], layer)[0]) for layer in range(LAYERS)]
    return [half[s : s + entries] for half in (cache.k, cache.v) for s in starts]


def _fill(cache: KVCache, request: int, entries: int) -> None:
    for number, rows in enumerate(_rows(cache, request, entries)):
        rows[:] = request * 10 + number


def _holds(cache: KVCache, request: int, entries: int) -> bool:
    return all((rows == request * 10 + number).all() for number, rows in enumerate(_rows(cache, request, entries)))


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=30))
def test_sequences_come_and_go_while_there_is_room(moves):
    """Against a plain model: whoever fits in what is free has a place, and nobody's rows change."""
    cache, live = _cache(20), {}
    for request, (entries, someone_ends) in enumerate(moves):
        if someone_ends and live:
            gone = sorted(live)[len(live) // 2]
            cache.ended([gone])
            del live[gone]
        if sum(live.values()) + entries <= 20:
            cache.open(request, entries)
            _fill(cache, request, entries)
            live[request] = entries
        else:
            with pytest.raises(UserError, match=rf"no room for the KV cache of request {request} \({entries} entries in 3 layers"):
                cache.open(request, entries)
        assert all(_holds(cache, r, n) for r, n in live.items())


def test_a_sequence_keeps_its_place():
    cache = _cache(10)
    cache.open(0, 5)
    before = cache.starts([0], 1)
    cache.open(0, 5)
    assert cache.starts([0], 1) == before


def test_rows_are_not_moved_while_somebody_uses_them():
    cache = _cache(10)
    for request in range(3):
        cache.open(request, 3)
        _fill(cache, request, 3)
    cache.ended([1])
    newcomer = threading.Thread(target=cache.open, args=(3, 4))
    with cache.using():
        newcomer.start()
        time.sleep(0.05)
        assert _holds(cache, 2, 3) and newcomer.is_alive()
    newcomer.join(10)
    assert not newcomer.is_alive() and _holds(cache, 0, 3) and _holds(cache, 2, 3)
