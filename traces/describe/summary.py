"""The figures of a trace file, by its kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.describe import arrivals, balance, drift, lanes, locality, prediction
from traces.describe.tokens import Tokens, tokens_of
from traces.errors import TraceError
from traces.files import Provenance
from traces.load import read_load
from traces.requests import read_requests
from traces.routing_file import read_routing
from traces.scan import expert_load, kind_of, routing_header
from traces.timeline import read_timeline

BATCHES = (8, 32, 128)
MOST_ROWS = 4_000_000
"""Rows of a routing trace that are held in memory; of a longer one, the locality is that of its first rows."""


@dataclass(frozen=True, eq=False, slots=True)
class Description:
    """Figures of a trace: `figures` as JSON can hold them, `arrays` what the plots need beside."""

    path: Path
    kind: str
    provenance: Provenance
    figures: dict[str, Any]
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """One object: what the trace is, where it comes from, its figures. NaN becomes null."""
        p = self.provenance
        about = {"file": str(self.path), "kind": self.kind, "made": p.made, "origin": p.origin, "clock": p.clock, "command": p.command}
        plain: dict[str, Any] = _plain({**about, "metadata": dict(p.facts), **self.figures})
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def describe(path: str | Path, gpus: int = 8) -> Description:
    """Figures of a trace file; `gpus`: over how many the experts are spread for the balancedness."""
    path = Path(path)
    kinds: dict[str, Callable[[Path, int], Description]] = {
        "routing": _routing, "load": _load, "requests": _requests, "timeline": _timeline,
    }  # fmt: skip
    if gpus < 1:
        raise TraceError(f"--gpus: has {gpus}; must be 1 or more")
    kind = kind_of(path)
    if kind not in kinds:
        raise TraceError(f"{path}: metadata tandem.kind: is {kind!r}; must be one of {', '.join(kinds)}")
    return kinds[kind](path, gpus)


def load_figures(counts: NDArray[np.int64], gpus: int) -> dict[str, Any]:
    """Skew and balance of a load [layers, experts]: mean over the layers that were used, the worst layer, and each layer."""
    used = counts[counts.sum(axis=1) > 0]
    if not len(used):
        return {}
    skew, spread = balance.max_over_mean(used), balance.balancedness(used, gpus)
    return {
        "max_over_mean": skew.mean(), "max_over_mean_worst": skew.max(), "gini": balance.gini(used).mean(),
        "log_spread": balance.log_spread(used).mean(), "entropy": balance.entropy(used).mean(), "gpus": gpus,
        "balancedness": spread.mean(), "balancedness_by_layer": spread, "max_over_mean_by_layer": skew,
        "never_used": int((used == 0).sum()),
    }  # fmt: skip


def _routing(path: Path, gpus: int) -> Description:
    shape, provenance, rows = routing_header(path)
    counts = expert_load(path)
    held = read_routing(path, MOST_ROWS)
    tokens = tokens_of(held)
    seen = tokens.take(tokens.decode) if tokens.decode.any() else tokens
    figures: dict[str, Any] = {
        "rows": rows, "model": shape.model, "layers": shape.layers, "experts": shape.experts, "k": shape.k,
        "requests": len(np.unique(held.request_id)), "tokens": len(tokens), "tokens_left_out": tokens.left_out,
        "decode_tokens": int(tokens.decode.sum()), "rows_held": len(held), "load": load_figures(counts, gpus),
    }  # fmt: skip
    arrays: dict[str, NDArray[Any]] = {"counts": counts}
    if len(seen):
        figures |= token_figures(seen, gpus) | {"locality_of": "decode tokens" if tokens.decode.any() else "prefill tokens"}
        arrays |= {"layers": seen.layers, "independent_sets": locality.independent_working_sets(seen)}
    if tokens.decode.any() and not tokens.decode.all():
        figures["prefill_decode_correlation"] = drift.correlation(tokens.take(~tokens.decode).counts(), seen.counts())
    figures["lengths"] = _lengths(tokens)
    if np.isfinite(held.weights).all(axis=1).any():
        figures["mean_weight_by_rank"] = np.nanmean(held.weights, axis=0)
    return Description(path, "routing", provenance, figures, arrays)


def token_figures(tokens: Tokens, gpus: int) -> dict[str, Any]:
    """Everything that needs whole tokens: overlap, working sets, prediction, co-activation, drift, batches."""
    shared, chance = locality.overlap(tokens), locality.independent_overlap(tokens)
    markov, popular = prediction.next_layer_recall(tokens)
    strength, pairs = prediction.coactivation(tokens)
    parts = drift.between(drift.in_parts(tokens))
    return {
        "overlap": {"mean": shared.mean(), "independent": chance.mean(), "by_layer": shared, "independent_by_layer": chance},
        "working_set": dict(zip(map(str, locality.WINDOWS), locality.working_sets(tokens), strict=True)),
        "next_layer_recall": {
            "markov": _mean(markov), "popularity": _mean(popular), "markov_by_layer": markov, "popularity_by_layer": popular,
        },
        "coactivation": {"strength": _mean(strength), "by_layer": strength, "strongest_pairs": pairs},
        "drift": {"first_to_last_quarter": parts[0, -1], "next_quarter": _mean(np.diag(parts, 1)), "quarters": parts},
        "batches_of_random_tokens": locality.batch_effect(tokens, BATCHES, gpus),
    }  # fmt: skip


def _mean(values: NDArray[np.float64]) -> float:
    good = values[np.isfinite(values)]
    return float(good.mean()) if len(good) else float("nan")


def _lengths(tokens: Tokens) -> dict[str, Any]:
    """Tokens of each request that were recorded, by phase."""
    sequence = tokens.sequence()
    requests = int(sequence[-1]) + 1 if len(sequence) else 0
    found = {}
    for name, rows in (("prefill", ~tokens.decode), ("decode", tokens.decode)):
        if rows.any():
            found[f"{name}_tokens_per_request"] = arrivals.distribution(np.bincount(sequence[rows], minlength=requests))
    return found


def _load(path: Path, gpus: int) -> Description:
    load = read_load(path)
    counts = load.counts
    windows = drift.between(counts) if 1 < len(counts) <= 64 else np.zeros((0, 0))
    figures: dict[str, Any] = {
        "rows": int((counts > 0).sum()), "windows": counts.shape[0], "layers": counts.shape[1], "experts": counts.shape[2],
        "activations": int(counts.sum()), "load": load_figures(counts.sum(axis=0), gpus),
    }  # fmt: skip
    if len(counts) > 1:
        per = [load_figures(c, gpus) for c in counts]
        names = ("max_over_mean", "gini", "log_spread", "entropy", "balancedness")
        figures["by_window"] = [{n: p.get(n) for n in names} for p in per]
        figures["drift"] = {"first_to_last": drift.correlation(counts[0], counts[-1]), "windows": windows}
    named = load.provenance.facts.get("window_names", "").split(",")
    names_of = named if len(named) == len(counts) else [str(i) for i in range(len(counts))]
    return Description(path, "load", load.provenance, figures, {"counts": counts, "drift": windows}, {"windows": names_of})


def _requests(path: Path, gpus: int) -> Description:
    r = read_requests(path)
    figures: dict[str, Any] = {
        "rows": len(r), "prompt_tokens": arrivals.distribution(r.prompt_tokens), "output_tokens": arrivals.distribution(r.output_tokens),
        "total_prompt_tokens": int(r.prompt_tokens.sum(dtype=np.int64)), "total_output_tokens": int(r.output_tokens.sum(dtype=np.int64)),
        "arrivals": arrivals.burstiness(r.arrival_ns),
    }  # fmt: skip
    if r.prefix_hashes is not None:
        figures["prefixes"] = arrivals.shared_prefixes(r.prefix_hashes)
    if r.region is not None:
        names, numbers = np.unique([x or "" for x in r.region], return_counts=True)
        figures["regions"] = dict(zip(names.tolist(), numbers.tolist(), strict=True))
    arrays: dict[str, NDArray[Any]] = {"arrival_ns": r.arrival_ns, "prompt_tokens": r.prompt_tokens, "output_tokens": r.output_tokens}
    return Description(path, "requests", r.provenance, figures, arrays)


def _timeline(path: Path, gpus: int) -> Description:
    t = read_timeline(path)
    status = np.bincount(t.status, minlength=len(t.statuses)) if len(t) else np.zeros(len(t.statuses), np.int64)
    names, shares = lanes.activity(t)
    figures: dict[str, Any] = {
        "rows": len(t), "makespan_s": t.makespan_ps / 1e12, "status": dict(zip(t.statuses, status.tolist(), strict=True)),
        "decode_steps": int(max(0, t.step.max(initial=0))), "ranks": int(t.rank.max(initial=-1)) + 1,
        "lanes": lanes.lanes(t), "ops": lanes.ops(t),
    }  # fmt: skip
    return Description(path, "timeline", t.provenance, figures, {"activity": shares}, {"lanes": names})
