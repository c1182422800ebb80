"""Ticket on this computer: the routed layers of a run as one launch each, seen from inside on both clocks."""

from __future__ import annotations

import numpy as np

from sim.body import with_blocks
from sim.costs import CostModel
from sim.drive import drive
from sim.engines.run import DONE, SKIPPED
from sim.engines.simpy_engine import SimPyEngine
from sim.schedulers import registry
from sim.schedulers.policy import Policy
from sim.workloads.outcomes import Outcomes
from tests.exec.backends.support import SPEC, assert_equals_plain, execute, machine, workload
from traces.routing import RoutingIndex

POLICY, WORK = Policy(batch=6, microbatch=3), workload((5, 17, 3, 8, 1, 12), 4)


def test_every_routed_layer_is_stamped_inside_its_task() -> None:
    outcome = execute("ticket", POLICY, WORK, on=machine(threads=2), keep_logits=True, poison=True)
    assert_equals_plain(outcome, WORK)
    run = outcome.run
    fused = [t for plan in run.sources for t in plan.tasks() if t.op == "post_attn"]
    assert len(fused) >= SPEC.layers * 2 * 4
    for i, task in zip(run.inside, fused, strict=True):
        at = np.searchsorted(run.number, task.number)
        assert i.task == task.number and i.body is task.body
        assert run.start_ps[at] <= i.start_ps.min() and i.end_ps.max() <= run.end_ps[at]
        owner = np.repeat(np.arange(len(i.body)), np.diff(i.body.dep_ptr))
        assert (i.start_ps[owner] >= i.end_ps[i.body.dep]).all() and set(i.status.tolist()) <= {DONE, SKIPPED}


def test_the_simulated_twin_skips_the_same_tiles() -> None:
    """Driven by what the routers chose; blocks are the lane's two threads on both clocks."""
    requests, _, lengths = WORK
    on = with_blocks(machine(threads=2))
    outcome = execute("ticket", POLICY, WORK, on=on, record_routing=True)
    assert outcome.routing is not None
    routing = RoutingIndex(outcome.routing)
    costs = CostModel(on, SPEC, routing)
    engine = SimPyEngine(on.lanes, {}, costs, profile=costs, arrivals=requests, outcomes=Outcomes(lengths, routing))
    drive(registry.load("ticket")(SPEC, POLICY), engine)
    assert len(engine.run.inside) == len(outcome.run.inside)
    for mine, real in zip(engine.run.inside, outcome.run.inside, strict=True):
        assert mine.task == real.task and mine.body.digest() == real.body.digest() and np.array_equal(mine.status, real.status)
    assert any((i.status == SKIPPED).any() for i in outcome.run.inside)


def test_a_routing_that_is_forced_runs_op_by_op() -> None:
    first = execute("ticket", POLICY, WORK, record_routing=True)
    assert first.routing is not None and first.run.inside
    again = execute("ticket", POLICY, WORK, replay_routing=RoutingIndex(first.routing))
    assert again.tokens == first.tokens and again.run.inside == ()
