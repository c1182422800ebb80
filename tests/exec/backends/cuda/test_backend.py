"""The backend as a whole: budgets, who waits for whom, stamps, failures, routing, weights in 16 bits."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from exec import session
from exec.backends.cuda import compute, standin
from exec.backends.cuda.hostweights import mapped_weights, random_expert_weights
from exec.backends.cuda.standin import StandIn
from exec.runtime import TaskFailed
from exec.weights import load_weights, save_hf
from sim.columns import columns_of
from sim.drive import Log, replay
from sim.errors import UserError
from sim.schedulers import registry
from sim.schedulers.policy import Policy
from tests.exec.backends.support import MIB, SPEC, assert_equals_plain, execute, machine, weights, workload

POLICY = Policy(batch=6, microbatch=2)
WORK = workload([5, 9, 3, 7, 4, 6], 4)
BF16 = replace(SPEC, expert_dtype="bf16")


def test_streams_are_never_waited_for_by_the_thread_that_feeds_the_compute_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """No synchronisation a task: the GPU lane's thread waits for nothing, the reaper for samplings only."""
    waits: list[str] = []
    wait = standin.StandInEvent.synchronize

    def noting(event: standin.StandInEvent) -> None:
        waits.append(threading.current_thread().name)
        wait(event)

    started = threading.Event()
    drive = session.drive

    def after_warm_up(*args: object) -> None:
        waits.clear()
        started.set()
        drive(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(standin.StandInEvent, "synchronize", noting)
    monkeypatch.setattr(session, "drive", after_warm_up)
    run = execute("deepspeed", POLICY, WORK, device=StandIn(delay_s=2e-4)).run
    assert started.is_set()
    assert "lane-gpu-0" not in waits
    assert waits.count("reaper") == columns_of(run.sources).where_op("sample").sum()


@pytest.mark.parametrize("scheduler", ["cgopipe", "flexgen", "resident"])
def test_stamps_keep_dependencies_and_lanes(scheduler: str) -> None:
    run = execute(scheduler, POLICY, WORK, device=StandIn(delay_s=3e-4)).run
    c = columns_of(run.sources)
    assert np.array_equal(c.number, run.number)
    assert (run.start_ps <= run.end_ps).all()
    for i in range(len(run)):
        for dep in c.dep[c.dep_ptr[i] : c.dep_ptr[i + 1]]:
            j = int(np.searchsorted(run.number, dep))
            assert run.end_ps[j] <= run.start_ps[i], f"task {run.number[i]} began before task {dep} had ended"
    for lane in range(len(run.lanes)):
        mine = run.lane == lane
        assert (np.diff(run.start_ps[mine]) >= 0).all()
        assert (run.end_ps[mine][:-1] <= run.start_ps[mine][1:]).all()


def test_the_devices_budget_is_a_hard_limit() -> None:
    device = StandIn()
    done = execute("cgopipe", POLICY, WORK, device=device, on=machine(gpu=8 * MIB))
    assert device.limit_bytes == 8 * MIB
    assert 0 < done.peak_bytes["gpu"] <= 8 * MIB
    with pytest.raises(UserError, match="memory 'gpu': .* bytes are missing"):
        execute("resident", POLICY, WORK, device=StandIn(), on=machine(gpu=MIB))


def test_no_room_for_temporaries_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(compute.Compute, "_pre_attn", full)
    with pytest.raises(TaskFailed, match="lower --microbatch, or raise memories.gpu"):
        execute("resident", POLICY, WORK, device=StandIn())


def test_what_fails_on_the_device_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("an illegal memory access")

    device = StandIn()
    monkeypatch.setattr(compute.decoder, "sample", broken)
    # The warm-up runs it too: nothing starts.
    with pytest.raises(RuntimeError, match="illegal memory access"):
        execute("resident", POLICY, WORK, device=device)
    assert not [t for t in threading.enumerate() if t.name.startswith(("lane-", "stream-", "reaper"))]


def test_paced_links_are_refused() -> None:
    with pytest.raises(UserError, match="lane 'h2d' is paced; the links of --device cuda are native"):
        execute("cgopipe", POLICY, WORK, device=StandIn(), on=machine({"h2d": 1e9}))


def test_the_log_replays_through_a_fresh_scheduler() -> None:
    log = Log()
    work = workload([5, 9, 3, 7, 4, 6], [4, 2, 5, 3, 4, 1], known=False)
    execute("cgopipe", POLICY, work, device=StandIn(delay_s=2e-4), log=log)
    replay(log, registry.load("cgopipe")(SPEC, POLICY))


def test_recorded_routing_is_the_cpus_and_replays() -> None:
    from traces.routing import RoutingIndex

    here = execute("cgopipe", POLICY, WORK, record_routing=True)
    there = execute("cgopipe", POLICY, WORK, record_routing=True, device=StandIn(delay_s=2e-4))
    assert here.routing is not None and there.routing is not None
    for column in ("step", "layer", "request_id", "position"):
        assert sorted(getattr(here.routing, column)) == sorted(getattr(there.routing, column))
    again = execute("deepspeed", POLICY, WORK, device=StandIn(), replay_routing=RoutingIndex(there.routing), keep_logits=True)
    assert_equals_plain(again, WORK)


# Weights in the model's own dtype -----------------------------------------------------------------


def saved(folder: Path, dtype: torch.dtype) -> Path:
    """A model directory whose tensors have `dtype`."""
    from safetensors.torch import load_file, save_file

    save_hf(weights(), SPEC, folder)
    tensors = {k: v.to(dtype).contiguous() for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_experts_are_mapped_and_streamed_in_16_bits(tmp_path: Path) -> None:
    """The run equals, to bf16's rounding of activations, one in fp32 with the same rounded weights."""
    folder = saved(tmp_path, torch.bfloat16)
    mapped, rounded = mapped_weights(folder, BF16), load_weights(folder, SPEC)
    assert {t.dtype for t in mapped.experts[0]} == {torch.bfloat16}
    assert torch.equal(torch.cat(list(mapped.experts[1])).float(), torch.from_numpy(rounded.experts[1]))
    requests, prompts, lengths = WORK
    runs = []
    for spec, w in ((BF16, mapped), (SPEC, rounded)):
        made = registry.load("cgopipe")(spec, POLICY)
        options = {"lengths": lengths, "keep_logits": True, "device": StandIn(delay_s=1e-4)}
        runs.append(session.run(spec, w, machine(), made, requests, prompts, **options))  # type: ignore[arg-type]
    moved = [r.planned_bytes["gpu"] for r in runs]
    assert moved[0] < moved[1]
    for request in requests:
        a, b = (r.logits[request.request_id][0] for r in runs)
        assert np.abs(a - b).max() < 3e-2 * np.abs(b).max()


def test_a_file_of_another_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has dtype torch.float32; config.json says torch.bfloat16"):
        mapped_weights(saved(tmp_path, torch.float32), BF16)


def test_random_experts_differ_from_layer_to_layer_and_expert_to_expert() -> None:
    made = random_expert_weights(BF16, 0)
    (first,), (second,) = made.experts[:2]
    size = 3 * SPEC.hidden * SPEC.ffn
    assert first.dtype == torch.bfloat16 and len(first) == SPEC.experts * size
    assert not torch.equal(first, second)
    assert not torch.equal(first[:size], first[size : 2 * size])
