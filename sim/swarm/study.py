"""A study of a swarm: one design serves requests on a cluster, with what goes wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from sim.drive import Log, drive
from sim.engines.run import Run
from sim.engines.simpy_engine import SimPyEngine
from sim.errors import UserError
from sim.events import Request, Result
from sim.placement import Policy
from sim.swarm.dice import below
from sim.swarm.fleet.fleet import MARKET
from sim.swarm.fleet.policy import name_of
from sim.swarm.mail import OP, losses
from sim.swarm.plant import Plant
from sim.swarm.routes import Routes
from sim.swarm.server import Server
from sim.swarm.settings import Settings
from sim.swarm.trouble import Trouble, changes, market, told
from sim.tasks import PS_PER_S, Task
from traces.requests import Requests

LOSSY = (OP, "forward", "answer", "load")
"""Messages that a network may lose."""
DESIGN_WORDS = {
    "spread": "experts over all regions", "replicas": "a full replica per region", "edge": "replicas, edge redirection",
    "nodes": "a full replica per node",
}  # fmt: skip
DESIGNS = tuple(DESIGN_WORDS)


def words(settings: Settings) -> str:
    """What a design is called where it stands beside others."""
    scaled = "" if settings.autoscale is None else f", {name_of(settings.autoscale)}"
    return DESIGN_WORDS[settings.design] + scaled + (", moving to cheaper nodes" if settings.arbitrage is not None else "")


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


def check_requests(study: Study, server: Server) -> None:
    """Raises UserError for what would never end, or would not fit into any group's memory."""
    if not study.requests and server.settings.duration_s is None:
        raise UserError("--requests: there are none, and no --duration; the study would never end")
    most = max(study.plant.kv_tokens(g.home) for g in server.groups)
    for r in study.requests:
        if r.prompt_tokens + r.max_output_tokens > most:
            shown = f"{r.prompt_tokens:,} tokens of prompt and {r.max_output_tokens:,} of output"
            raise UserError(f"--requests: request {r.request_id} has {shown}; the KV cache of a group holds {most:,} at most")


def simulate(study: Study, settings: Settings, prepare: Callable[[Server], None] = lambda server: None) -> Finished:
    """Run one design to its end; `prepare` sees the scheduler before it starts. Raises UserError where the model or a
    request does not fit."""
    began = time.perf_counter()
    plant = study.plant
    costs = plant.costs()
    server = Server(plant, study.routes, study.policy, settings, lambda number: study.origins[number])

    lost = losses(plant.network, settings.seed, settings.loss, LOSSY)

    def outcome(task: Task) -> Result:
        """What a node's own alarm tells it of its machine, what the market tells, and which messages are lost."""
        if task.op == MARKET:
            return Result(facts=market(study.troubles, plant, engine.now / PS_PER_S))
        if task.op != "timer" or not task.work.variant:
            return lost(task)
        return Result(facts=told(study.troubles, task.work.variant, engine.now / PS_PER_S))

    check_requests(study, server)
    prepare(server)
    engine = SimPyEngine(
        plant.lanes(), {}, costs, profile=costs, arrivals=study.requests, changes=changes(study.troubles, plant), outcomes=outcome
    )
    log = Log()
    drive(server, engine, log)
    assert server.ended_at is not None, "nothing is open, and the study is not over"
    end_s = server.ended_at / PS_PER_S
    if settings.duration_s is not None:
        end_s = min(end_s, settings.duration_s)
    return Finished(server, log, engine.run, end_s, time.perf_counter() - began)
