"""What a study comes to: times, bytes, dollars, watts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.swarm.fleet.bill import Bill
from sim.swarm.fleet.policy import name_of
from sim.swarm.jobs import Job
from sim.swarm.plant import Plant
from sim.swarm.server import Server
from sim.swarm.study import Finished, Study, words
from sim.tasks import PS_PER_S


def figures(design: str, done: Finished, study: Study) -> dict[str, Any]:
    """What a run comes to. Times in s; percentiles of answered requests."""
    server, tally = done.server, done.server.tally
    jobs = server.requests.jobs
    answered = [j for j in jobs.values() if j.answered >= 0]
    tokens = sum(j.output for j in answered)
    unanswered = len(jobs) - len(answered)
    under_way = unanswered if server.settings.duration_s is not None else 0
    bill = Bill.of(study.plant, study.troubles, done.seconds, server.fleet.pool if server.fleet else None)
    cost = bill.usd + tally.egress_usd
    return {
        "design": design, "words": words(server.settings), "requests": len(jobs), "answered": len(answered),
        "under_way": under_way, "lost": unanswered - under_way,
        "duplicated": sum(max(0, j.deliveries - 1) for j in answered), "seconds": done.seconds, "tokens": tokens,
        "tokens_per_s": tokens / done.seconds if done.seconds else 0.0,
        "ttft_s": _percentiles([_ttft_s(study, j) for j in answered]),
        "tpot_s": _percentiles([_tpot_s(j) for j in answered if j.output > 1]),
        "latency_s": _percentiles([(j.answered - j.arrival) / PS_PER_S for j in answered]),
        "floor_s_per_token": tally.floor_token_s / tally.tokens if tally.tokens else 0.0,
        "wire_bytes": {k: float(v) for k, v in sorted(tally.wire_bytes.items())},
        "cost_usd": cost, "usd_per_million_tokens": cost / tokens * 1e6 if tokens else None,
        **_fleet(server, bill), **_energy(server, bill),
        "availability": len(answered) / len(jobs) if jobs else 1.0,
        "suspected": server.outcome.suspected, "rejoined": server.outcome.rejoined, "handed_over": server.outcome.handed_over,
        "rebalances": server.outcome.rebalances, "moves": sum(n for _, _, n in server.outcome.moves),
        **_control(server), **_gossip(server), "restored_bytes": server.shelves.restored_bytes,
        "from_store_bytes": server.shelves.from_store_bytes, "deduplicated_bytes": server.shelves.deduplicated_bytes,
        "discarded": server.outcome.discarded, "peak_memory_share": server.outcome.peak_share,
        "steps": tally.steps, "visits": tally.visits, "tasks": len(done.run.end_ps),
        "tokens_simulated": tally.tokens, "wall_s": done.wall_s, "log_digest": done.log.digest(),
    }  # fmt: skip


def _control(server: Server) -> dict[str, Any]:
    control = server.control
    return {
        "control_members": list(control.names), "control_tolerates": control.committee.f, "commits": len(control.waits_s),
        "superseded": server.outcome.superseded, "quorum_s": _percentiles(control.waits_s), "control_messages": control.mail.sent,
        "control_bytes": control.mail.bytes, "views": max(r.view for r in control.replicas) + 1,
    }  # fmt: skip


def _gossip(server: Server) -> dict[str, Any]:
    mail = server.views.mail
    return {
        "gossip_messages": mail.sent, "gossip_bytes": mail.bytes, "gossip_lost": mail.lost, "view_age_s": server.views.mean_age_s,
    }  # fmt: skip


def _ttft_s(study: Study, job: Job) -> float:
    """First token at the user's entry: sampled, and one way from the home that its group had then."""
    home = study.plant.nodes[job.first_home]
    return (job.first - job.arrival) / PS_PER_S + study.plant.network.path(home, job.origin).latency_s


def _tpot_s(job: Job) -> float:
    return (job.answered - job.first) / PS_PER_S / (job.output - 1)


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"mean": None, "p50": None, "p90": None, "p99": None}
    p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
    return {"mean": float(np.mean(values)), "p50": p50, "p90": p90, "p99": p99}


def _fleet(server: Server, bill: Bill) -> dict[str, Any]:
    """What was rented, and what of it was for nothing; moves between prices and what they cost."""
    fleet = server.fleet
    moves = fleet.moves.done if fleet is not None and fleet.moves is not None else []
    return {
        "autoscale": name_of(server.settings.autoscale), "arbitrage": server.settings.arbitrage is not None,
        "node_hours": bill.node_hours, "scale_ups": fleet.ups if fleet else 0, "scale_downs": fleet.downs if fleet else 0,
        "wasted_starts": sum(r.wasted for r in fleet.pool.rents) if fleet else 0,
        "price_moves": len(moves), "migration_usd": sum(m.cost_usd(bill) for m in moves),
    }  # fmt: skip


def _energy(server: Server, bill: Bill) -> dict[str, Any]:
    """Wh of GPUs while their node works and while it is up with nothing to do, and the CO2 equivalent of both by each region's grid;
    None where a GPU kind states no such watts, or a region with GPUs no grid. carbon_g leaves idle power out where it is not known."""
    plant = server.plant
    busy_s = server.tally.meter.busy_s
    idle_s = np.maximum(np.array([bill.up_s(n) for n in plant.nodes]) - busy_s, 0.0)
    busy_wh = _node_wh(plant, [g.spec.watts for g in plant.cluster.gpu], busy_s)
    idle_wh = _node_wh(plant, [g.spec.idle_watts for g in plant.cluster.gpu], idle_s)
    grids = [plant.cluster.regions[r].carbon_g_per_kwh for r in plant.regions]
    carbon = None
    if busy_wh is not None and not any(g is None for g in grids):
        total = busy_wh + (idle_wh if idle_wh is not None else 0.0)
        carbon = float((total / 1e3 * np.array(grids, np.float64)[plant.region_of]).sum())
    return {
        "busy_energy_wh": None if busy_wh is None else float(busy_wh.sum()),
        "idle_energy_wh": None if idle_wh is None else float(idle_wh.sum()), "carbon_g": carbon,
    }  # fmt: skip


def _node_wh(plant: Plant, watts: Sequence[float | None], seconds: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Of so many seconds of each node [nodes]; watts of each GPU, None where one is not stated."""
    if any(w is None for w in watts):
        return None
    per_node = np.zeros(len(plant.nodes))
    np.add.at(per_node, plant.node_of, np.array(watts, np.float64))
    return np.asarray(per_node * seconds / 3600)
