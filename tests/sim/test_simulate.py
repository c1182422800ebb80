"""simulate(): every scheduler on every model ends, serves every token, and never beats the lower bound."""

import pytest

from sim import models, workloads
from sim.errors import UserError
from sim.handout import Reacts
from sim.schedulers import registry
from sim.schedulers.policy import Policy
from sim.simulate import simulate

SMALL = Policy(batch=4, microbatch=2)


@pytest.mark.parametrize("scheduler", registry.names())
@pytest.mark.parametrize("model", models.names())
def test_every_model_under_every_scheduler(model: str, scheduler: str) -> None:
    outcome = simulate(model, "8xh100", workloads.load("helm-reasoning").with_generation(3), scheduler, SMALL)
    s = outcome.summary
    assert s["generated_tokens"] == 12
    assert 0 < s["lower_bound_s"] <= s["makespan_s"]
    assert s["peak_bytes"]["gpu"] <= outcome.job.machine.memories["gpu"].budget_bytes
    assert s["ttft_s"] <= s["prefill_s"] <= s["makespan_s"]


@pytest.mark.parametrize("workload", ["mtbench", "mixed"])
def test_the_same_seed_gives_the_same_log(workload: str) -> None:
    short = workloads.load(workload).with_generation(8)
    one, two = (simulate("tiny-mixtral", "l4", short, "cgopipe", SMALL, seed=5) for _ in range(2))
    other = simulate("tiny-mixtral", "l4", short, "cgopipe", SMALL, seed=6)
    assert one.log.digest() == two.log.digest() != other.log.digest()
    assert one.run.same_times(two.run)


def test_both_engines_give_the_same_run_and_log() -> None:
    short = workloads.load("mtbench").with_generation(5)
    compiled, simpy = (simulate("tiny-mixtral", "t4", short, "flexgen", SMALL, engine=e) for e in ("compiled", "simpy"))  # type: ignore[arg-type]
    assert compiled.run.same_times(simpy.run)
    assert compiled.log.digest() == simpy.log.digest()


def test_what_reacts_runs_on_simpy_only() -> None:
    short = workloads.load("mixed").with_generation(8)
    auto = simulate("tiny-mixtral", "l4", short, "cgopipe", SMALL)
    assert len(auto.run.sources) > 2
    assert len(auto.log.entries) > 1 + len(auto.job.requests)
    with pytest.raises(Reacts, match="--engine simpy runs it"):
        simulate("tiny-mixtral", "l4", short, "cgopipe", SMALL, engine="compiled")


def test_freed_slots_are_refilled() -> None:
    """Twice as many requests as slots, and still one batch: no step serves more sequences than there are slots."""
    outcome = simulate("tiny-mixtral", "l4", workloads.load("mixed").with_generation(12), "cgopipe", Policy(batch=8, microbatch=2))
    assert outcome.summary["generated_tokens"] == sum(outcome.job.lengths)
    assert len(outcome.job.requests) == 16


def test_more_generation_takes_longer() -> None:
    short, long = (simulate("mixtral-8x7b", "t4", workloads.load("mtbench").with_generation(g), "cgopipe", SMALL) for g in (4, 8))
    assert long.summary["decode_s"] > 1.9 * short.summary["decode_s"]
    assert long.summary["prefill_s"] == pytest.approx(short.summary["prefill_s"], rel=0.05)


@pytest.mark.parametrize(("machine", "batch", "microbatch", "published"), [("t4", 504, 36, 30.1), ("l4", 884, 68, 79.0)])
def test_near_the_published_throughput(machine: str, batch: int, microbatch: int, published: float) -> None:
    """MoE-Lightning(p), MTBench, gen 128, Fig. 7: tokens/s of generated tokens over prefill and decode."""
    policy = Policy(batch=batch, microbatch=microbatch)
    outcome = simulate("mixtral-8x7b", machine, workloads.load("mtbench").with_padding(), "cgopipe", policy)
    assert outcome.summary["tokens_per_s"] == pytest.approx(published, rel=0.07)


def test_bad_names() -> None:
    with pytest.raises(UserError, match="did you mean 'dbrx'"):
        simulate("dbrxx", "l4", "mtbench", "cgopipe", SMALL)
