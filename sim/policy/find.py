"""search: the best policy for a model, a machine and a workload."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from sim.costs import CostModel
from sim.errors import UserError
from sim.job import Job, all_in_one_batch
from sim.machines.ranks import degrees, with_ranks
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
    began = time.perf_counter()
    space = space or default(model, machine)
    infeasible.check(model, machine, workload, space)
    traffic = Traffic(workload, space.largest, seed)
    questions = [_Question(model, with_ranks(machine, d), traffic, objective, space, seed, say, d) for d in degrees(machine)]
    fitting = [q for q in questions if q.best is not None]
    if not fitting:
        raise infeasible.why(model, machine, workload, space)
    found: list[_Refined] = []
    for q in sorted(fitting, key=lambda q: -q.best_value):
        if not found or q.best_value > max(r.value for r in found):
            found.append(q.refined(refine))
    best = max(found, key=lambda r: r.value)
    split = {} if len(questions) == 1 else {"tensor_parallel": best.question.degree}
    return best.question.answer(best, split, found, time.perf_counter() - began)


class _Refined(NamedTuple):
    """The best point of one tensor-parallel degree. winner: None where nothing was simulated. value: what is largest for the best."""

    question: _Question
    point: Point
    winner: Simulated | None
    value: float
    done: list[Simulated]


class _Question:
    def __init__(
        self, model: ModelSpec, machine: Machine, traffic: Traffic, objective: Objective, space: Space, seed: int,
        say: Callable[[str], None], degree: int,
    ) -> None:  # fmt: skip
        self.degree = degree
        self.model, self.machine, self.workload, self.seed, self.say = model, machine, traffic.workload, seed, say
        self.space = space
        self.costs = CostModel(machine, model)
        self.traffic = traffic
        self.roofline = Roofline(self.costs, self.traffic, np.array(self.space.microbatches))
        self.fit = Fit(self.costs, self.traffic)
        self.proof = Search(self.space, self.roofline, self.fit, objective, self.fit.exactly)
        self.objective = objective
        self._ranked = self.proof.ranked()
        self.best = next(self._ranked, None)
        """The proven optimum by the bound; None where nothing fits."""

    @property
    def best_value(self) -> float:
        return self.best.value if self.best else 0.0

    def refined(self, budget: int) -> _Refined:
        assert self.best is not None
        self.say(f"best bound: {self.best.tokens_per_s:.4g} tokens/s by {self.best.point.order.scheduler}")
        refinement = Refinement(self.space, self.objective, budget, self.simulate, self.bound, self.say)
        winner = refinement.search(chain([self.best], self._ranked)) if budget else None
        point, value = (winner.point, winner.value) if winner else (self.best.point, self.best.value)
        return _Refined(self, point, winner, value, refinement.done)

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

    def answer(self, refined: _Refined, split: dict[str, int], tried: list[_Refined], wall_s: float) -> Found:
        point, winner = refined.point, refined.winner
        job = self.job(point)
        followers = [replace(point, order=o) for o in same_policy(point.order, self.space.orders)]
        bounds = [r.tokens_per_s for p in followers if (r := self.bound(p)) is not None]
        predicted = self._predicted(point, job, winner.tokens_per_s) if winner else self.proof.rank(point).tokens_per_s
        return Found(
            policy=point.policy(self.workload.padded).model_copy(update=split),
            objective=self.objective,
            predicted_tokens_per_s=predicted,
            hrm_bound_tokens_per_s=max(bounds),
            memory={home: dict(consumers) for home, consumers in job.peak_bytes.items()},
            binding_constraint=self._binding(point),
            searched=_searched(tried),
            wall_s=wall_s,
            usd_per_million_tokens=usd_per_million(self.machine, predicted),
        )

    def _predicted(self, point: Point, job: Job, stood_for: float) -> float:
        """Of a job whose schedule reacts, from a run of it as it is, where that is not too long."""
        few = tasks(point, self.costs, self.traffic.longest_gen - 1) * self.traffic.slots <= MOST_REACTIVE_TASKS
        tokens_per_s: float = simulate_job(job).summary["tokens_per_s"] if self.traffic.reactive and few else stood_for
        return tokens_per_s

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


def _searched(tried: list[_Refined]) -> dict[str, Any]:
    """Over all tensor-parallel degrees that could have held the best."""
    proofs = [r.question.proof for r in tried]
    bests = [r.question.best.tokens_per_s for r in tried if r.question.best]
    return {
        "points": sum(len(p.space) for p in proofs), "boxes": sum(p.boxes for p in proofs), "evaluated": sum(p.evaluated for p in proofs),
        "refused": sum(p.refused for p in proofs), "proven": True, "best_bound_tokens_per_s": max(bests),
        "simulated": [_shown(s, r.question) for r in tried for s in r.done],
    }  # fmt: skip


def _shown(s: Simulated, question: _Question) -> dict[str, Any]:
    policy = s.point.policy(question.workload.padded).model_copy(update={"tensor_parallel": question.degree})
    sizes = policy.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return {**sizes, "tokens_per_s": s.tokens_per_s, "makespan_s": s.makespan_s}


def _even(mean: float) -> dict[str, Any]:
    return {"ends_early": False, "bound": None, "requests_per_slot": 1, "generation": Fixed(tokens=max(1, round(mean)))}
