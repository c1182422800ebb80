"""On a real GPU: every scheduler gives the plain decoder's tokens, graphs too, within a hard budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from exec import devices
from exec.backends.cuda import grouped
from exec.backends.cuda.torch_device import CudaDevice
from exec.bench import cuda as bench
from exec.bench.timing import measure
from exec.session import Outcome
from sim.columns import columns_of
from sim.schedulers.policy import Policy
from tests.exec.backends.support import MIB, SCHEDULERS, SPEC, Work, assert_equals_plain, execute, machine_of, weights, workload

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(devices.missing()), reason=devices.missing())]

POLICY = Policy(batch=6, microbatch=2)
WORK = workload([5, 9, 3, 7, 4, 6], 6)


@pytest.fixture(autouse=True)
def exact() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def opened() -> CudaDevice:
    device = devices.opened(devices.DeviceName.cuda)
    assert device is not None
    return device


def on_gpu(scheduler: str, work: Work = WORK, gpu: int = 64 * MIB, **options: object) -> Outcome:
    device = opened()
    return execute(scheduler, POLICY, work, on=machine_of(device, gpu=gpu), device=device, **options)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("graphs", [False, True], ids=["kernels", "graphs"])
def test_any_schedule_gives_the_plain_decoders_tokens(scheduler: str, graphs: bool) -> None:
    assert_equals_plain(on_gpu(scheduler, keep_logits=True, poison=True, graphs=graphs), WORK)


def test_pass_by_pass() -> None:
    work = workload([5, 9, 3, 7, 4, 6], [4, 2, 5, 3, 4, 1], known=False)
    assert_equals_plain(on_gpu("cgopipe", work, keep_logits=True), work)


def test_stamps_keep_dependencies() -> None:
    """To within the reading of two clocks against each other."""
    run = on_gpu("cgopipe").run
    c = columns_of(run.sources)
    slack_ps = 30_000_000
    for i in range(len(run)):
        for dep in c.dep[c.dep_ptr[i] : c.dep_ptr[i + 1]]:
            assert run.end_ps[np.searchsorted(run.number, dep)] <= run.start_ps[i] + slack_ps


def test_tiles_lie_within_their_task() -> None:
    """To within the reading of the kernels' clock and the events' own resolution; dependencies between tiles exactly."""
    done = on_gpu("ticket")
    run = done.run
    assert run.inside
    slack_ps = round(1e6 * done.clock_offsets["gpu"]["uncertainty_us"]) + 30_000_000
    for i in run.inside:
        at = np.searchsorted(run.number, i.task)
        assert run.start_ps[at] <= i.start_ps.min() + slack_ps and i.end_ps.max() <= run.end_ps[at] + slack_ps
        owner = np.repeat(np.arange(len(i.body)), np.diff(i.body.dep_ptr))
        assert (i.start_ps[owner] >= i.end_ps[i.body.dep] - 1_000_000).all()


def test_the_budget_is_a_hard_limit() -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    on_gpu("cgopipe", gpu=32 * MIB)
    assert torch.cuda.max_memory_reserved() <= 32 * MIB


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("split", [0, 1])
def test_grouped_experts_agree_with_one_product_an_expert(dtype: torch.dtype, split: int) -> None:
    spec = replace(SPEC, hidden=256, ffn=128, experts=8)
    size = 3 * spec.hidden * spec.ffn
    flat = (torch.randn(spec.experts * size, device="cuda") * spec.hidden**-0.5).to(dtype)
    pieces = [p for p in (flat[: split * size], flat[split * size :]) if len(p)]
    rows = torch.randn(37, spec.hidden, device="cuda")
    offsets = torch.tensor([0, 0, 5, 5, 20, 21, 36, 36, 37], dtype=torch.int32, device="cuda")
    assert grouped.how(rows.device, dtype, len(pieces)) != grouped.ONE_BY_ONE
    found = grouped.expert_ffn(spec, pieces, rows, offsets)
    wanted = grouped._one_by_one(spec, pieces, rows, offsets.tolist())
    assert (found - wanted).norm() < (1e-5 if dtype == torch.float32 else 1e-2) * wanted.norm()


def test_weights_arrive_unchanged() -> None:
    device = opened()
    stream = device.stream("h2d")
    source = torch.from_numpy(weights().experts[0])
    there, pinned = device.allocate(source.nbytes).view(torch.float32), device.pinned(source.nbytes).view(torch.float32)
    pinned.copy_(source)
    stream.run(lambda: there.copy_(pinned, non_blocking=True))
    stream.record().synchronize()
    assert torch.equal(there.cpu(), source)


@pytest.mark.parametrize("op", ["router", "dispatch+combine", "linear", "rms_norm", "embed"])
def test_our_kernels_agree_with_torch(op: str) -> None:
    measure(next(bench.cases()[op]()), 1, bench.by_events)
