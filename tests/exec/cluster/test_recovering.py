"""RecoveringEngine over ranks that are scripted: several losses at once, and replacements that are lost on their way in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from exec.cluster import wire
from exec.cluster.placed import PlacedOutputs, States
from exec.cluster.profile import Unknown
from exec.cluster.recovering import RecoveringEngine
from exec.cluster.standing import RankGone
from exec.cluster.watch import Pace
from sim.drive import Log, drive, replay
from sim.events import Request, Result
from sim.placement.policy import load as load_policy
from sim.placement.rebalance import Rebalancer
from sim.plan import Plan
from sim.schedulers.ep.rebalancing import Rebalancing, Settings
from tests.exec.tiny import spec

MODEL = spec()
REQUESTS, STEPS = 12, 4


AGO_S = 1000.0
"""How long ago the scripted losses were noticed: giving up what ran and forming a group took the time since."""


class Scripted:
    """A StandingCluster of nobody: a Plan has ended as soon as it has begun.

    at: ranks that are lost in the so many-th call of a method. comes: may a replacement come in now?
    """

    ended = 0

    def __init__(self, ranks: int, at: dict[tuple[str, int], int], comes: Callable[[], bool] = lambda: True) -> None:
        self.members: Sequence[int] = list(range(ranks))
        self.pids: dict[int, int] = {}
        self.plans: list[Plan] = []
        self.called: dict[str, int] = {}
        self._at, self._comes = at, comes
        self._ready: list[int] = []
        self._said: list[tuple[int, Any]] = []

    def _count(self, what: str) -> None:
        self.called[what] = self.called.get(what, 0) + 1
        rank = self._at.pop((what, self.called[what]), None)
        if rank is not None:
            self.members, self._said = [r for r in self.members if r != rank], []
            gone = RankGone(rank, "so the script")
            gone.at_s -= AGO_S
            raise gone

    def start(
        self, plan: Plan, stamps: object, origin_ns: int | None, states: States, before: dict[int, Any]
    ) -> tuple[int, dict[int, Any]]:  # fmt: skip
        assert set(plan.rank[plan.rank >= 0].tolist()) <= set(self.members), "a plan for a rank that is not there"
        self.plans.append(plan)
        self._count("start")
        for rank in self.members:
            numbers = [plan.first + i for i in np.flatnonzero(plan.rank == rank).tolist()]
            self._said += [(rank, wire.Event(1, n, Result(experts=(0,) * MODEL.experts))) for n in numbers]
            self._said.append((rank, wire.Finished([], PlacedOutputs([], None, {}, {}, 0.0, {}))))
        return 0, {}

    def hear(self, timeout_s: float) -> list[tuple[int, Any]]:
        said, self._said = self._said, []
        return said

    def halt(self) -> None:
        self._count("halt")

    def regroup(self) -> None:
        self._count("regroup")

    def replace(self, rank: int) -> None:
        self._ready.append(rank)

    def come(self) -> Sequence[int]:
        return list(self._ready) if self._comes() else []

    def admit(self, rank: int) -> None:
        self._ready.remove(rank)
        self.members = sorted([*self.members, rank])

    def offsets(self) -> dict[int, Any]:
        return {}

    def look_for_deadlock(self, since: float) -> None:
        pass


def fresh(ranks: int) -> Rebalancing:
    return Rebalancing(MODEL, ranks, Rebalancer(load_policy("eplb"), 8), Settings(2, 2, 0), np.ones((MODEL.layers, MODEL.experts)))


def served(cluster: Scripted, watch: Any = None) -> tuple[RecoveringEngine, Rebalancing]:
    """Every request is answered once, by Plans for ranks that are there."""
    ranks = len(cluster.members)
    scheduler, log = fresh(ranks), Log()
    states = {q: np.zeros(MODEL.hidden, np.float32) for q in range(REQUESTS)}
    requests = [Request(q, 1, STEPS, STEPS) for q in range(REQUESTS)]
    engine = RecoveringEngine(cluster, Unknown(), requests, scheduler.lanes, states, watch=watch)  # type: ignore[arg-type]
    cluster.engine = engine  # type: ignore[attr-defined]
    drive(scheduler, engine, log)
    assert sorted(scheduler.answered) == list(range(REQUESTS))
    replay(log, fresh(ranks))
    return engine, scheduler


class Watching:
    """Notes what it is asked, and by when the plan had begun."""

    def __init__(self, cluster: Scripted) -> None:
        self._cluster = cluster
        self.seen: list[tuple[str, int]] = []

    def calm(self) -> None:
        self.seen.append(("calm", len(self._cluster.plans)))

    def begin(self) -> None:
        self.seen.append(("begin", len(self._cluster.plans)))

    def end(self, outputs: object) -> Pace:
        self.seen.append(("end", len(self._cluster.plans)))
        return Pace(0.0, 0.0, 1.0)


def test_a_plan_is_watched_from_when_ranks_are_ready_and_not_while_a_replacement_starts() -> None:
    """What taking a plan in costs the ranks is before. The second plan is given up as it begins."""
    cluster = Scripted(2, {("start", 2): 1}, lambda: len(cluster.plans) > 3)
    watch = Watching(cluster)
    engine, scheduler = served(cluster, watch)
    watched = [n for what, n in watch.seen if what == "end"]
    assert watch.seen[:4] == [("calm", 0), ("begin", 1), ("end", 1), ("calm", 1)]
    assert watch.seen[4:] == [(what, n) for k in watched[1:] for what, n in (("calm", k - 1), ("begin", k), ("end", k))]
    assert not {2, 3} & set(watched)
    assert len(engine.samples) == len(watched) < len(scheduler.tally.served)


def test_of_two_ranks_lost_at_once_no_plan_for_the_second_is_begun() -> None:
    """The scheduler hears of the first and plans for the others; hears of the second and plans again."""
    cluster = Scripted(3, {("start", 2): 1, ("halt", 1): 2})
    engine, scheduler = served(cluster)
    assert scheduler.tally.lost_ranks == [1, 2]
    assert sorted(scheduler.tally.joined_ranks) == [1, 2]
    assert len(cluster.plans) == len(scheduler.tally.served) + 1  # one was given up
    assert len(engine.replaced_s) == 2 and min(engine.replaced_s) >= AGO_S


def test_a_plan_that_waits_outlives_the_loss_of_a_replacement_that_comes_in() -> None:
    """The scheduler has never heard of it: it does not plan again."""
    cluster = Scripted(2, {("start", 2): 1, ("regroup", 2): 1}, lambda: bool(cluster.engine._waiting))  # type: ignore[attr-defined]
    engine, scheduler = served(cluster)
    assert cluster.called["regroup"] == 4  # after the loss, with the replacement, without it, with the next one
    assert (scheduler.tally.lost_ranks, scheduler.tally.joined_ranks) == ([1], [1])
    assert len(engine.replaced_s) == 1
