"""What one order's backend leaves to the next, and what it does not hold on to."""

from __future__ import annotations

import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest

from exec.cluster import backend, shards
from exec.cluster.backend import RankBackend
from exec.cluster.rows import RowMemory
from exec.cluster.worker import Worker
from exec.weights import Weights
from sim.plan import PlanBuilder
from tests.exec.cluster.setups import layers, serving


@pytest.fixture
def worker() -> Worker:
    """Rank 0 of 2 that has prepared and run nothing, and needs nobody."""
    worker = Worker.__new__(Worker)
    worker.rank, worker.ranks, worker._backend, worker._device = 0, 2, None, None
    return worker


ORDER = layers([4, 4], "bulk-sync").order


@pytest.mark.parametrize("other", [replace(ORDER, seed=1), replace(ORDER, tokens=(9, 9))])
def test_memory_of_the_order_before_is_given_back_before_more_is_taken(
    other: backend.Order, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights, and the same weights with more rows."""
    worker._backend = worker._prepared(ORDER)
    before, rows, weights = weakref.ref(worker._backend), weakref.ref(worker._backend.rows), worker._backend.weights
    took: list[str] = []

    def shard(order: backend.Order, rank: int) -> Weights:
        assert before() is None
        took.append("weights")
        return real(order, rank)

    def memory(*sizes: object) -> RowMemory:
        assert rows() is None
        took.append("rows")
        return RowMemory(*sizes)  # type: ignore[arg-type]

    real = shards.shard
    monkeypatch.setattr(shards, "shard", shard)
    monkeypatch.setattr(backend, "RowMemory", memory)
    made = worker._prepared(other)
    same = other.seed == ORDER.seed
    assert took == (["rows"] if same else ["weights", "rows"])
    assert (made.weights is weights) == same


def test_a_run_gives_its_cache_back_before_the_next_takes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = RankBackend(serving(2, 2, "bulk-sync").order, 0)
    ranks.begin(PlanBuilder().build(), None)
    before = weakref.ref(ranks.dense)
    make = ranks._dense
    monkeypatch.setattr(ranks, "_dense", lambda: make() if before() is None else pytest.fail("two caches at a time"))
    ranks.begin(PlanBuilder().build(), None)


def test_only_what_has_run_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """An order that was prepared and never run has compiled and loaded nothing for the next."""
    ranks = RankBackend(ORDER, 0)
    assert ranks.kept_for(ORDER) == (ranks.weights, False)
    monkeypatch.setattr(ranks.moe, "warm_up", lambda: None)
    monkeypatch.setattr(backend, "own_cores", lambda *_: None)
    monkeypatch.setattr(backend, "set_threads", lambda _: None)
    ranks.enter_lane(SimpleNamespace(name="gpu.0"))  # type: ignore[arg-type]
    assert ranks.kept_for(ORDER) == (ranks.weights, True)
    assert ranks.kept_for(replace(ORDER, threads=2)) == (ranks.weights, False)
