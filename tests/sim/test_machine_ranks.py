"""Fewer ranks of a tensor-parallel machine."""

from __future__ import annotations

import pytest

from sim import machines, models, workloads
from sim.errors import UserError
from sim.job import prepare
from sim.machines.ranks import degrees, with_ranks
from sim.machines.schema import Machine
from sim.policy import Space, search
from sim.policy.space import orders
from sim.schedulers.policy import Policy
from sim.simulate import simulate


def test_a_rank_takes_its_share_along() -> None:
    four, two = machines.load("4xt4"), with_ranks(machines.load("4xt4"), 2)
    assert degrees(four) == (4, 2, 1) and degrees(machines.load("t4")) == (1,)
    for name in ("gpu.flops", "gpu.memory"):
        assert two.resources[name].capacity == four.resources[name].capacity / 2
    assert two.memories["gpu"].bytes == four.memories["gpu"].bytes // 2
    assert two.memories["cpu"] == four.memories["cpu"] and two.resources["link.h2d"] == four.resources["link.h2d"]
    assert two.lane["gpu"].ranks == 2 and two.digest != four.digest
    assert with_ranks(four, 4) is four


def test_a_policy_chooses_the_degree() -> None:
    asked = (models.load("mixtral-8x7b"), machines.load("4xt4"), workloads.load("mtbench").with_generation(4), "cgopipe")
    sizes = {"batch": 32, "microbatch": 8, "attention": "cpu"}
    job = prepare(*asked, Policy(**sizes, tensor_parallel=2))
    assert job.machine.lane["gpu"].ranks == 2
    slow, fast = (simulate(*asked, Policy(**sizes, tensor_parallel=d)).summary["lanes"]["gpu"]["busy_s"] for d in (1, 4))
    assert slow > fast
    with pytest.raises(UserError, match="tensor_parallel: is 3; 4xt4 can split a layer over 4, 2, 1"):
        prepare(*asked, Policy(**sizes, tensor_parallel=3))


def test_the_search_uses_all_ranks_where_sums_are_cheap_and_one_where_they_are_not() -> None:
    """tiny-mixtral fits one T4: with sums over the ranks that take seconds, splitting its layers does not pay."""
    box, spec, load = machines.load("2xt4"), models.load("tiny-mixtral"), workloads.load("mtbench").with_generation(2)

    def summing(seconds: float) -> Machine:
        ops = (op.model_copy(update={"latency_s": seconds}) if op.op == "all_reduce" else op for op in box.ops)
        return box.model_copy(update={"ops": tuple(ops)})

    space = Space(orders(box), (8, 16), (1, 2), (0, 8))
    assert search(spec, summing(5.0), load, refine=0, space=space).policy.tensor_parallel == 1
    assert search(spec, summing(0.0), load, refine=0, space=space).policy.tensor_parallel == 2
