"""pp N and tg N: prompt processing and token generation by the whole executor, in llama-bench's sense.

pp N: one batch of prompts of N tokens, tokens per second of the prefill. tg N: N tokens of each sequence, tokens
per second of the decode behind a prompt of one token. Each repetition is a run of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from exec.devices import DeviceName
from exec.execute import execute, spec_of, weights_of
from exec.weights import Weights
from sim.errors import UserError
from sim.job import Job, prepare
from sim.machines.schema import Machine
from sim.schedulers.policy import Policy
from sim.workloads.lengths import Fixed
from sim.workloads.schema import Workload


class Test(NamedTuple):
    """One row: `prompt` tokens processed, or `gen` tokens generated; the other is 0."""

    prompt: int
    gen: int
    batch: int
    scheduler: str

    @property
    def name(self) -> str:
        return f"pp{self.prompt}" if self.prompt else f"tg{self.gen}"


def grid(prompts: Sequence[int], gens: Sequence[int], batches: Sequence[int], schedulers: Sequence[str]) -> list[Test]:
    """All combinations; each prompt length and each generation length is a test of its own."""
    sizes = [*((p, 0) for p in prompts), *((0, g) for g in gens)]
    return [Test(p, g, b, s) for s, b, (p, g) in itertools.product(schedulers, batches, sizes)]


def job_of(test: Test, model: str, machine: Machine, device: DeviceName) -> Job:
    workload = Workload(name=test.name, source="a bench test", prompt=Fixed(tokens=test.prompt or 1), generation=Fixed(tokens=test.gen + 1))
    try:
        return prepare(spec_of(model, device), machine, workload, test.scheduler, Policy(batch=test.batch, microbatch=min(test.batch, 16)))
    except UserError as e:
        raise UserError(f"{test.name}: {e}") from None


def run(
    tests: Sequence[Test], model: str, machine: Machine, repetitions: int, device: DeviceName, graphs: bool = False
) -> Iterator[dict[str, Any]]:
    """A row for each test, as its repetitions end. All are checked before the first runs, and a run that does not
    count comes before the repetitions of each."""
    jobs = [job_of(t, model, machine, device) for t in tests]
    weights: Weights = weights_of(model, spec_of(model, device), 0)
    for test, job in zip(tests, jobs, strict=True):
        samples = [_tokens_per_s(test, execute(job, weights, device=device, graphs=graphs).summary) for _ in range(repetitions + 1)][1:]
        yield {
            "model": model, "test": test.name, "n_prompt": test.prompt, "n_gen": test.gen, "batch": test.batch, "scheduler": test.scheduler,
            "device": str(device), "graphs": graphs, "tokens_per_s": float(np.mean(samples)),
            "stddev_tokens_per_s": float(np.std(samples, ddof=1)) if len(samples) > 1 else 0.0, "samples_tokens_per_s": samples,
        }  # fmt: skip


def _tokens_per_s(test: Test, summary: dict[str, Any]) -> float:
    if test.prompt:
        return float(test.prompt * test.batch / summary["prefill_s"])
    return float(test.gen * test.batch / summary["decode_s"])
