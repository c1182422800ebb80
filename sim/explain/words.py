"""An explanation in words and as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sim.explain.elasticity import WORTH, Elasticity
from sim.explain.explanation import Explanation
from sim.explain.limits import LATENCY, WAITING, Limit
from sim.report.critical import Share


def sentence(e: Explanation) -> str:
    """What limits the run and what to buy, in one sentence."""
    top = e.by_limit[0]
    return f"{_limited(top, e.by_op)}; {_advice(top, e.elasticities)}{_not_worth(top, e.elasticities)}."


def _limited(top: Limit, by_op: Sequence[Share]) -> str:
    if top.resource == WAITING:
        return f"Limited by waiting for requests, {top.share:.0%} of the time"
    ops = [s.op for s in by_op if s.lane == top.lane and s.share > 0.05][:2]
    doing = f" ({', '.join(ops)})" if ops else ""
    binds = "the fixed latency of its ops" if top.resource == LATENCY else top.resource
    return f"Limited by lane {top.lane}{doing}: {top.share:.0%} of the critical path is its time on {binds}"


def _advice(top: Limit, found: Sequence[Elasticity]) -> str:
    parts = [e for e in found if e.upgrade.kind == "hardware" and e.gain >= WORTH]
    code = [e for e in found if e.upgrade.kind == "software" and e.gain >= WORTH]
    if not parts and not code:
        return "no single upgrade pays: change the batch or the scheduler"
    if not parts:
        return f"no part pays, but make {_gives(code[0])}"
    if code and code[0].gain > parts[0].gain + WORTH:
        return f"make {_gives(code[0])}, or buy {_gives(parts[0])}"
    said = f"buy {_gives(parts[0])}"
    own = next((e for e in code if e.upgrade.name == f"ops on {top.lane}" and top.reach < 0.5), None)
    if own is not None:
        said += f" or make {own.upgrade.name} faster, which reach {top.reach:.0%} of it ({own.gain:+.1%})"
    rest = [e for e in (*parts[1:], *code) if e.upgrade.name != f"ops on {top.lane}"]
    return said + (f"; then {_gives(max(rest, key=lambda e: e.gain))}" if rest else "")


def _not_worth(top: Limit, found: Sequence[Elasticity]) -> str:
    """Why what limits the run is not what to buy, where something else is."""
    own = next((e for e in found if e.upgrade.name == top.resource and e.gain < WORTH), None)
    if own is None or all(e.gain < WORTH for e in found):
        return ""
    return f"; {own.upgrade.factor - 1:+.0%} of {top.resource} alone gives {own.gain:+.1%}: other lanes' work takes nearly as long"


def _gives(e: Elasticity) -> str:
    what = e.upgrade.name if e.upgrade.kind == "hardware" else f"{e.upgrade.name} faster"
    return f"{what} ({e.upgrade.factor - 1:+.0%} gives {e.gain:+.1%} throughput)"


def as_data(e: Explanation) -> dict[str, Any]:
    """The object of `explain --json`. Times in seconds, gains and shares as fractions of 1."""
    s = e.outcome.summary
    return {
        **{name: s[name] for name in _KEPT},
        "limited_by": asdict(e.by_limit[0]),
        "sentence": sentence(e),
        "roofline": None if e.roofline is None else _roofline(e),
        "critical_path": {"by_op": [asdict(x) for x in e.by_op], "by_limit": [asdict(x) for x in e.by_limit]},
        "lanes": {name: {**asdict(t), "blocked_s": t.blocked_s} for name, t in e.lanes.items()},
        "lower_bound": {**asdict(e.bounds), "gap": e.bounds.gap(e.makespan_s)},
        "elasticities": [_elasticity(x) for x in e.elasticities],
        "schedule_reused": e.schedule_reused,
        "build_s": e.outcome.wall_s,
        "wall_s": e.wall_s,
    }


_KEPT = (
    "model", "machine", "workload", "scheduler", "policy", "clock", "sources", "makespan_s", "tokens_per_s", "generated_tokens", "tasks",
)  # fmt: skip


def _roofline(e: Explanation) -> dict[str, Any]:
    assert e.roofline is not None
    values = asdict(e.roofline)
    for row, op in zip(values["ops"], e.roofline.ops, strict=True):
        row["verdict"] = op.verdict
    return values


def _elasticity(x: Elasticity) -> dict[str, Any]:
    u = x.upgrade
    return {
        "name": u.name, "kind": u.kind, "factor": u.factor, "unit": u.unit, "before": u.before, "after": u.after,
        "tokens_per_s": x.tokens_per_s, "gain": x.gain, "elasticity": x.elasticity,
        "bottleneck_then": None if x.then is None else asdict(x.then), "most_gain": x.most,
        "bottleneck_at_most": None if x.most_then is None else asdict(x.most_then), "wall_s": x.wall_s,
    }  # fmt: skip
