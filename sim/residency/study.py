"""An expert cache on recorded routing: what it hits, what it moves, and how fast it decodes on a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sim.costs import CostModel
from sim.drive import Log, drive
from sim.engines.run import DONE, Run
from sim.errors import UserError
from sim.events import Result
from sim.machines.schema import Machine
from sim.models.spec import ModelSpec
from sim.residency import room
from sim.residency.feed import Feed
from sim.residency.prefetch import NEXT_GATE
from sim.residency.replay import events, keys_of, replay
from sim.schedulers.caching import Caching, Served
from sim.schedulers.expert_cache import ExpertCache
from sim.schedulers.expert_tasks import CPU, D2H, GPU, H2D, NVME
from sim.schedulers.policy import Policy
from sim.tasks import PS_PER_S, Task


class TraceOutcomes:
    """What the routers of a trace chose, each sequence by its own count of tokens; and, from a second trace, what the next
    layer's gate says."""

    def __init__(self, feed: Feed, gates: Feed | None = None) -> None:
        self._feed, self._gates = feed, gates
        self._at = [0] * len(feed.sequences)
        self._column = {layer: i for i, layer in enumerate(feed.layers)}

    def __call__(self, task: Task) -> Result:
        if task.op == "sample":
            for r in task.requests:
                self._at[r] += 1
            return Result(ended=tuple(r for r in task.requests if self._at[r] == len(self._feed.sequences[r])))
        if task.op != "gate":
            return Result()
        column = self._column[task.layer]
        facts = {}
        if self._gates is not None and column + 1 < len(self._feed.layers):
            facts = {NEXT_GATE: self._rows(self._gates, task.requests, column + 1)}
        return Result(experts=self._rows(self._feed, task.requests, column), facts=facts)

    def _rows(self, feed: Feed, requests: tuple[int, ...], column: int) -> tuple[int, ...]:
        rows = [0] * feed.shape.experts
        for r in requests:
            for e in feed.sequences[r].experts[self._at[r], column].tolist():
                rows[e] += 1
        return tuple(rows)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A simulated decode. refusals: why experts were not fetched ahead, by reason. governor: its decisions (step, on)."""

    caching: Caching
    served: Served
    run: Run
    log: Log
    costs: CostModel
    seconds: float
    refusals: Mapping[str, int]
    governor: tuple[tuple[int, bool], ...]

    @property
    def tokens_per_s(self) -> float:
        return self.served.tokens / self.seconds

    def rate_after(self, step: int) -> float:
        """Tokens/s once so many steps are done, when the cache is warm."""
        made = [s for s in self.run.sources if isinstance(s, Task) and s.op == "sample"]  # one ends each step
        ends = self.run.end_ps[np.searchsorted(self.run.number, [s.number for s in made])]
        began = int(ends[step - 1]) if step else 0
        return sum(s.work.sequences for s in made[step:]) / ((int(ends[-1]) - began) / PS_PER_S)


def prepare(caching: Caching, feed: Feed, batch: int, limit: int | None) -> Caching:
    """The caching with what its policy must know beforehand: the popularity, or the future."""
    if caching.evict == "static":
        return replace(caching, popularity=feed.popularity())
    if caching.evict == "belady":
        return replace(caching, asked=tuple(keys_of(events(feed, batch, limit), feed.shape.experts)))
    return caching


def simulate(
    model: ModelSpec, machine: Machine, feed: Feed, caching: Caching, *, batch: int = 1, limit: int | None = None, gates: Feed | None = None
) -> Outcome:
    """Decode the feed on the machine's timeline, `limit` steps at most.

    Raises `UserError` where the machine lacks a lane or memory for it.
    """
    from sim.engines.simpy_engine import SimPyEngine  # numba

    check(model, machine, feed, caching, batch)
    scheduler = ExpertCache(model, Policy(batch=batch, microbatch=batch), prepare(caching, feed, batch, limit), steps=limit)
    costs, log = CostModel(machine, model), Log()
    outcomes = TraceOutcomes(feed, gates)
    engine = SimPyEngine(costs.lanes, machine.pools, costs, profile=costs, arrivals=feed.requests(), outcomes=outcomes)
    drive(scheduler, engine, log)
    assert not scheduler.stopped, scheduler.stopped
    run = engine.run
    turned = () if scheduler.governor is None else tuple(scheduler.governor.turned)
    done = int(run.end_ps[run.status == DONE].max(initial=0))
    return Outcome(caching, scheduler.served, run, log, costs, done / PS_PER_S, dict(scheduler.table.refusals), turned)


def needed_lanes(caching: Caching) -> tuple[str, ...]:
    cpu = (D2H, CPU) if caching.work != "gpu" else ()
    return (GPU, H2D, *cpu, *((NVME,) if caching.host is not None else ()))


def check(model: ModelSpec, machine: Machine, feed: Feed, caching: Caching, batch: int) -> None:
    """Raises `UserError` where a lane is missing, or the experts that are to stay do not fit beside everything else."""
    for lane in needed_lanes(caching):
        if lane not in machine.lane:
            raise UserError(f"--machine {machine.name}: no lane {lane!r}; it has {', '.join(machine.lane)}")
    room.check(model, machine, feed, caching, batch)


class Study:
    """What one command prints: the same trace, batch and steps for every combination.

    A machine is optional: without one there are hit rates and bytes, and no times.
    """

    def __init__(
        self, model: ModelSpec, machine: Machine | None, feed: Feed, *, batch: int = 1, limit: int | None = None, gates: Feed | None = None
    ) -> None:
        self.model, self.machine, self.feed, self.batch, self.limit, self.gates = model, machine, feed, batch, limit, gates
        asked = [len(experts) for _, experts, _ in events(feed, batch, limit)]
        self.working_set = sum(asked) / len(asked)
        """Distinct experts that one step asks of one layer, on average."""
        self.tokens = sum(len(step.rows) for step in feed.steps(batch, limit))
        self._bounds: dict[tuple[int, bool, str], tuple[float, float]] = {}

    def hits(self, caching: Caching) -> tuple[float, float]:
        """(hit rate, bytes a token) without a clock: no prefetch, every miss fetched."""
        table = prepare(caching, self.feed, self.batch, self.limit).table(self.model)
        tally = replay(events(self.feed, self.batch, self.limit), table)
        return tally.hit_rate, tally.misses * self.model.expert_bytes / self.tokens

    def bound(self, caching: Caching) -> tuple[float, float]:
        """Belady's figures with the same capacity; where admission is no must, with the choice to admit."""
        admit = "always" if caching.admit == "always" else "contest"
        key = (caching.capacity, caching.whole, admit)
        if key not in self._bounds:
            self._bounds[key] = self.hits(replace(caching, evict="belady", admit=admit))
        return self._bounds[key]

    def row(self, caching: Caching) -> dict[str, Any]:
        """One combination: what was asked for, and what came of it."""
        values: dict[str, Any] = {
            "capacity": caching.capacity, "scope": "global" if caching.whole else "layer", "evict": caching.evict, "admit": caching.admit,
            "prefetch": caching.prefetch, "work": caching.work,
        }  # fmt: skip
        values |= self._timeless(caching) if self.machine is None else self._timed(caching, self.machine)
        values["working_set_over_capacity"] = self.working_set / caching.capacity
        values["belady_hit_rate"], values["belady_bytes_per_token"] = self.bound(caching)
        return values

    def _timeless(self, caching: Caching) -> dict[str, Any]:
        rate, moved = self.hits(caching)
        return {"hit_rate": rate, "bytes_per_token": moved, "tokens_per_s": None, "prefetch_useful": None}

    def _timed(self, caching: Caching, machine: Machine) -> dict[str, Any]:
        done = simulate(self.model, machine, self.feed, caching, batch=self.batch, limit=self.limit, gates=self.gates)
        s, size = done.served, self.model.expert_bytes
        return {
            "hit_rate": s.hits / s.asked, "bytes_per_token": s.moved * size / s.tokens, "tokens_per_s": done.tokens_per_s,
            "prefetch_useful": s.right / s.guesses if s.guesses else None, "late": s.late / s.asked, "on_cpu": s.on_cpu / s.asked,
            "ahead_bytes_per_token": s.ahead * size / s.tokens, "disk_bytes_per_token": s.read * size / s.tokens,
            "governor": [{"step": step, "prefetch": on} for step, on in done.governor],
        }  # fmt: skip
