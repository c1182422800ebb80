"""One decode with experts from disk, really run under byte budgets, and its simulated twin."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from exec.arena import rounded
from exec.backends.pool import PoolBackend
from exec.execute import bound_s
from exec.pool.pool import Store, check_budgets
from exec.runtime import ThreadEngine
from exec.session import Outcome
from exec.weights import expert_floats, load_dense
from sim.costs import CostModel
from sim.drive import Log, drive
from sim.errors import UserError
from sim.events import Request
from sim.machines.schema import Machine
from sim.models.spec import ModelSpec
from sim.residency import feed, study
from sim.schedulers import registry
from sim.schedulers.caching import Caching, Served
from sim.schedulers.expert_cache import ExpertCache
from sim.schedulers.policy import Policy
from sim.summary import About, summarize
from traces.files import Provenance
from traces.routing import Routing, RoutingIndex


def caching_for(spec: ModelSpec, ram_bytes: int, device_bytes: int, **names: Any) -> Caching:
    """The cache that fits the budgets: as many experts of each layer as the device holds beside some slots for experts on a
    visit. names: further fields of `Caching`.

    Raises UserError naming the budget that is too small.
    """
    check_budgets(spec, ram_bytes, device_bytes)
    size, count, layers = slot_bytes(spec), spec.moe_layers * spec.experts, spec.moe_layers
    slots = min(device_bytes // size, count + 2 * spec.top_k)
    if slots <= layers:
        raise UserError(f"--device-budget {device_bytes:,}: holds {slots} experts; one of each of {layers} layers and one more are needed")
    capacity = min(spec.experts, max(1, (slots - 2 * spec.top_k) // layers))
    host = ram_bytes // size
    if spec.experts >= host < count:
        raise UserError(f"--ram-budget {ram_bytes:,}: holds {host} experts; the {spec.experts} of one layer and one more are needed")
    return Caching(capacity, staging=slots - capacity * layers, host=None if host >= count else host, **names)


def slot_bytes(spec: ModelSpec) -> int:
    """What an expert takes of a tier."""
    return rounded(expert_floats(spec) * 4)


@dataclass(frozen=True, slots=True)
class CacheJob:
    """requests, lengths: prompts and tokens to generate; the first token of each comes from its prompt, before the clock
    starts, so that a sequence takes lengths - 1 steps."""

    model: ModelSpec
    machine: Machine
    caching: Caching
    batch: int
    requests: tuple[Request, ...]
    lengths: tuple[int, ...]
    workload: str = "decode"
    seed: int = 0

    def __post_init__(self) -> None:
        for lane in study.needed_lanes(self.caching):
            if lane not in self.machine.lane:
                raise UserError(f"--machine {self.machine.name}: no lane {lane!r}; calibrate it again: python -m exec calibrate")
        if min(self.lengths) < 2:
            raise UserError(f"--workload {self.workload}: generates {min(self.lengths)} token; the first is the prompt's, 2 are needed")

    @property
    def to_decode(self) -> tuple[Request, ...]:
        """The requests as the scheduler sees them."""
        return tuple(replace(r, max_output_tokens=n - 1, output_tokens=n - 1) for r, n in zip(self.requests, self.lengths, strict=True))

    def needed(self) -> dict[str, dict[str, int]]:
        """Bytes by memory and consumer."""
        spec, c = self.model, self.caching
        slots = c.capacity * spec.moe_layers + c.slots_beyond(spec)
        host = spec.layers * spec.experts if c.host is None else c.host
        entries = sum(r.prompt_tokens + max(n, r.max_output_tokens) for r, n in zip(self.requests, self.lengths, strict=True))
        longest = max(r.prompt_tokens + r.max_output_tokens for r in self.requests)
        together = Policy(batch=self.batch, microbatch=self.batch, cache_tokens=self.batch * longest)
        resident = registry.load("resident")(spec, together).memory(self.requests)["gpu"]
        return {
            "gpu": {
                "expert_slots": slots * slot_bytes(spec), "kv": entries * spec.layers * spec.kv_bytes_per_token_layer,
                "workspace": resident["workspace"],  # the same, so that products are cut alike: the bits are those of a resident run
            },
            "cpu": {"expert_slots": host * slot_bytes(spec)},
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run gave. gates: what the next layer's router said at each layer, where the prefetcher asks for that."""

    job: CacheJob
    outcome: Outcome
    served: Served
    log: Log
    gates: Routing | None

    @property
    def tokens_per_s(self) -> float:
        return self.served.tokens / (self.outcome.run.makespan_ps / 1e12)


def run(
    job: CacheJob, store: Store, prompts: Sequence[Sequence[int]], *, keep_logits: bool = False, poison: bool = False,
    replay_routing: RoutingIndex | None = None, before: feed.Feed | None = None,
) -> Ran:  # fmt: skip
    """Run the job on this computer. before: a recorded decode, for policies that know the popularity or the future.

    Raises what `exec.session.run` raises; `exec.runtime.TaskFailed` names file and tensor where the checkpoint breaks.
    """
    caching = job.caching if before is None else study.prepare(job.caching, before, job.batch, None)
    scheduler = ExpertCache(job.model, Policy(batch=job.batch, microbatch=job.batch), caching, seed=job.seed)
    backend = PoolBackend(
        job.model, load_dense(store, job.model, ()), job.machine, job.needed(), job.requests, prompts, lengths=job.lengths,
        record_routing=True, replay_routing=replay_routing, keep_logits=keep_logits, poison=poison, store=store,
        next_gate=caching.prefetch == "next-gate",
    )  # fmt: skip
    for first in range(0, len(job.requests), job.batch):
        backend.prefill([r.request_id for r in job.requests[first : first + job.batch]])
    log, costs = Log(), CostModel(job.machine, job.model)
    with ThreadEngine(job.machine, backend, costs, job.to_decode) as engine:
        began = time.perf_counter()
        drive(scheduler, engine, log)
        wall_s = time.perf_counter() - began
    assert not scheduler.stopped, scheduler.stopped
    clock = "emulated" if any(job.machine.lane[n].paced_bytes_per_s for n in study.needed_lanes(caching)) else "measured"
    provenance = Provenance("recorded", f"routers of {job.model.name} under expert-cache, run on this computer", clock)
    assert backend.recorder is not None
    outcome = Outcome(
        clock=clock, run=engine.run(), tokens=backend.sequences.outputs(),
        logits={r: np.stack(rows) for r, rows in (backend.logits or {}).items() if rows},
        routing=backend.recorder.trace(job.model, provenance), peak_bytes=backend.peak_bytes(),
        planned_bytes={name: sum(consumers.values()) for name, consumers in job.needed().items()}, wall_s=wall_s,
    )  # fmt: skip
    gates = backend.gates.trace(job.model, provenance) if backend.gates is not None else None
    return Ran(job, outcome, scheduler.served, log, gates)


def twin(ran: Ran) -> study.Outcome:
    """The same decode on the simulated clock, its routers choosing what they chose in the run."""
    job = ran.job
    assert ran.outcome.routing is not None
    gates = None if ran.gates is None else feed.of(ran.gates)
    return study.simulate(job.model, job.machine, feed.of(ran.outcome.routing), job.caching, batch=job.batch, gates=gates)


def summary(ran: Ran) -> dict[str, Any]:
    """The object of `run --json`, with what the cache did."""
    job, s = ran.job, ran.served
    policy = {"batch": job.batch, "microbatch": job.batch}
    about = About(
        clock=ran.outcome.clock, routing="model", model=job.model.name, machine=job.machine, workload=job.workload,
        scheduler="expert-cache", policy=policy, peak_bytes=ran.outcome.peak_bytes,
        lower_bound_s=bound_s(ran.outcome, CostModel(job.machine, job.model), job.machine),
    )  # fmt: skip
    found = summarize(about, ran.outcome.run, job.to_decode, [n - 1 for n in job.lengths], ran.outcome.wall_s)
    c, each = job.caching, job.model.expert_bytes / max(1, s.tokens)
    return {
        **found, "evict": c.evict, "admit": c.admit, "prefetch": c.prefetch, "work": c.work, "capacity": c.capacity,
        "slots": c.capacity * job.model.moe_layers + c.slots_beyond(job.model), "host_experts": c.host,
        "hit_rate": s.hits / max(1, s.asked), "late": s.late / max(1, s.asked), "on_cpu": s.on_cpu / max(1, s.asked),
        "bytes_per_token": s.moved * each, "ahead_bytes_per_token": s.ahead * each, "disk_bytes_per_token": s.read * each,
        "prefetch_useful": s.right / s.guesses if s.guesses else None,
    }  # fmt: skip


def open_store(model: str, spec: ModelSpec) -> Store:
    """The checkpoint of `--model`, which must be a directory: experts are read from its files."""
    if not Path(model).is_dir():
        raise UserError(f"--model {model}: is no directory; experts are read from safetensors: a directory with them is needed")
    return Store(Path(model), spec)
