"""execute: one job on the wall clock, the counterpart of `sim.simulate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exec import session
from exec.devices import DeviceName, opened
from exec.prompts import byte_prompts
from exec.weights import Weights, load_weights, random_weights
from sim import models
from sim.bounds import lower_bound_s
from sim.costs import CostModel
from sim.drive import Log
from sim.engines.run import DONE
from sim.errors import UserError
from sim.job import Job
from sim.machines.schema import Machine
from sim.models.spec import ModelSpec
from sim.simulate import Outcome as Simulated
from sim.simulate import simulate_job
from sim.summary import About, summarize
from sim.timeline import timeline_of
from traces.files import Provenance
from traces.routing import RoutingIndex
from traces.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Executed:
    """A job that was really run. summary: the object of `run --json`, as on the simulated clock."""

    job: Job
    outcome: session.Outcome
    log: Log
    summary: dict[str, Any]

    @property
    def timeline(self) -> Timeline:
        facts = {
            f"clock_offset.{lane}": f"{o['offset_us']:.1f} us +- {o['uncertainty_us']:.1f} us against the host, by kernels between events"
            for lane, o in self.outcome.clock_offsets.items()
        }
        made = Provenance("recorded", _origin("really run", self.job), self.outcome.clock, facts=facts)
        return timeline_of(self.outcome.run, made, self.job.model)


def spec_of(model: str, device: DeviceName = DeviceName.cpu) -> ModelSpec:
    """The model as the executor computes it: in fp32; a GPU keeps 16-bit experts as they are. Raises
    UserError where it cannot run it."""
    spec = models.load(model)
    if not spec.executable:
        raise UserError(f"--model {spec.name}: {spec.not_executable_because}; python -m sim run simulates it")
    kept = spec.dtype if device is DeviceName.cuda and spec.dtype in ("bf16", "fp16") else ""
    return replace(spec, dtype="fp32", expert_dtype=kept)


def weights_of(model: str, spec: ModelSpec, seed: int) -> Weights:
    """Weights of a directory with safetensors, or random ones drawn from `seed` for a built-in name."""
    if spec.expert_dtype:
        from exec.backends.cuda.hostweights import mapped_weights, random_expert_weights

        return mapped_weights(Path(model), spec) if Path(model).is_dir() else random_expert_weights(spec, seed)
    if Path(model).is_dir():
        return load_weights(Path(model), spec)
    return random_weights(spec, seed)


def execute(
    job: Job, weights: Weights, prompts: Sequence[Sequence[int]] | None = None, *, record_routing: bool = False,
    replay_routing: RoutingIndex | None = None, eos: tuple[int, ...] = (), device: DeviceName = DeviceName.cpu, graphs: bool = False,
) -> Executed:  # fmt: skip
    """Really run a prepared job; without `prompts`, on text of the standard library as bytes. graphs: on a GPU,
    replay the tasks that repeat as CUDA graphs.

    Raises what `exec.session.run` raises.
    """
    costs = CostModel(job.machine, job.model)
    log = Log()
    outcome = session.run(
        job.model, weights, job.machine, job.fresh(), job.requests, prompts or stdlib_prompts(job), lengths=job.lengths, eos=eos,
        profile=costs, record_routing=record_routing, replay_routing=replay_routing, log=log, device=opened(device), graphs=graphs,
    )  # fmt: skip
    routing = "model" if replay_routing is None else "trace"
    about = About.of(job, outcome.clock, routing, outcome.peak_bytes, bound_s(outcome, costs, job.machine))
    summary = summarize(about, outcome.run, job.requests, job.lengths, outcome.wall_s)
    if outcome.clock_offsets:
        summary["clock_offsets"] = outcome.clock_offsets
    return Executed(job, outcome, log, summary)


def bound_s(outcome: session.Outcome, costs: CostModel, machine: Machine) -> float:
    """Lower bound by the profile's op times; 0 where the machine has none."""
    if not machine.ops:
        return 0.0
    return lower_bound_s(outcome.run.sources, costs, {lane.name: lane.servers for lane in machine.lanes}, outcome.run.status == DONE)


def stdlib_prompts(job: Job) -> list[list[int]]:
    """Prompts of the requests' lengths, cut from the standard library with the job's seed."""
    if job.model.vocab < 256:
        raise UserError(f"--model {job.model.name}: vocabulary of {job.model.vocab}; byte prompts need 256 tokens")
    return byte_prompts([r.prompt_tokens for r in job.requests], job.seed)


def simulated_twin(executed: Executed) -> Simulated:
    """The same job on the simulated clock, the experts' loads being those that the run's routers chose."""
    assert executed.outcome.routing is not None, "the run recorded no routing"
    return simulate_job(executed.job, routing=RoutingIndex(executed.outcome.routing))


def timeline_of_twin(twin: Simulated) -> Timeline:
    return timeline_of(twin.run, Provenance("synthetic", _origin("simulated", twin.job), "simulated"), twin.job.model)


def _origin(how: str, job: Job) -> str:
    return f"{how} {job.scheduler} of {job.model.name} on {job.machine.name}, {job.workload.name}"
