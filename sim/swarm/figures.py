"""What a study comes to: times, bytes, dollars, watts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.swarm.jobs import Job
from sim.swarm.server import Server
from sim.swarm.study import Finished, Study
from sim.tasks import PS_PER_S


def figures(design: str, done: Finished, study: Study) -> dict[str, Any]:
    """What a run comes to. Times in s; percentiles of answered requests."""
    server, tally = done.server, done.server.tally
    jobs = server.requests.jobs
    answered = [j for j in jobs.values() if j.answered >= 0]
    tokens = sum(j.output for j in answered)
    unanswered = len(jobs) - len(answered)
    under_way = unanswered if server.settings.duration_s is not None else 0
    cost = cost_usd(study, done.seconds) + tally.egress_usd
    energy = _energy_wh(study, server)
    return {
        "design": design, "requests": len(jobs), "answered": len(answered), "under_way": under_way, "lost": unanswered - under_way,
        "duplicated": sum(max(0, j.deliveries - 1) for j in answered), "seconds": done.seconds, "tokens": tokens,
        "tokens_per_s": tokens / done.seconds if done.seconds else 0.0,
        "ttft_s": _percentiles([_ttft_s(study, server, j) for j in answered]),
        "tpot_s": _percentiles([_tpot_s(j) for j in answered if j.output > 1]),
        "latency_s": _percentiles([(j.answered - j.arrival) / PS_PER_S for j in answered]),
        "floor_s_per_token": tally.floor_token_s / tally.tokens if tally.tokens else 0.0,
        "wire_bytes": {k: float(v) for k, v in sorted(tally.wire_bytes.items())},
        "cost_usd": cost, "usd_per_million_tokens": cost / tokens * 1e6 if tokens else None, "busy_energy_wh": energy,
        "carbon_g": _carbon_g(study, server),
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
    by_node = _node_wh(study, server)
    return None if by_node is None else float(by_node.sum())


def _node_wh(study: Study, server: Server) -> NDArray[np.float64] | None:
    plant = study.plant
    watts = [g.spec.watts for g in plant.cluster.gpu]
    if any(w is None for w in watts):
        return None
    per_node = np.zeros(len(plant.nodes))
    np.add.at(per_node, plant.node_of, np.array(watts, np.float64))
    return np.asarray(per_node * server.tally.meter.busy_s / 3600)


def _carbon_g(study: Study, server: Server) -> float | None:
    """CO2 equivalent of that energy by each region's grid; None where a region with GPUs states none."""
    plant, by_node = study.plant, _node_wh(study, server)
    grids = [plant.cluster.regions[r].carbon_g_per_kwh for r in plant.regions]
    if by_node is None or any(g is None for g in grids):
        return None
    return float((by_node / 1e3 * np.array(grids, np.float64)[plant.region_of]).sum())
