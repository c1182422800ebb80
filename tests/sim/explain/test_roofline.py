"""The turning points of the Hierarchical Roofline Model, against the numbers of MoE-Lightning's own plots."""

from __future__ import annotations

import pytest

from sim import machines, models
from sim.explain.roofline import Decoded, Roofline, Turning, roofline
from sim.machines.schema import Machine
from sim.schedulers.policy import Policy

MODEL = models.load("mixtral-8x7b")
DECODED = Decoded(seconds=10.0, rows=32_000, entries=10_000_000, context=512.0)


def plotted(**capacity: float) -> Machine:
    """The L4 box as the artifact's roofline plots have it: 242 TFLOP/s, 300 GB/s, 1.3 TFLOP/s, 100 GB/s, 16 GB/s."""
    l4 = machines.load("l4")
    given = {"gpu.flops": 242e12, "gpu.memory": 300e9, "cpu.flops": 1.3e12, "cpu.memory": 100e9, "link.h2d": 16e9, **capacity}
    resources = {name: r.model_copy(update={"capacity": given.get(name, r.capacity)}) for name, r in l4.resources.items()}
    return l4.model_copy(update={"resources": resources})


def drawn(batch: int = 1024, microbatch: int = 128, machine: Machine | None = None, **policy: int) -> Roofline:
    found = roofline(machine or plotted(), MODEL, Policy(batch=batch, microbatch=microbatch, **policy), DECODED)
    assert found is not None
    return found


def op(name: str, r: Roofline) -> Turning:
    (found,) = (x for x in r.ops if x.op == name)
    return found


def test_the_papers_turning_points_of_the_expert_ffn() -> None:
    """Worked numbers: P1 = 1300 / 16 = 81.25 FLOP/byte, a batch of about 327; a kernel of 128 tokens does 9.58 TFLOP/s,
    so P2 = 599 FLOP/byte, a batch of about 2480. Our kernel moves each row once an expert, theirs once: 2 % apart."""
    ffn = op("expert FFN", drawn())
    per_token = ffn.intensity_host / 1024
    assert ffn.p1 == pytest.approx(81.25)
    assert ffn.p1 / per_token == pytest.approx(327, rel=0.01)
    assert ffn.device_flops == pytest.approx(9.58e12, rel=0.02)
    assert ffn.p2 == pytest.approx(599, rel=0.02)
    assert ffn.p2 / per_token == pytest.approx(2480, rel=0.05)


def test_the_balance_point_is_p2_where_the_kernel_is_bound_by_memory() -> None:
    ffn = op("expert FFN", drawn())
    assert ffn.balance_tokens == pytest.approx(ffn.p2 / ffn.intensity_host * 1024)
    bound_by_flops = op("expert FFN", drawn(machine=plotted(**{"gpu.flops": 5e12})))
    assert bound_by_flops.p2 == pytest.approx(5e12 / 16e9)
    assert bound_by_flops.balance_tokens == pytest.approx(ffn.balance_tokens)


def test_attention_is_left_of_p1_whatever_the_batch() -> None:
    for batch in (128, 4096):
        attention = op("attention", drawn(batch=batch))
        assert attention.intensity_host == pytest.approx(4.0, rel=0.01)  # two products a query head, four heads a KV head, fp16
        assert attention.verdict.startswith("left of P1")
        assert attention.balance_tokens is None


@pytest.mark.parametrize(("batch", "where"), [(128, "left of P1"), (1024, "between P1 and P2"), (8192, "right of P2")])
def test_the_batch_decides_where_the_ffn_stands(batch: int, where: str) -> None:
    ffn = op("expert FFN", drawn(batch=batch))
    assert ffn.verdict.startswith(where)
    assert ffn.attainable_flops == pytest.approx(min(ffn.device_flops, 16e9 * ffn.intensity_host))


def test_experts_that_stay_on_the_device_are_not_fetched() -> None:
    half, none = op("expert FFN", drawn(static_experts=4)), op("expert FFN", drawn())
    assert half.intensity_host == pytest.approx(2 * none.intensity_host)
    assert [x.op for x in drawn(static_experts=8).ops] == ["attention"]


def test_attained_is_the_work_of_the_phase_over_its_time() -> None:
    ffn = op("expert FFN", drawn())
    assert ffn.attained_flops == pytest.approx(32_000 * 2 * 3 * 2 * MODEL.hidden * MODEL.ffn / 10.0, rel=0.01)


def test_no_picture_without_decode_or_without_a_host() -> None:
    assert roofline(plotted(), MODEL, Policy(batch=8, microbatch=8), Decoded(0.0, 0, 0, 1.0)) is None
    lanes = tuple(lane for lane in plotted().lanes if lane.name == "gpu")
    alone = plotted().model_copy(update={"lanes": lanes})
    assert roofline(alone, MODEL, Policy(batch=8, microbatch=8), DECODED) is None
