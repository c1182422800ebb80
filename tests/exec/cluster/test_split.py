"""Plans split by lane: every rank's records, run against each other with messages only, do the whole Plan in a right order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exec.cluster.split import Kind, Share, Split, end_of, rank_of
from sim.errors import UserError
from sim.plan import Plan, PlanBuilder
from sim.schedulers.ep.bulk_sync import BulkSync
from sim.schedulers.ep.chunked import Chunked
from sim.schedulers.ep.kernels import Launches
from sim.schedulers.ep.overlapped import Overlapped
from sim.schedulers.policy import Policy
from sim.tasks import Work
from tests.exec.tiny import spec


class Ranks:
    """Runs shares by hand: each step ends one thing that may end, on a rank drawn at random. order: tasks as they ended."""

    def __init__(self, plan: Plan, ranks: int, draw: random.Random) -> None:
        split = Split(plan)
        self.shares = [split.share(r) for r in range(ranks)]
        self.plan, self.draw = plan, draw
        self.done: list[set[int]] = [set() for _ in range(ranks)]
        self.waits = [[r.waiting for r in s.records] for s in self.shares]
        self.in_flight: list[tuple[int, int]] = []
        self.order: list[int] = []

    def run(self) -> None:
        while moves := [(r, i) for r, s in enumerate(self.shares) for i in range(len(s.records)) if self._may_end(r, i)] + [
            (-1, k) for k in range(len(self.in_flight))
        ]:
            rank, i = self.draw.choice(moves)
            if rank < 0:
                self._deliver(*self.in_flight.pop(i))
            else:
                self._end(rank, i)

    def _may_end(self, rank: int, i: int) -> bool:
        record = self.shares[rank].records[i]
        return i not in self.done[rank] and self.waits[rank][i] == 0 and all(d in self.done[rank] for d in record.deps)

    def _deliver(self, rank: int, number: int) -> None:
        self.waits[rank][self.shares[rank].awaits[number]] -= 1

    def _end(self, rank: int, i: int) -> None:
        share = self.shares[rank]
        self.done[rank].add(i)
        kind, number = share.kinds[i], share.numbers[i]
        lane = share.records[i].lane
        if kind is Kind.RUN and end_of(lane) != rank:
            self.in_flight.append((end_of(lane), number))
        elif kind in (Kind.RUN, Kind.ARRIVED):
            self.order.append(number)
        self.in_flight += share.tells.get(i, ())

    def open(self) -> list[tuple[int, Kind, int]]:
        return [(r, s.kinds[i], s.numbers[i]) for r, s in enumerate(self.shares) for i in range(len(s.records)) if i not in self.done[r]]


def check(plan: Plan, ranks: int, seed: int) -> None:
    run = Ranks(plan, ranks, random.Random(seed))
    run.run()
    assert not run.open()
    assert not run.in_flight
    lanes = [n for n in range(plan.first, plan.first + len(plan)) if plan.lane[n - plan.first] >= 0]
    assert sorted(run.order) == lanes  # each once
    place = {n: k for k, n in enumerate(run.order)}
    for n in lanes:
        for dep in real(plan, n):
            assert place[dep] < place[n], (dep, n)


def real(plan: Plan, number: int) -> set[int]:
    """Tasks of lanes that a task waits for, joins seen through."""
    found = set()
    for dep in plan.dep[plan.dep_ptr[number - plan.first] : plan.dep_ptr[number - plan.first + 1]].tolist():
        found |= {dep} if plan.lane[dep - plan.first] >= 0 else real(plan, dep)
    return found


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, int]:
    ranks = draw(st.integers(2, 4))
    builder = PlanBuilder(draw(st.sampled_from([0, 100])))
    pairs = [(a, b) for a in range(ranks) for b in range(ranks) if a != b]
    lanes = [None, *(f"gpu.{r}" for r in range(ranks)), *(f"put.{a}.{b}" for a, b in pairs)]
    for k in range(draw(st.integers(1, 14))):
        lane = draw(st.sampled_from(lanes))
        deps = draw(st.sets(st.integers(builder.first, builder.first + k - 1), max_size=4)) if k else set()
        builder.add(Work("join" if lane is None else "x"), lane, sorted(deps), writes=[f"b{k}"])
    return builder.build(), ranks


@given(plans(), st.integers(0, 10**6))
def test_any_plan_runs_in_order_by_messages_alone(made: tuple[Plan, int], seed: int) -> None:
    plan, ranks = made
    check(plan, ranks, seed)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("scheduler", [BulkSync, Chunked, Overlapped])
def test_schedules_of_layers(scheduler: type, ranks: int) -> None:
    made = scheduler(spec(), Policy(batch=1, microbatch=1), ranks=ranks, layers=2, launches=Launches())
    check(made.plan([5] * ranks), ranks, 1)


def test_a_barrier_is_one_message_for_each_pair() -> None:
    """Not one for each put and each rank."""
    plan = BulkSync(spec(), Policy(batch=1, microbatch=1), ranks=4, layers=1, launches=Launches()).plan([5] * 4)
    barriers = {plan.first + i for i in range(len(plan)) if plan.lane[i] < 0}
    shares: list[Share] = [Split(plan).share(r) for r in range(4)]
    told = [number for s in shares for messages in s.tells.values() for _, number in messages if number in barriers]
    assert len(told) == len(barriers) * 4 * 3


def test_ranks_of_lanes() -> None:
    assert (rank_of("gpu.3"), end_of("gpu.3")) == (3, 3)
    assert (rank_of("put.1.2"), end_of("put.1.2")) == (1, 2)
    for lane in ("gpu", "put.1", "h2d", "gpu.x"):
        with pytest.raises(UserError, match="names no rank"):
            rank_of(lane)


def test_what_a_cluster_cannot_run_is_refused() -> None:
    pools, timer, earlier = PlanBuilder(), PlanBuilder(), PlanBuilder(5)
    pools.add(Work("x"), "gpu.0", takes=[("slots", 1)])
    timer.add(Work("timer", latency_ps=1))
    earlier.add(Work("x"), "gpu.0", [3])
    for builder, why in ((pools, "units of pools"), (timer, "timers"), (earlier, "an earlier one")):
        with pytest.raises(UserError, match=why):
            Split(builder.build())
