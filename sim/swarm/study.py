"""A study of a swarm: the design asked for and the two that a sane operator would run, on the same requests and troubles."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sim.drive import Log, drive
from sim.engines.run import Run
from sim.engines.simpy_engine import SimPyEngine
from sim.events import Request, Result
from sim.placement import Policy
from sim.swarm.dice import below
from sim.swarm.group import Job
from sim.swarm.plant import Plant
from sim.swarm.routes import Routes
from sim.swarm.server import Server, Settings
from sim.swarm.trouble import Trouble, boots, changes
from sim.tasks import PS_PER_S, Task
from traces.requests import Requests

DESIGNS = ("spread", "replicas", "edge")
DESIGN_WORDS = {"spread": "experts over all regions", "replicas": "a full replica per region", "edge": "replicas, edge redirection"}


@dataclass(frozen=True, eq=False, slots=True)
class Study:
    """What is simulated. spread_origins: requests come in evenly over all regions, not only at the coordinator."""

    plant: Plant
    routes: Routes
    policy: Policy
    requests: tuple[Request, ...]
    origins: tuple[str, ...]
    troubles: tuple[Trouble, ...] = ()


def requests_of(trace: Requests, limit: int | None = None, until_s: float | None = None) -> tuple[Request, ...]:
    """The trace's first requests, arriving when it says."""
    out = []
    for i in range(len(trace) if limit is None else min(limit, len(trace))):
        arrival = int(trace.arrival_ns[i]) * 1000
        if until_s is not None and arrival >= until_s * PS_PER_S:
            break
        out.append(Request(i, int(trace.prompt_tokens[i]), int(trace.output_tokens[i]), int(trace.output_tokens[i]), arrival))
    return tuple(out)


def origins_of(plant: Plant, trace: Requests, everywhere: bool, seed: int) -> tuple[str, ...]:
    """The node where each request comes in: that of its region where the trace tells one of the cluster's, else the coordinator, or
    evenly any region's first node."""
    fronts = {r: plant.cluster.nodes_of(r)[0] for r in plant.cluster.regions if plant.cluster.nodes_of(r)}
    here = plant.cluster.coordinator
    names = list(fronts.values())
    out = []
    for i in range(len(trace)):
        told = trace.region[i] if trace.region is not None else None
        drawn = names[below(len(names), seed, i, 7)] if everywhere else here
        out.append(fronts.get(told, drawn) if told is not None else drawn)
    return tuple(out)


@dataclass(frozen=True, eq=False, slots=True)
class Finished:
    """One design's run."""

    server: Server
    log: Log
    run: Run
    seconds: float
    wall_s: float


def simulate(study: Study, settings: Settings) -> Finished:
    """Run one design to its end. Raises UserError where the model does not fit."""
    began = time.perf_counter()
    plant = study.plant
    costs = plant.costs()
    server = Server(plant, study.routes, study.policy, settings, lambda number: study.origins[number])

    def outcome(task: Task) -> Result:
        if task.op != "report":
            return Result()
        node, now_s = task.work.variant, engine.now / PS_PER_S
        leaving = any(e.what == "preempt" and e.node == node and e.at_s - e.notice_s <= now_s < e.at_s for e in study.troubles)
        return Result(facts={"boot": boots(study.troubles, node, now_s), "leaving": leaving})

    engine = SimPyEngine(
        plant.lanes(), {}, costs, profile=costs, arrivals=study.requests, changes=changes(study.troubles, plant), outcomes=outcome
    )
    log = Log()
    drive(server, engine, log)
    end_s = max((e[0] for e in log.entries), default=0) / PS_PER_S
    if settings.duration_s is not None:
        end_s = min(end_s, settings.duration_s)
    return Finished(server, log, engine.run, end_s, time.perf_counter() - began)


def compare(study: Study, settings: Settings, tell: Callable[[str], None]) -> list[tuple[str, Finished | str]]:
    """The design asked for first, then the baselines; one that the model does not fit says so."""
    from sim.errors import UserError

    order = [settings.design, *(d for d in ("replicas", "edge") if d != settings.design)]
    out: list[tuple[str, Finished | str]] = []
    for design in order:
        tell(DESIGN_WORDS[design])
        try:
            out.append((design, simulate(study, replace(settings, design=design))))
        except UserError as e:
            if design == settings.design:
                raise
            out.append((design, str(e)))
    return out


# Figures --------------------------------------------------------------------------------------------


def figures(design: str, done: Finished, study: Study) -> dict[str, Any]:
    """What a run comes to. Times in s; percentiles of answered requests."""
    server, tally = done.server, done.server.tally
    answered = [j for j in server.jobs.values() if j.answered >= 0]
    tokens = sum(j.output for j in answered)
    unanswered = len(server.jobs) - len(answered)
    under_way = unanswered if server.settings.duration_s is not None else 0
    cost = cost_usd(study, done.seconds) + tally.egress_usd
    watts = _energy_wh(study, server)
    return {
        "design": design, "requests": len(server.jobs), "answered": len(answered), "under_way": under_way, "lost": unanswered - under_way,
        "duplicated": server.outcome.duplicates, "seconds": done.seconds, "tokens": tokens,
        "tokens_per_s": tokens / done.seconds if done.seconds else 0.0,
        "ttft_s": _percentiles([_ttft_s(study, server, j) for j in answered]),
        "tpot_s": _percentiles([_tpot_s(j) for j in answered if j.output > 1]),
        "latency_s": _percentiles([(j.answered - j.arrival) / PS_PER_S for j in answered]),
        "floor_s_per_token": tally.floor_token_s / tally.tokens if tally.tokens else 0.0,
        "wire_bytes": {k: float(v) for k, v in sorted(tally.wire_bytes.items())},
        "cost_usd": cost, "usd_per_million_tokens": cost / tokens * 1e6 if tokens else None, "busy_energy_wh": watts,
        "availability": len(answered) / len(server.jobs) if server.jobs else 1.0,
        "suspected": server.outcome.suspected, "rejoined": server.outcome.rejoined, "handed_over": server.outcome.handed_over,
        "rebalances": server.outcome.rebalances, "moves": sum(n for _, _, n in server.outcome.moves),
        "peak_memory_share": server.outcome.peak_share, "steps": tally.steps, "visits": tally.visits, "tasks": len(done.run.end_ps),
        "tokens_simulated": tally.tokens, "wall_s": done.wall_s, "log_digest": done.log.digest(),
    }  # fmt: skip


def _ttft_s(study: Study, server: Server, job: Job) -> float:
    """First token at the user's entry: sampled, and one way from the group's home."""
    home = next(g.home for g in server.groups if g.name == job.group)
    return (job.first - job.arrival) / PS_PER_S + study.plant.network.path(study.plant.nodes[home], job.origin).latency_s


def _tpot_s(job: Job) -> float:
    return (job.answered - job.first) / PS_PER_S / (job.output - 1)


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"mean": None, "p50": None, "p90": None, "p99": None}
    p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
    return {"mean": float(np.mean(values)), "p50": p50, "p90": p90, "p99": p99}


def cost_usd(study: Study, seconds: float) -> float:
    """Hours of all nodes while they are up, at the price of the time: `price` events change it. Nodes without a price cost nothing."""
    total = 0.0
    for name, node in study.plant.cluster.node.items():
        usd = node.group.price.usd_per_hour if node.group.price else 0.0
        at, up = 0.0, True
        for event in [e for e in study.troubles if e.node == name and e.at_s < seconds]:
            total += usd * (event.at_s - at) / 3600 * up
            at = event.at_s
            if event.what in ("crash", "preempt", "rejoin"):
                up = event.what == "rejoin"
            elif event.what == "price":
                assert event.usd_per_hour is not None
                usd = event.usd_per_hour
        total += usd * (seconds - at) / 3600 * up
    return total


def _energy_wh(study: Study, server: Server) -> float | None:
    """Board power of GPUs while their node works; None where a kind states no watts."""
    plant = study.plant
    watts = [g.spec.watts for g in plant.cluster.gpu]
    if any(w is None for w in watts):
        return None
    per_node = np.zeros(len(plant.nodes))
    np.add.at(per_node, plant.node_of, np.array(watts, np.float64))
    return float((per_node * server.tally.busy_s).sum() / 3600)
