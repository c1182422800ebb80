"""Price traces as things that happen to nodes: `price` events, and pre-emption where a price passes the bid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from sim.clusters.importers.spot_prices import Quote
from sim.clusters.schema import NodeGroup
from sim.errors import UserError
from sim.swarm.plant import Plant
from sim.swarm.trouble import MOST_S, Trouble

NOTICE_S = 120.0
"""From a pre-emption's notice to the end (AWS' two minutes)."""
LAST_S = MOST_S - NOTICE_S - 1.0
"""After this no step counts: what it leads to would come too late for any study."""

Steps = Sequence[tuple[float, float]]
"""(s since the study's start, $ an hour), ascending; the first one at 0."""


def steps_of(plant: Plant, quotes: Sequence[Quote], start_s: float | None = None) -> dict[str, Steps]:
    """What each node costs over time, for nodes whose place and instance the trace has.

    start_s: the trace's time at which the study begins; None: the first at which all those nodes have a price. A node without a price
    yet at that time costs what it does first. Raises `UserError` where the trace has none of the cluster's, or none around `start_s`.
    """
    found = {n: q for n in plant.nodes if (q := _quotes(plant.cluster.node[n].group, quotes))}
    if not found:
        places = ", ".join(sorted({q.place for q in quotes})[:6])
        kinds = ", ".join(sorted({q.instance for q in quotes})[:6])
        raise UserError(
            f"--prices: prices are of {places} for {kinds}; no node of {plant.cluster.name} is of such a zone or region, and of "
            "such a GPU kind or instance"
        )
    _check_start(start_s, [q for mine in found.values() for q in mine])
    begin = max(q[0].at_s for q in found.values()) if start_s is None else start_s
    return {n: _steps(q, begin) for n, q in found.items()}


def _check_start(start_s: float | None, quotes: Sequence[Quote]) -> None:
    first, last = min(q.at_s for q in quotes), max(q.at_s for q in quotes)
    if start_s is not None and not first <= start_s <= last:
        span = f"{_said(first)} to {_said(last)}"
        raise UserError(f"--prices-from: is {_said(start_s)}; the cluster's prices are from {span}: a time between is needed")


def _said(at_s: float) -> str:
    """As a date where it can be one, else as seconds."""
    return datetime.fromtimestamp(at_s, UTC).isoformat() if 1e8 <= at_s < 1e11 else f"{at_s:.12g} s"


def _quotes(group: NodeGroup, quotes: Iterable[Quote]) -> list[Quote]:
    """Of the node's own zone where the trace has it, else of its region."""
    mine = [q for q in quotes if q.instance in (group.instance, group.gpu)]
    zones = {group.zone, f"{group.region}{group.zone}", f"{group.region}-{group.zone}"} if group.zone else set[str]()
    return [q for q in mine if q.place in zones] or [q for q in mine if q.place == group.region]


def _steps(quotes: Sequence[Quote], begin: float) -> Steps:
    before = [q for q in quotes if q.at_s <= begin]
    first = (before[-1] if before else quotes[0]).usd_per_hour
    later = [(q.at_s - begin, q.usd_per_hour) for q in quotes if q.at_s > begin]
    out = [(0.0, first)]
    for at, usd in later:
        if usd != out[-1][1]:
            out.append((at, usd))
    return out


def events(plant: Plant, steps: dict[str, Steps], bid: float | None = None, until_s: float | None = None) -> list[Trouble]:
    """What the trace does to the nodes. bid: the share of a node's list price above which it is taken away, with notice; it can be
    had again, as another machine, once its price is at the bid or below. Nodes without a list price are never taken away. until_s: steps
    from then on are left out; None: those that no study can last to."""
    out: list[Trouble] = []
    end_s = LAST_S if until_s is None else min(until_s, LAST_S)
    for node, found in steps.items():
        price = plant.cluster.node[node].group.price
        limit = bid * price.usd_per_hour if bid is not None and price else None
        mine = [s for s in found if s[0] < end_s]
        out += [Trouble(at_s=at, what="price", node=node, usd_per_hour=usd) for at, usd in mine]
        out += _taken(node, mine, limit) if limit is not None else []
    return out


def _taken(node: str, steps: Steps, limit: float) -> list[Trouble]:
    out: list[Trouble] = []
    gone_s: float | None = None
    for at, usd in steps:
        if usd > limit and gone_s is None:
            gone_s = at + NOTICE_S if at else 0.0
            out.append(Trouble(at_s=gone_s, what="preempt", node=node, notice_s=NOTICE_S if at else 0.0))
        elif usd <= limit and gone_s is not None:
            out.append(Trouble(at_s=max(at, gone_s + 1.0), what="rejoin", node=node))
            gone_s = None
    return out
