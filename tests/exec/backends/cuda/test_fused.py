"""Ticket on streams: a routed layer as one launch, its stamps within the task once both clocks are one."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from exec import execute as executing
from exec import session
from exec.backends.cuda import fused, standin
from exec.backends.cuda.clock import KernelClock, Line, Reading
from exec.backends.cuda.fused import StreamLayers
from exec.backends.cuda.standin import StandIn
from exec.calibration import device as calibration
from exec.devices import DeviceName
from exec.session import Outcome
from sim.body import with_blocks
from sim.columns import columns_of
from sim.costs import CostModel
from sim.engines.run import DONE, SKIPPED, Run
from sim.errors import UserError
from sim.job import prepare
from sim.machines.schema import OpRate
from sim.schedulers.policy import Policy
from sim.schedulers.ticket import body_of, tiles_of
from sim.tasks import PS_PER_S, Work
from sim.workloads.lengths import Fixed
from sim.workloads.schema import Workload
from tests.exec.backends.support import SPEC, assert_equals_plain, execute, machine, machine_of, weights, workload
from traces.routing import RoutingIndex

POLICY, WORK = Policy(batch=6, microbatch=3), workload((5, 17, 3, 8, 1, 12), 4)
AHEAD_NS, DRIFT = 7_000_000_000, 0.05
SLACK_PS = 3_000_000_000
"""Of readings on a stand-in whose threads share two cores with whatever else runs."""


class Skewed(StandIn):
    """Its kernels' clock stands seconds ahead of the host's and runs faster, as any pair of clocks might."""

    began_ns = 0

    def skewed(self, host_ns: np.ndarray) -> np.ndarray:
        return host_ns + AHEAD_NS + ((host_ns - self.began_ns) * DRIFT).astype(np.int64)

    def tick(self, there: object, wait_ns: int) -> None:
        super().tick(there, wait_ns)  # type: ignore[arg-type]
        there[0] = int(self.skewed(np.int64(there[0])))  # type: ignore[index,arg-type]


def check_inside(outcome: Outcome, slack_ps: int = SLACK_PS) -> None:
    run = outcome.run
    plans = [t for plan in run.sources for t in plan.tasks() if t.op == "post_attn"]  # type: ignore[union-attr]
    assert len(plans) >= SPEC.layers * 2 * 4
    for i, task in zip(run.inside, plans, strict=True):
        at = np.searchsorted(run.number, task.number)
        assert i.task == task.number and i.body is task.body
        assert run.start_ps[at] <= i.start_ps.min() + slack_ps and i.end_ps.max() <= run.end_ps[at] + slack_ps
        owner = np.repeat(np.arange(len(i.body)), np.diff(i.body.dep_ptr))
        assert (i.start_ps[owner] >= i.end_ps[i.body.dep]).all() and set(i.status.tolist()) <= {DONE, SKIPPED}
    assert any((i.status == SKIPPED).any() for i in run.inside)


@pytest.mark.parametrize("graphs", [False, True], ids=["kernels", "graphs"])
def test_every_routed_layer_is_stamped_inside_its_task(graphs: bool) -> None:
    device = StandIn(delay_s=2e-4, seed=1)
    outcome = execute("ticket", POLICY, WORK, on=machine(threads=2), keep_logits=True, poison=True, device=device, graphs=graphs)
    assert_equals_plain(outcome, WORK)
    check_inside(outcome)


def test_stamps_by_another_clock_come_out_on_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds ahead and drifting: unmapped, or mapped by an offset alone, every tile would be far off its task."""
    device, keep = Skewed(delay_s=4e-4), fused._keep
    device.began_ns = standin.time.perf_counter_ns()
    monkeypatch.setattr(fused, "_keep", lambda kept, stamps, ran_on: keep(kept, device.skewed(stamps), ran_on))
    check_inside(execute("ticket", POLICY, WORK, device=device))


def test_no_task_waits_for_its_stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []
    wait, drive = standin.StandInEvent.synchronize, session.drive

    def noting(event: standin.StandInEvent) -> None:
        waits.append(threading.current_thread().name)
        wait(event)

    def after_warm_up(*args: object) -> None:
        waits.clear()
        drive(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(standin.StandInEvent, "synchronize", noting)
    monkeypatch.setattr(session, "drive", after_warm_up)
    run = execute("ticket", POLICY, WORK, device=StandIn(delay_s=2e-4)).run
    assert run.inside and "lane-gpu-0" not in waits
    assert waits.count("reaper") == columns_of(run.sources).where_op("sample").sum()


def test_a_routing_that_is_recorded_replays_op_by_op() -> None:
    first = execute("ticket", POLICY, WORK, record_routing=True, device=StandIn())
    assert first.routing is not None and first.run.inside
    again = execute("ticket", POLICY, WORK, replay_routing=RoutingIndex(first.routing), device=StandIn())
    assert again.tokens == first.tokens and again.run.inside == ()


def test_what_the_kernel_does_not_do_runs_op_by_op(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("hidden and ffn must be multiples of 8")

    monkeypatch.setattr(fused, "simulated", lambda: True)
    monkeypatch.setattr(fused, "DeviceLaunch", refuse)
    outcome = execute("ticket", POLICY, WORK, keep_logits=True, device=StandIn())
    assert_equals_plain(outcome, WORK)
    assert outcome.run.inside == ()


def test_the_line_goes_through_both_readings() -> None:
    line = Line(Reading(10_000, 500, 3), Reading(12_000, 2_600, 9))
    assert line.host_ns(np.array([10_000, 11_000, 12_000])).tolist() == [500, 1550, 2600] and line.within_ns == 9
    once = Line(line.first, line.first)
    assert once.host_ns(np.array([10_000, 10_700])).tolist() == [500, 1200]


def test_a_reading_knows_how_good_it_is() -> None:
    device = Skewed(delay_s=1e-3)
    device.began_ns = standin.time.perf_counter_ns()
    clock = KernelClock(device, device.stream("gpu"))
    clock.read()
    standin.time.sleep(0.02)
    clock.read()
    device.synchronize()
    line = clock.line()
    now = np.arange(line.first.host_ns, line.last.host_ns, 100_000)
    assert len(now) > 100 and line.within_ns > 0
    assert np.abs(line.host_ns(device.skewed(now)) - now).max() <= line.within_ns + 1000
    device.close()


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A device of 65 blocks, whose kernel is not asked for."""
    monkeypatch.setattr(StandIn, "blocks", lambda self: 65)
    monkeypatch.setattr(StreamLayers, "launch", lambda *_: None)
    return StandIn()


def executed(device: StandIn, monkeypatch: pytest.MonkeyPatch) -> executing.Executed:
    """One short request under `ticket`, as the command line runs it."""
    short = Workload(name="w", source="a test", prompt=Fixed(tokens=3), generation=Fixed(tokens=3))
    job = prepare(SPEC, machine_of(device), short, "ticket", batch=1)
    monkeypatch.setattr(executing, "opened", lambda name: device)
    return executing.execute(job, weights(), [[1, 2, 3]], record_routing=True, device=DeviceName.cuda)


def digests(run: Run) -> set[str]:
    """Of the bodies of decode passes."""
    return {t.body.digest() for plan in run.sources for t in plan.tasks() if t.body and t.work.tokens == 1}  # type: ignore[union-attr]


def test_both_clocks_cut_tiles_for_the_devices_blocks(large: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    done = executed(large, monkeypatch)
    twin = executing.simulated_twin(done)
    cut = {blocks: body_of(tiles_of(SPEC, 1, blocks=blocks)).digest() for blocks in (1, 65)}
    assert cut[1] != cut[65] and digests(done.outcome.run) == digests(twin.run) == {cut[65]}
    assert {i.body.digest() for i in twin.run.inside} >= {cut[65]}


def test_a_machine_of_other_blocks_is_refused(large: StandIn) -> None:
    with pytest.raises(UserError, match="lane 'gpu' stands for 1 blocks of a kernel, the device runs 65 at once; run: .* calibrate"):
        execute("ticket", POLICY, workload((3,), 2), device=large)
    assert execute("resident", POLICY, workload((3,), 2), device=StandIn()).tokens


def test_a_calibrated_device_names_its_blocks(large: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its curves hold for a task that has all of them; a tile has one, and takes its part of the kernel's time on it."""
    monkeypatch.setattr(calibration.host, "memory_bytes_per_s", lambda: (1e10, 1e10))
    monkeypatch.setattr(calibration.host, "cores", lambda: 2.0)
    monkeypatch.setattr(calibration, "_pin_rate", lambda threads: 1e10)
    ops = tuple(OpRate(op=op, lane="gpu", curve=((1.0, 1e-9),), source="a test") for op in ("o_proj", "rms_norm", "router", "expert_ffn"))
    made = calibration._machine(large, {"h2d": 1e10, "d2h": 1e10}, 1, ops)
    costs = CostModel(with_blocks(made), SPEC)
    assert costs.servers("blocks") == 65
    down, units = Work("down_tile", 1, columns=8), SPEC.ffn * 8
    assert costs.solo_ps("blocks", down) == pytest.approx(65 * units * 1e-9 * PS_PER_S, rel=1e-6)


def test_a_run_tells_how_sure_its_tiles_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its summary, in the metadata of its timeline, and to people; the offset is the one that the clocks were given."""
    device = Skewed()
    device.began_ns = standin.time.perf_counter_ns()
    done = executed(device, monkeypatch)
    offset = done.summary["clock_offsets"]["gpu"]
    passed_us = (standin.time.perf_counter_ns() - device.began_ns) / 1e3
    assert 0 < offset["uncertainty_us"] < passed_us
    assert -offset["offset_us"] == pytest.approx(AHEAD_NS / 1e3, abs=DRIFT * passed_us + offset["uncertainty_us"])
    assert -offset["moved_us"] == pytest.approx(0.0, abs=DRIFT * passed_us + 2 * offset["uncertainty_us"])
    assert done.timeline.provenance.facts["clock_offset.gpu"].startswith(
        f"{offset['offset_us']:.1f} us +- {offset['uncertainty_us']:.1f} us against the host"
    )


def test_runs_by_the_hosts_clock_alone_say_nothing_of_others() -> None:
    assert execute("resident", POLICY, workload((3,), 2), device=StandIn()).clock_offsets == {}
    assert execute("ticket", POLICY, workload((3,), 2)).clock_offsets == {}
