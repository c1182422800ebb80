"""search: the best policy for a model, a machine and a workload."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sim.costs import CostModel
from sim.errors import UserError
from sim.job import Job, all_in_one_batch
from sim.machines.schema import Machine
from sim.models.spec import ModelSpec
from sim.policy import infeasible
from sim.policy.fit import Fit, job_of
from sim.policy.hrm import Roofline
from sim.policy.optimum import Objective, Ranked, Search
from sim.policy.refine import MOST_TASKS, Refinement, Simulated, run, same_policy, tasks
from sim.policy.space import Point, Space, default
from sim.policy.traffic import Traffic
from sim.schedulers.policy import Policy
from sim.simulate import simulate_job
from sim.workloads.lengths import Fixed
from sim.workloads.schema import Workload

REFINE = 8
MOST_REACTIVE_TASKS = 500_000
"""Of a run on the SimPy engine, which takes 20 microseconds for each."""


@dataclass(frozen=True, slots=True)
class Found:
    """Attributes
    ----------
    policy: names the scheduler that it was chosen for. predicted_tokens_per_s: of the simulated run of it; without
    refinement, of the closed form. hrm_bound_tokens_per_s: no schedule of this policy by any launch order is faster.
    memory: peak bytes by memory and consumer. binding_constraint: what keeps it from being faster.
    searched: how large the space was, what was evaluated, and each point that was simulated.
    usd_per_million_tokens: where the machine states a price.
    """

    policy: Policy
    objective: Objective
    predicted_tokens_per_s: float
    hrm_bound_tokens_per_s: float
    memory: dict[str, dict[str, int]]
    binding_constraint: str
    searched: dict[str, Any]
    wall_s: float
    usd_per_million_tokens: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The object of `policy --json`."""
        return {
            "policy": self.policy.model_dump(mode="json", exclude_none=True),
            "objective": self.objective,
            "predicted_tokens_per_s": self.predicted_tokens_per_s,
            "hrm_bound_tokens_per_s": self.hrm_bound_tokens_per_s,
            "memory": self.memory,
            "binding_constraint": self.binding_constraint,
            "searched": self.searched,
            "wall_s": self.wall_s,
            **({} if self.usd_per_million_tokens is None else {"usd_per_million_tokens": self.usd_per_million_tokens}),
        }


def search(
    model: ModelSpec, machine: Machine, workload: Workload, objective: Objective = "throughput", *, refine: int = REFINE,
    space: Space | None = None, seed: int = 0, say: Callable[[str], None] = lambda text: None,
) -> Found:  # fmt: skip
    """The policy with the best proven bound; with `refine`, the best of at most so many simulated ones.

    objective: `throughput` and `cost` want the most tokens/s, `latency` the shortest time for a batch. Raises UserError
    where nothing fits, with the memory that is short, by how much, and the nearest change that helps.
    """
    if objective == "cost" and machine.price is None:
        raise UserError(f"machine {machine.name}: states no price; add price: {{usd_per_hour: ..., source: ...}} to its YAML")
    return _Question(model, machine, workload, objective, space or default(model, machine), seed, say).answer(refine)


class _Question:
    def __init__(
        self, model: ModelSpec, machine: Machine, workload: Workload, objective: Objective, space: Space, seed: int,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        infeasible.check(model, machine, workload, space)
        self.model, self.machine, self.workload, self.seed, self.say = model, machine, workload, seed, say
        self.space = space
        self.costs = CostModel(machine, model)
        self.traffic = Traffic(workload, self.space.largest, seed)
        self.roofline = Roofline(self.costs, self.traffic, np.array(self.space.microbatches))
        self.fit = Fit(self.costs, self.traffic)
        self.proof = Search(self.space, self.roofline, self.fit, objective, self.fit.exactly)
        self.objective = objective

    def answer(self, refine: int) -> Found:
        began = time.perf_counter()
        ranked = self.proof.ranked()
        best = next(ranked, None)
        if best is None:
            raise infeasible.why(self.model, self.machine, self.workload, self.space)
        self.say(f"best bound: {best.tokens_per_s:.4g} tokens/s by {best.point.order.scheduler}")
        refinement = Refinement(self.space, self.objective, refine, self.simulate, self.bound, self.say)
        winner = refinement.search(_chained(best, ranked)) if refine else None
        return self._found(winner.point if winner else best.point, winner, best, refinement.done, began)

    def job(self, point: Point) -> Job:
        return job_of(point, self.model, self.machine, self.workload, self.seed)

    def bound(self, point: Point) -> Ranked | None:
        return self.proof.rank(point) if self.fit.exactly(point) else None

    def simulate(self, point: Point) -> tuple[float, int] | None:
        """Where sequences end early or come in several batches, with all as long as the mean, in one batch."""
        if tasks(point, self.costs, self.traffic.longest_gen - 1) > MOST_TASKS:
            return None
        job = self.job(point)
        if self.traffic.reactive:
            even = self.workload.model_copy(update=_even(float(self.traffic.tokens(point.batch)) / (point.batch * self.traffic.slots)))
            requests, lengths = even.requests(point.batch, self.seed)
            policy = all_in_one_batch(job.policy, even, requests)
            job = replace(job, workload=even, requests=requests, lengths=lengths, policy=policy)
        return run(job, self.costs)

    def _found(self, point: Point, winner: Simulated | None, best: Ranked, done: list[Simulated], began: float) -> Found:
        job = self.job(point)
        followers = [replace(point, order=o) for o in same_policy(point.order, self.space.orders)]
        bounds = [r.tokens_per_s for p in followers if (r := self.bound(p)) is not None]
        predicted = self._predicted(point, job, winner.tokens_per_s) if winner else self.proof.rank(point).tokens_per_s
        return Found(
            policy=point.policy(self.workload.padded),
            objective=self.objective,
            predicted_tokens_per_s=predicted,
            hrm_bound_tokens_per_s=max(bounds),
            memory={home: dict(consumers) for home, consumers in job.peak_bytes.items()},
            binding_constraint=self._binding(point),
            searched=self._searched(best, done),
            wall_s=time.perf_counter() - began,
            usd_per_million_tokens=usd_per_million(self.machine, predicted),
        )

    def _predicted(self, point: Point, job: Job, stood_for: float) -> float:
        """Of a job whose schedule reacts, from a run of it as it is, where that is not too long."""
        few = tasks(point, self.costs, self.traffic.longest_gen - 1) * self.traffic.slots <= MOST_REACTIVE_TASKS
        tokens_per_s: float = simulate_job(job).summary["tokens_per_s"] if self.traffic.reactive and few else stood_for
        return tokens_per_s

    def _searched(self, best: Ranked, done: list[Simulated]) -> dict[str, Any]:
        return {
            "points": len(self.space), "boxes": self.proof.boxes, "evaluated": self.proof.evaluated, "refused": self.proof.refused,
            "proven": True, "best_bound_tokens_per_s": best.tokens_per_s,
            "simulated": [{**self._shown(s.point), "tokens_per_s": s.tokens_per_s, "makespan_s": s.makespan_s} for s in done],
        }  # fmt: skip

    def _shown(self, point: Point) -> dict[str, Any]:
        return point.policy(self.workload.padded).model_dump(mode="json", exclude_none=True, exclude_defaults=True)

    def _binding(self, point: Point) -> str:
        """The most loaded level of the phase that takes longer, and the memory that keeps the batch from growing."""
        times = self.proof.times(point, point.static_experts, (point.microbatches,))
        phase, load = max((("prefill", times.prefill[0]), ("decode", times.decode[0])), key=lambda p: float(p[1].max()))
        level = self.roofline.levels[int(load.argmax())]
        if phase == "decode" and times.added and times.chain_s[0] > load.max():
            level = "the chain of one micro-batch"
        short = self.fit.short_of(replace(point, microbatches=point.microbatches + 1))
        held = ", ".join(f"memory {name} ({missing:,} bytes short for one more micro-batch)" for name, missing in short.items())
        return f"{phase}: {level}" + (f"; {held}" if held else "")


def usd_per_million(machine: Machine, tokens_per_s: float) -> float | None:
    """Dollars for a million generated tokens; None where the machine states no price."""
    return None if machine.price is None else machine.price.usd_per_hour / 3600 / tokens_per_s * 1e6


def _chained(first: Ranked, others: Any) -> Any:
    yield first
    yield from others


def _even(mean: float) -> dict[str, Any]:
    return {"ends_early": False, "bound": None, "requests_per_slot": 1, "generation": Fixed(tokens=max(1, round(mean)))}
