"""A choice of expert cache in words, and as data."""

from __future__ import annotations

from typing import Any

from sim.residency.choose import FACTOR, Choice, Trial
from sim.residency.room import Room

HELPS = 0.03
"""A part that, twice as fast, gives less than this is no limit."""


def sentences(choice: Choice, room: Room | None) -> list[str]:
    """What was chosen and why. room: None where budgets were given and not derived from a machine."""
    return [*([] if room is None else [_fitting(room)]), _chosen(choice), _work(choice), _sizes(choice), _limit(choice)]


def _fitting(r: Room) -> str:
    left = r.usable - r.dense - r.kv - r.staging
    host = "holds all experts" if r.all_in_host else f"holds {r.host} of {r.layers * r.experts} experts, the rest is on disk"
    return (
        f"Fits: {_gb(r.usable)} usable less {_gb(r.dense)} of weights that every token needs, {_gb(r.kv)} of KV cache and "
        f"{_gb(r.staging)} of slots for visits leave {_gb(left)}: {r.fits} of {r.experts} experts in each of {r.layers} layers, "
        f"{r.expert / 1e6:.1f} MB each; host memory {host}."
    )


def _chosen(c: Choice) -> str:
    b = c.best.caching
    scope = "shared by the layers" if b.whole else "for each layer"
    return (
        f"Choice: keep {b.capacity} ({scope}), evict {b.evict}, admit {b.admit}, prefetch {b.prefetch}, work {b.work}: "
        f"{rate(c.best.tokens_per_s)} tokens/s, hit rate {c.best.hit_rate:.3f}; "
        f"the fastest of {c.tried} combinations that were simulated, with the tables that hit most of {c.replayed}."
    )


def _work(c: Choice) -> str:
    each = sorted(c.rivals.items(), key=lambda item: -item[1].tokens_per_s)
    return "Misses, best of each: " + "; ".join(f"{work} {rate(t.tokens_per_s)} (over {t.steps} steps)" for work, t in each) + "."


def _sizes(c: Choice) -> str:
    each = ", ".join(f"{t.caching.capacity}: {rate(t.tokens_per_s)}" for t in c.sizes)
    near = min(t.caching.capacity for t in c.sizes if t.tokens_per_s >= 0.99 * c.best.tokens_per_s)
    last = f"; the last one of each layer buys {c.last_slot:+.2g}" if c.last_slot else ""
    return f"Which N, in tokens/s: {each}{last}; within 1 % of the best from {near} on."


def _limit(c: Choice) -> str:
    gains = {name: value / c.best.tokens_per_s - 1 for name, value in c.faster.items()}
    helpful = [f"{name} {gain:+.0%}" for name, gain in gains.items() if gain >= HELPS]
    if not helpful:
        return f"Limit: no single part; none gives {HELPS:.0%} if it is {FACTOR:g} times as fast (latencies, or several in turn)."
    return f"Limit: {next(iter(gains))}; {FACTOR:g} times as fast gives: {', '.join(helpful)}."


def rate(value: float) -> str:
    """Tokens/s in three digits, without an exponent."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def _gb(value: float) -> str:
    return f"{value / 1e9:.2f} GB"


def as_data(choice: Choice, room: Room | None) -> dict[str, Any]:
    c = choice
    return {
        "best": _trial(c.best), "replayed": c.replayed, "tried": c.tried, "rivals": {work: _trial(t) for work, t in c.rivals.items()},
        "sizes": [_trial(t) for t in c.sizes], "last_slot_tokens_per_s": c.last_slot, "twice_as_fast": c.faster,
        "room": None if room is None else {
            "usable_bytes": room.usable, "dense_bytes": room.dense, "kv_bytes": room.kv, "staging_bytes": room.staging,
            "expert_bytes": room.expert, "layers": room.layers, "fits": room.fits, "host_experts": room.host,
        },
        "explanation": sentences(c, room),
    }  # fmt: skip


def _trial(t: Trial) -> dict[str, Any]:
    c = t.caching
    return {
        "capacity": c.capacity, "scope": "global" if c.whole else "layer", "evict": c.evict, "admit": c.admit, "prefetch": c.prefetch,
        "work": c.work, "steps": t.steps, "tokens_per_s": t.tokens_per_s, "hit_rate": t.hit_rate,
    }  # fmt: skip
