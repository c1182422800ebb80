"""Serving with placed experts: each row once, by who holds its expert; nothing lost or answered twice, whoever is lost, whenever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.drive import Log, drive
from sim.engines.compiled import run_compiled
from sim.engines.intake import Change
from sim.engines.run import DONE, Run
from sim.engines.simpy_engine import SimPyEngine
from sim.ep import names
from sim.ep.chosen import Chosen, drawn
from sim.ep.copies import buffers_of, copies_of
from sim.ep.layer import MoELayer
from sim.ep.placed_costs import PlacedCosts, with_losses
from sim.events import Arrived, Request
from sim.fabric import expand
from sim.machines import load
from sim.machines.schema import Machine
from sim.models import load as load_model
from sim.placement.policy import load as load_policy
from sim.placement.rebalance import Rebalancer
from sim.plan import Plan
from sim.schedulers.ep.rebalancing import Rebalancing, Settings

MODEL = replace(load_model("tiny-mixtral"), name="small", layers=2, hidden=64, ffn=128, experts=8, dtype="bf16")
BOX = load("8xh100")
HALVES = np.tile((np.arange(MODEL.experts) + MODEL.experts // 2) % MODEL.experts, (MODEL.layers, 1))
"""What each expert becomes when the load shifts."""


@cache
def machine(ranks: int) -> Machine:
    assert BOX.topology is not None
    box = BOX.model_copy(update={"topology": BOX.topology.model_copy(update={"gpus": ranks})})
    return with_losses(expand(box), ranks)


def costs_of(ranks: int, chosen: Chosen) -> PlacedCosts:
    return PlacedCosts(machine(ranks), MoELayer.of(MODEL), ranks, chosen)


@dataclass(frozen=True)
class Case:
    ranks: int
    slots: int
    policy: str
    lengths: tuple[int, ...]
    chosen: Chosen
    settings: Settings

    def fresh(self) -> Rebalancing:
        rebalancer = Rebalancer(load_policy(self.policy), self.slots, hysteresis=0.02)
        return Rebalancing(MODEL, self.ranks, rebalancer, self.settings, self.chosen.counts(slice(0, 4)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    ranks = draw(st.sampled_from([2, 3, 4]))
    lengths = tuple(draw(st.lists(st.integers(1, 9), min_size=4, max_size=16)))
    chosen = drawn(MODEL, len(lengths), 9, draw(st.sampled_from([0.0, 2.0])), draw(st.integers(0, 99)))
    chosen = chosen.shifted(draw(st.integers(0, len(lengths))), HALVES)
    slots = draw(st.integers(-(-MODEL.experts // ranks), 6))
    sizes = Settings(draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(0, 2)), draw(st.sampled_from([7, 128])))
    return Case(ranks, slots, draw(st.sampled_from(["eplb", "replicate-hot", "greedy", "round-robin"])), lengths, chosen, sizes)


@dataclass(frozen=True)
class Done:
    scheduler: Rebalancing
    run: Run
    log: Log
    costs: PlacedCosts

    @property
    def plans(self) -> list[Plan]:
        return [s for s in self.run.sources if isinstance(s, Plan)]

    def times(self, plan: Plan) -> tuple[Any, Any, Any]:
        at = slice(int(np.searchsorted(self.run.number, plan.first)), int(np.searchsorted(self.run.number, plan.first + len(plan))))
        return self.run.start_ps[at], self.run.end_ps[at], self.run.status[at]


def simulate(case: Case, changes: Sequence[Change] = ()) -> Done:
    costs = costs_of(case.ranks, case.chosen)
    requests = [Request(i, 1, n, n) for i, n in enumerate(case.lengths)]
    scheduler, log = case.fresh(), Log()
    engine = SimPyEngine(
        costs.lanes, scheduler.pools, costs, profile=costs, arrivals=requests, changes=changes, outcomes=costs.outcome
    )  # fmt: skip
    drive(scheduler, engine, log)
    return Done(scheduler, engine.run, log, costs)


def ops(plan: Plan) -> list[str]:
    return [plan.works[w].op for w in plan.work.tolist()]


def check_served_once(case: Case, done: Done) -> None:
    """Committed Plans together take each request through each step once, and each of its rows through each of its experts once."""
    committed = {s.first for s in done.scheduler.tally.served}
    stepped: Counter[tuple[int, int, int]] = Counter()
    for plan in done.plans:
        if plan.first not in committed:
            continue
        assert (done.times(plan)[2] == DONE).all()
        wanted, given_ = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
        for task in done.costs.routed(plan).tasks():
            if task.op == "gate":
                stepped.update((q, s, task.layer) for q, s in zip(task.requests, task.work.expert_tokens, strict=True))
                wanted[task.step, task.layer] += MODEL.top_k * len(task.requests)
            elif task.op == "experts":
                given_[task.step, task.layer] += task.work.tokens
        assert wanted == given_
    assert stepped == Counter((q, s, la) for q, n in enumerate(case.lengths) for s in range(n) for la in range(MODEL.layers))


def check_weights(case: Case, done: Done) -> None:
    """Nobody computes with or sends a copy that is not there, and nobody holds more than the slots and one layer that comes in."""
    held = {(r, la, e) for la, e, r in np.argwhere(case.fresh().held).tolist()}
    committed = {s.first for s in done.scheduler.tally.served}
    for plan in done.plans:
        read, written = buffers_of(plan)
        start, end, _ = done.times(plan)
        arrives: dict[tuple[int, int, int], int] = {}
        for i, task in enumerate(plan.tasks()):
            copies = [tuple(map(int, b.split(".")[1:])) for b in (*task.reads, *task.writes) if b.startswith("weights.")]
            if task.op == "load" or task.work.variant == "weights":
                arrives[copies[-1]] = max(end[i], arrives.get(copies[-1], 0))
            if task.op == "experts":
                assert all(c in held or arrives[c] <= start[i] for c in copies)
            if task.work.variant == "weights":
                assert copies[0] in held
        per_layer = Counter((r, la) for r, la, _ in read | written)
        coming = {la for _, la, _ in written - read}
        assert len(coming) <= 1
        assert all((n <= 2 * case.slots if la in coming else n <= case.slots) for (_, la), n in per_layer.items())
        held = read | written if plan.first in committed else held & read


@given(cases())
@settings(max_examples=15, deadline=None)
def test_every_row_is_served_once_by_who_holds_its_expert(case: Case) -> None:
    done = simulate(case)
    assert sorted(done.scheduler.answered) == list(range(len(case.lengths)))
    check_served_once(case, done)
    check_weights(case, done)


@given(cases(), st.data())
@settings(max_examples=40, deadline=None)
def test_a_loss_at_any_moment_loses_no_request_and_answers_none_twice(case: Case, data: st.DataObject) -> None:
    """One rank after another goes, and comes back; two may be gone at a time."""
    whole = simulate(case).run.makespan_ps
    changes: list[Change] = []
    for rank in data.draw(st.lists(st.integers(0, case.ranks - 1), min_size=1, max_size=case.ranks, unique=True)):
        lost = data.draw(st.integers(0, whole))
        changes += [(lost, names.alive(rank), names.GONE), (lost + data.draw(st.integers(1, whole)), names.alive(rank), 1.0)]
    done = simulate(case, sorted(changes))
    assert sorted(done.scheduler.answered) == list(range(len(case.lengths)))
    check_served_once(case, done)
    check_weights(case, done)
    tally, committed = done.scheduler.tally, {s.first for s in done.scheduler.tally.served}
    assert tally.loads == sum(ops(plan).count("load") for plan in done.plans if plan.first in committed)
    again = simulate(case, sorted(changes))
    assert again.log.digest() == done.log.digest()
    assert again.run.same_times(done.run)


@given(cases())
@settings(max_examples=10, deadline=None)
def test_both_engines_give_the_same_times(case: Case) -> None:
    done = simulate(case)
    for plan in done.plans:
        start, end, _ = done.times(plan)
        run = run_compiled(done.costs.bind(plan), done.costs.lanes, {}, begin_ps=int(start.min()))
        assert np.array_equal(run.start_ps, start)
        assert np.array_equal(run.end_ps, end)


def test_a_shift_of_the_load_moves_experts_and_an_even_load_does_not() -> None:
    """16 requests before the shift and 32 after it, on 2 ranks; hysteresis keeps what is good enough."""
    lengths, sizes = (8,) * 48, Settings(8, 4, 1)
    table = np.zeros((48, 8, MODEL.layers, MODEL.top_k), np.int16)
    table[..., 1] = np.arange(8)[None, :, None] % 3 + 1  # 0 always, and one of 1 to 3: the hot half
    chosen = Chosen(table, MODEL.experts)
    still = simulate(Case(2, 4, "eplb", lengths, chosen, sizes)).scheduler.tally
    assert (still.moves, still.rebalances) == (0, 0)
    shifted = simulate(Case(2, 4, "eplb", lengths, chosen.shifted(16, HALVES), sizes)).scheduler
    assert shifted.tally.rebalances == 1
    assert shifted.tally.moves > 0
    assert [s.layer for s in shifted.tally.served if s.layer >= 0] == [0, 1]


def test_costs_that_price_otherwise_have_another_digest() -> None:
    chosen = drawn(MODEL, 4, 2, 0.0, 0)
    costs = [PlacedCosts(machine(2), MoELayer.of(MODEL), 2, chosen, header_rows=n) for n in (0, 1, 0)]
    assert costs[0].digest == costs[2].digest != costs[1].digest


def test_copies_share_an_experts_rows_evenly() -> None:
    table = np.zeros((30, 1, 1, 1), np.int16)
    plan_copies = copies_of(_plan(Chosen(table, MODEL.experts)), 2, MODEL.experts)[0]
    ids = np.zeros((30, 1), np.int16)
    rows = plan_copies.rows(ids, 0) + plan_copies.rows(ids, 1)
    assert sorted(rows[plan_copies.expert == 0].tolist()) == [30, 30]


def _plan(chosen: Chosen) -> Plan:
    model = replace(MODEL, layers=1, top_k=1)
    rebalancer = Rebalancer(load_policy("replicate-hot"), 8)
    scheduler = Rebalancing(model, 2, rebalancer, Settings(30), chosen.counts(slice(None)))
    *_, (plan,) = [scheduler.on(0, Arrived(Request(i, 1, 1, 1), last=i == 29)) for i in range(30)]
    assert isinstance(plan, Plan)
    return plan
