"""Which runs count, what tasks are said to have taken, and that the fit finds what made them so."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from exec.cluster import calibrate, fit, observe, phases, prices, watch
from exec.cluster.fit import core_s, fitted
from exec.cluster.machine import LOCAL, NETWORK, Place, of_ranks
from exec.cluster.observe import Observed
from exec.cluster.outputs import Outputs
from exec.cluster.runs import Setup
from exec.cluster.watch import Sample, calmest
from sim.events import Arrived
from sim.machines.schema import Machine, OpRate, Resource
from sim.plan import Plan
from sim.schedulers.ep.rebalancing import Served
from sim.tasks import PS_PER_S
from tests.exec.cluster.setups import layers


def sample(makespan_s: float = 1.0, *, cpu_s: float = 1.0, others_s: float = 0.0, reference_s: float = 1.0) -> Sample:
    return Sample(makespan_s, np.array([makespan_s]), cpu_s, others_s, reference_s)


def observed(*samples: Sample, at_best_s: float = 0.0) -> Observed:
    setup = layers([4, 4], "bulk-sync")
    return Observed(setup.order, plan_of(setup), {}, samples, at_best_s)


def plan_of(setup: Setup) -> Plan:
    scheduler, last = setup.fresh(), len(setup.requests) - 1
    (plan,) = (c for i, request in enumerate(setup.requests) for c in scheduler.on(0, Arrived(request, i == last)))
    assert isinstance(plan, Plan)
    return plan


def test_disturbed_runs_do_not_count() -> None:
    calm = [sample(1.0), sample(1.1, cpu_s=1.05)]
    busy, slow, shared = sample(2.0, cpu_s=1.3), sample(2.0, reference_s=1.3), sample(2.0, others_s=0.9)
    seen = observed(*calm, busy, slow, shared)
    assert seen.settled == tuple(calm)
    assert seen.disturbed == 3


def test_cpu_time_is_compared_with_that_of_the_same_work() -> None:
    """Plans that copy experts take more than others of their phase, and are not disturbed for that."""
    samples = [sample(cpu_s=1.0), sample(cpu_s=1.5), sample(cpu_s=1.55), sample(cpu_s=2.0), sample(cpu_s=2.0)]
    moves = (0, 3, 3, 3, 6)
    assert sorted(calmest(samples, work=moves)) == [0, 1, 2, 4]
    assert sorted(calmest(samples)) == [0, 1]
    run = SimpleNamespace(number=np.arange(5), start_ps=np.zeros(5, np.int64), end_ps=np.full(5, PS_PER_S))
    served = SimpleNamespace(run=run, samples=dict(enumerate(samples)))
    plans = [(served, Served(i, 1, 100, (0, 1), -1, moved, 0, 0, 4)) for i, moved in enumerate(moves)]
    assert phases._settled(plans, 0.0).disturbed == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(("busy_s", "others_s"), [(10.0, 4.0), (5.0, 0.0)])
def test_what_ranks_do_beside_a_run_is_not_others_work(busy_s: float, others_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ending their streams and handing back, as long as the computer is watched."""
    clock = iter([100.0, 100.0 + busy_s])
    monkeypatch.setattr(watch, "busy_s", lambda: next(clock))
    monkeypatch.setattr(watch, "time", SimpleNamespace(process_time=lambda: 1.0))
    seen = watch.Watch(SimpleNamespace(calm_s=lambda: 1.0, seconds=lambda: 2.0))  # type: ignore[arg-type]
    seen.calm()
    seen.begin()
    outputs = {r: Outputs([], None, {}, {}, 1.0, whole_s=3.0) for r in range(2)}
    assert seen.end(outputs) == (2.0, others_s, 2.0)


def test_a_session_that_was_never_quick_keeps_its_calmest_third() -> None:
    seen = observed(*(sample(k, reference_s=2.0 + k) for k in (3.0, 1.0, 2.0)), at_best_s=1.0)
    assert [s.makespan_s for s in seen.settled] == [1.0]


def profile(ratio: float, word_s: float, put_latency_s: float) -> Machine:
    def row(op: str, lane: str, seconds: float = 1e-9, **more: object) -> OpRate:
        return OpRate(op=op, lane=lane, curve=((1.0, seconds), (1e6, seconds)), source="test", **more)  # type: ignore[arg-type]

    kernels = [row(op, "gpu") for op in ("rms_norm", "router", "dispatch", "combine", "expert_ffn", "expert_columns")]
    tasks = [OpRate(op=f"task.{op}", lane="gpu", ratio=((1.0, ratio),), source="test") for op in calibrate.OPS]
    passing = [row("*", lane, 1e-6) for lane in ("host", "comm")] + [row(op, lane, word_s) for op, lane in calibrate.WORDS]
    put = row("put", "put.local", 1e-4, latency_s=put_latency_s)
    cores = Resource(kind="cores", capacity=2, source="test")
    return of_ranks("test", [Place(0, 0)] * 4, 1, cores, {}, [*kernels, *tasks, *passing, put])


def made_by(machine: Machine, scheduler: str, tokens: int) -> Observed:
    """What the simulator does, as if it had been measured: each expert has as many rows as any other."""
    setup = layers([tokens] * 4, scheduler, layers=2)
    share = 2 * tokens // setup.order.chunks // setup.order.model.experts
    counts = [(layer, -1, c, [share] * setup.order.model.experts) for layer in range(2) for c in range(setup.order.chunks)]
    outputs = {r: Outputs(counts, None, {}, {}, 0.0) for r in range(4)}
    plan = plan_of(setup)
    run = replace(prices.simulate(machine, setup.order, plan, outputs, draws=0), sources=(plan,))
    seen = Observed(setup.order, plan, outputs, ())
    passing_s, computed_s = core_s(machine, seen)
    took = Sample(run.makespan_ps / 1e12, observe.elapsed_s(run), passing_s + computed_s, 0.0, 1.0, computed_s)
    return replace(seen, samples=(took, took))


def test_the_fit_finds_what_made_the_runs_so() -> None:
    truth, draft = profile(1.4, 2e-4, 8e-4), profile(1.0, 2e-4, 0.0)
    seen = [made_by(truth, scheduler, tokens) for scheduler in ("bulk-sync", "chunked", "overlapped") for tokens in (64, 160)]
    found = {(row.lane, row.op): row for row in fitted(draft, seen).ops}
    assert found["gpu", "task.experts"].ratio[0][1] == pytest.approx(1.4, rel=0.03)
    assert found["put.local", "put"].latency_s == pytest.approx(8e-4, rel=0.15)
    fresh = made_by(truth, "chunked", 96)
    twin = prices.simulate(fitted(draft, seen), fresh.order, fresh.plan, fresh.outputs)
    assert twin.makespan_ps / 1e12 == pytest.approx(fresh.samples[0].makespan_s, rel=0.03)


@pytest.mark.parametrize(("family", "latency_s"), [(NETWORK, 1e-3), (LOCAL, 1.2e-3)])
def test_long_waits_are_part_of_a_latency_but_over_a_network(family: str, latency_s: float) -> None:
    rows = {(family, "put"): OpRate(op="put", lane=family, curve=((1.0, 1e-4), (1e6, 1e-4)), latency_s=5e-4, source="test")}
    more_s = np.array([5e-4] * 9 + [25e-4])
    fit._correct(rows, family, "put", fit._Tasks(0.02 + more_s, np.full(10, 0.02), np.full(10, 0.02)))
    assert rows[family, "put"].latency_s == pytest.approx(latency_s, rel=0.05)


def test_what_handing_out_takes_is_found_by_the_cpu_time_outside_of_the_ops() -> None:
    handed = OpRate(op=prices.HANDED, lane="host", curve=((1.0, 3e-4),), source="test")
    draft = profile(1.2, 2e-4, 0.0)
    truth = draft.model_copy(update={"ops": (*draft.ops, handed)})
    seen = [made_by(truth, scheduler, tokens) for scheduler in ("bulk-sync", "overlapped") for tokens in (64, 160)]
    slower = [replace(one, samples=tuple(s._replace(cpu_s=2 * s.cpu_s, computed_s=2 * s.computed_s) for s in one.samples)) for one in seen]
    for observed in (seen, slower):
        (found,) = [row for row in fitted(draft, observed).ops if row.op == prices.HANDED]
        assert found.curve[0][1] == pytest.approx(3e-4, rel=0.1)
    on_devices = [replace(one, order=replace(one.order, device="cuda")) for one in seen]
    assert not any(row.op == prices.HANDED for row in fitted(draft, on_devices).ops)
