"""Replay of recorded routing: the published conformance vector, and figures on gpt-oss-20b."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
import pytest

from sim.residency import Residency, policies
from sim.residency.eviction import Wanted
from sim.residency.feed import Decode, Feed
from sim.residency.replay import Event, Tally, events, keys_of, replay
from tests.traces.shared_data import folder
from traces.routing import Shape


def run(happened: list[Event], name: str, layers: int, experts: int, capacity: int, rule: str = "always") -> Tally:
    evictor = policies.evictor(name, experts, asked=keys_of(happened, experts))
    table = Residency(layers, experts, capacity, 4, evictor, rule)
    tally = replay(happened, table)
    table.check()
    return tally


def test_the_conformance_vector_is_met_exactly() -> None:
    """moe-cache-eval (arXiv 2608.07911), event-atomic-toy-trace-v1: every count, and the misses of every event."""
    here = folder("moe_cache_eval_conformance")
    about = json.loads((here / "manifest.json").read_text())
    with (here / "events.csv").open() as f:
        rows = list(csv.DictReader(f))
    happened: list[Event] = [(int(r["layer"]), [int(e) for e in r["requested_experts"].split()], 0.0) for r in rows]
    expected = about["expected"]
    model = about["model"]
    tally = run(happened, about["policy"], model["num_layers"], model["num_experts_per_layer"], about["capacity_blocks_per_layer"])
    assert tally.event_misses == expected["event_misses"] == [int(r["misses"]) for r in rows]
    assert [len(asked) - m for (_, asked, _), m in zip(happened, tally.event_misses, strict=True)] == [int(r["hits"]) for r in rows]
    found = {
        "total_accesses": tally.asked, "hits": tally.hits, "misses": tally.misses, "compulsory_misses": tally.compulsory,
        "capacity_misses": tally.misses - tally.compulsory, "evictions": tally.evicted, "cache_insertions": tally.inserted,
        "cache_churn_blocks": tally.inserted + tally.evicted, "transferred_blocks": tally.misses, "hit_ratio": tally.hit_rate,
        "miss_ratio": 1 - tally.hit_rate, "blocks_per_model_token": tally.misses / about["scheduler_steps"],
    }  # fmt: skip
    by_step = [
        sum(m for _, m in of_step)
        for _, of_step in groupby(zip(rows, tally.event_misses, strict=True), key=lambda pair: pair[0]["scheduler_step"])
    ]
    for name, misses in (("event", tally.event_misses), ("step", by_step)):
        found |= {f"{name}_miss_p{p}": _percentile(misses, p) for p in (50, 95, 99)}
    found["max_step_misses"] = max(by_step)
    assert found == {name: expected[name] for name in found}


def _percentile(values: list[int], p: int) -> float:
    return float(np.percentile(values, p, method="higher"))


@cache
def gpt_oss() -> tuple[Feed, list[dict[str, Any]]]:
    here = folder("gptoss20b_routing")
    held = np.load(here / "routes.npz")
    offsets = held["seq_offsets"].tolist()
    about = json.loads((here / "sequences.json").read_text())
    sequences = tuple(
        Decode(i, about[i]["first_decode_pos"], held["experts"][a:b].astype(np.int16))
        for i, (a, b) in enumerate(zip(offsets[:-1], offsets[1:], strict=True))
    )
    return Feed(Shape("gpt-oss-20b", 24, 32, 4), tuple(range(24)), sequences), about


REFERENCE = {"lru": (0.660, 0.804, 0.893), "lfu": (0.695, 0.832, 0.909)}
"""Recorded before this project (issue 8): 16 sequences, one after another, 8, 12 and 16 of 32 experts a layer."""


@cache
def rates(name: str, every: tuple[int, ...]) -> tuple[float, ...]:
    happened = list(events(gpt_oss()[0].take(every), 1))
    return tuple(run(happened, name, 24, 32, capacity).hit_rate for capacity in (8, 12, 16))


@pytest.mark.parametrize("name", REFERENCE)
def test_lru_and_lfu_on_recorded_routing(name: str) -> None:
    """8 of the 188 sequences, spread evenly over the file (all of them: docs/expert-cache.md)."""
    assert rates(name, tuple(range(0, 188, 24))) == pytest.approx(REFERENCE[name], abs=0.02)


def test_lfru_beats_lfu_on_datasets_that_it_was_not_tuned_on() -> None:
    """It was tuned on mmlu_test; these are of GPQA, Tulu and fact completion."""
    gpt_oss_about = gpt_oss()[1]
    others = tuple(i for i, s in enumerate(gpt_oss_about) if not s["dataset"].startswith("mmlu"))[::10]
    lfru, lfu = rates("lfru", others), rates("lfu", others)
    assert all(a > b + 0.002 for a, b in zip(lfru, lfu, strict=True)), (lfru, lfu)


def sequential(happened: Iterable[Event]) -> Iterator[Event]:
    """The same accesses as events of one expert each."""
    for layer, experts, ended in happened:
        for i, e in enumerate(experts):
            yield layer, (e,), ended if i == len(experts) - 1 else 0.0


MISSES = {"lru": (13_700, 27_298), "lfu": (12_165, 13_923), "lfru": (12_137, 21_644), "sieve": (14_071, 17_666)}
"""By event, by access."""


@pytest.mark.parametrize("name", MISSES)
def test_replaying_access_by_access_inflates_misses(name: str) -> None:
    """8 sequences at once, 16 of 32 experts: the wrong unit of replay doubles LRU's misses (arXiv 2608.07911 saw 27 to 29 % more
    on another trace), adds 14 % to LFU's, and so inverts the ranking: LFRU is the best by event and the third by access."""
    happened = list(events(gpt_oss()[0].take(range(0, 188, 12)), 8, 100, by_row=True))
    assert (run(happened, name, 24, 32, 16).misses, run(list(sequential(happened)), name, 24, 32, 16).misses) == MISSES[name]


def test_what_the_router_wants_least_gives_way() -> None:
    """`Wanted` reads the array as it is at each event, whatever was asked for."""
    wanted = np.array([[0.1, 0.5, 0.2, 0.4]], np.float32)
    table = Residency(1, 4, 2, 1, Wanted(4, False, wanted))
    for asked, here in (([0, 1], {0, 1}), ([2], {1, 2}), ([3], {1, 3})):
        table.need(0, asked)
        table.release(0)
        assert {k for k in range(4) if table.here(k)} == here
    wanted[0, 1] = 0.0
    table.need(0, [0])
    table.release(0)
    assert {k for k in range(4) if table.here(k)} == {0, 3}
