"""One published cell: the run that it was, and the same run simulated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sim import machines, models, workloads
from sim.job import Job, prepare
from sim.reproduce.moe_lightning import published
from sim.reproduce.moe_lightning.batches import deepspeed_job, one_batch
from sim.schedulers.policy import Policy

WORKLOAD = "mtbench"


@dataclass(frozen=True, slots=True)
class Cell:
    """sizes: micro-batch and their number; None: not published. fitted: whether a constant was fitted to it."""

    system: str
    setting: str
    gen: int
    tokens_per_s: float
    sizes: published.Sizes | None
    fitted: bool

    @property
    def padded(self) -> bool:
        """MoE-Lightning's own batching is the only one that takes prompts as they are."""
        return self.system != published.UNPADDED

    def job(self) -> Job:
        """The run to simulate. Raises UserError where it does not fit into the box."""
        load = workloads.load(WORKLOAD).with_generation(self.gen)
        load = load.with_padding() if self.padded else load
        model, machine = models.load(published.MODEL), machines.load(published.MACHINES[self.setting])
        if self.sizes is None:
            return deepspeed_job(model, machine, load)
        microbatch, count = self.sizes
        job = prepare(model, machine, load, published.SCHEDULERS[self.system], Policy(batch=microbatch * count, microbatch=microbatch))
        return one_batch(job)


@dataclass(frozen=True, slots=True)
class Simulated:
    """A cell and what the simulator says. batch: sequences served. step_s: mean decode step. lower_bound_s: no schedule of these
    tasks ends sooner; told of CGOPipe's."""

    cell: Cell
    batch: int
    microbatch: int
    tokens_per_s: float
    makespan_s: float
    prefill_s: float
    step_s: float
    lower_bound_s: float | None

    @property
    def error(self) -> float:
        """(simulated - published) / published."""
        return self.tokens_per_s / self.cell.tokens_per_s - 1

    @property
    def above_bound(self) -> float | None:
        """How much longer it takes than the lower bound."""
        return None if self.lower_bound_s is None else self.makespan_s / self.lower_bound_s - 1

    def row(self) -> dict[str, Any]:
        """An entry of `cells` in the command's JSON."""
        c = self.cell
        return {
            "system": c.system, "setting": c.setting, "workload": WORKLOAD, "gen": c.gen, "published_tokens_per_s": c.tokens_per_s,
            "simulated_tokens_per_s": self.tokens_per_s, "error": self.error, "fitted": c.fitted, "batch": self.batch,
            "microbatch": self.microbatch, "makespan_s": self.makespan_s, "prefill_s": self.prefill_s,
            "decode_step_s": self.step_s, "lower_bound_s": self.lower_bound_s, "above_lower_bound": self.above_bound,
        }  # fmt: skip


def cells() -> Iterator[Cell]:
    """Every cell of Fig. 7 on one GPU."""
    for (setting, system), row in published.THROUGHPUT.items():
        sizes = published.POLICIES.get((setting, published.FLEXGEN if system == published.FLEXGEN_C else system))
        fitted = published.FITTED.get((setting, system), ())
        for k, gen in enumerate(published.GENS):
            yield Cell(system, setting, gen, row[k], sizes[k] if sizes else None, gen in fitted)


def run(cell: Cell) -> Simulated:
    """Simulate a cell on the compiled engine."""
    from sim.simulate import simulate_job  # numba

    job = cell.job()
    bound = job.scheduler == "cgopipe"
    s = simulate_job(job, engine="compiled", bound=bound).summary
    return Simulated(
        cell, len(job.requests), job.policy.microbatch, s["tokens_per_s"], s["makespan_s"], s["prefill_s"],
        s["decode_s"] / (cell.gen - 1), s["lower_bound_s"] if bound else None,
    )  # fmt: skip
