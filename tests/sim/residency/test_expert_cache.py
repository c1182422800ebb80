"""The expert-cache scheduler: what it reads is there, on any machine; and what it counts is what the table counts."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.drive import replay as replay_log
from sim.engines.run import DONE
from sim.errors import UserError
from sim.machines.schema import Lane, Machine, OpRate, Resource
from sim.models.spec import ModelSpec
from sim.residency import policies
from sim.residency.admission import ADMISSIONS
from sim.residency.feed import Decode, Feed
from sim.residency.prefetch import PREDICTORS
from sim.residency.replay import events, replay
from sim.residency.study import Outcome, prepare, simulate
from sim.schedulers.caching import Caching
from sim.schedulers.expert_cache import ExpertCache
from sim.schedulers.policy import Policy
from sim.tasks import Task
from sim.testing.cases import machine, tiny_model
from traces.routing import Shape

MODEL = tiny_model(4, experts=6, dense_layers=1)
LAYERS = (1, 2, 3)


def feed(seed: int, lengths: tuple[int, ...], model: ModelSpec = MODEL) -> Feed:
    """Sequences of random but sticky routing."""
    rng = np.random.default_rng(seed)
    layers = tuple(range(model.dense_layers, model.layers))

    def experts(n: int) -> Any:
        drawn = np.array([[rng.permutation(model.experts)[: model.top_k] for _ in layers] for _ in range(n)], np.int16)
        for t in range(1, n):
            drawn[t] = np.where(rng.random(len(layers))[:, None] < 0.5, drawn[t - 1], drawn[t])
        return drawn

    shape = Shape(model.name, model.layers, model.experts, model.top_k)
    return Feed(shape, layers, tuple(Decode(i, 3 + i, experts(n)) for i, n in enumerate(lengths)))


def with_disk(box: Machine, bytes_per_s: float) -> Machine:
    disk = Resource(kind="link", capacity=bytes_per_s, source="drawn for a test")
    lane = Lane(name="nvme", kind="copy", path=("link.nvme", "cpu.memory"), home="cpu")
    rate = OpRate(op="*", lane="nvme", latency_s=1e-5, source="drawn for a test")
    return box.model_copy(
        update={"resources": {**box.resources, "link.nvme": disk}, "lanes": (*box.lanes, lane), "ops": (*box.ops, rate)}
    )


Times = dict[int, tuple[int, int, int]]
"""Start, end and status by task number."""


class Contents:
    """Which expert each buffer holds, by the copies into it."""

    def __init__(self, tasks: list[Task], times: Times) -> None:
        self.writes: dict[str, list[tuple[int, int, int, bool]]] = {}
        for t in tasks:
            if t.op in ("load_expert", "read_expert"):
                start, end, status = times[t.number]
                self.writes.setdefault(t.writes[0], []).append((start, end, t.layer * MODEL.experts + t.page, status == DONE))

    def key(self, buffer: str, start: int, end: int) -> int:
        """Key in the buffer from `start` to `end`; -1 where it is none whole, or changes meanwhile."""
        copies = [w for w in self.writes.get(buffer, ()) if w[0] < end and w[1] > w[0]]
        assert not [w for w in copies if w[1] > start], f"{buffer} is written while it is read"
        last = max(copies, key=lambda w: w[1], default=(0, 0, -1, True))
        return last[2] if last[3] else -1


def check_contents(o: Outcome) -> None:
    """Replays the copies: when experts are computed, exactly those that the router chose are in the slots that are read."""
    run = o.run
    tasks = [t for source in run.sources for t in ((source,) if isinstance(source, Task) else source.tasks())]
    columns = (run.number.tolist(), run.start_ps.tolist(), run.end_ps.tolist(), run.status.tolist())
    times = {n: (a, b, s) for n, a, b, s in zip(*columns, strict=True)}
    contents = Contents(tasks, times)
    found: dict[tuple[int, int], list[int]] = {}
    elsewhere: dict[tuple[int, int], int] = {}
    for t in tasks:
        start, end, status = times[t.number]
        assert status == DONE or t.op in ("load_expert", "read_expert"), t
        at = (t.step, t.layer)
        if t.op == "experts":
            found.setdefault(at, []).extend(contents.key(b, start, end) for b in t.reads if b.startswith("expert."))
        elif t.op == "cpu_experts":
            elsewhere[at] = len(t.work.expert_tokens)
        elif t.op == "load_expert" and status == DONE:
            host = t.reads[0]
            held = contents.key(host, start, end) if o.caching.host is not None else int(host.removeprefix("expert_host."))
            assert held == t.layer * MODEL.experts + t.page, f"{t} copies {held}"
    check_asked(o, {t.number: t for t in tasks}, found, elsewhere)


def check_asked(o: Outcome, tasks: dict[int, Task], found: dict[tuple[int, int], list[int]], elsewhere: dict[tuple[int, int], int]) -> None:
    """What each router asked for is what its layer computed, on the GPU or `elsewhere`."""
    asked = set()
    for _, event, *_ in o.log.entries:
        result = getattr(event, "result", None)
        if result is not None and result.experts:
            t = tasks[event.task]
            at = (t.step, t.layer)
            asked.add(at)
            keys = {t.layer * MODEL.experts + e for e, n in enumerate(result.experts) if n}
            have = found.get(at, [])
            assert len(set(have)) == len(have) and set(have) <= keys, f"step {t.step}, layer {t.layer}: {have} computed, {keys} asked for"
            assert len(keys) - len(have) == elsewhere.get(at, 0)
    assert len(asked) == o.served.events


@settings(max_examples=30)
@given(st.data())
def test_experts_are_where_they_are_read(data: st.DataObject) -> None:
    f = feed(data.draw(st.integers(0, 99)), tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))))
    batch = data.draw(st.integers(1, 3))
    caching = Caching(
        data.draw(st.integers(1, 5)), evict=data.draw(st.sampled_from(policies.NAMES)), admit=data.draw(st.sampled_from([*ADMISSIONS])),
        prefetch=data.draw(st.sampled_from([*PREDICTORS])), work=data.draw(st.sampled_from(["gpu", "cpu-expert", "hybrid"])),
        whole=data.draw(st.booleans()), staging=data.draw(st.integers(1, 4)), host=data.draw(st.sampled_from([None, 8, 12])),
        governed=False,
    )  # fmt: skip
    box = with_disk(machine(Random(data.draw(st.integers(0, 99)))), 10 ** data.draw(st.floats(6, 9)))
    gates = feed(7, tuple(len(s) for s in f.sequences)) if caching.prefetch == "next-gate" else None
    done = simulate(MODEL, box, f, caching, batch=batch, gates=gates)
    assert done.served.tokens == f.tokens
    check_contents(done)
    if caching.work == "gpu" and caching.prefetch == "none":
        tally = replay(events(f, batch), prepare(caching, f, batch, None).table(MODEL))
        assert (done.served.hits, done.served.asked) == (tally.hits, tally.asked)
        assert done.served.moved == tally.misses
    scheduler = ExpertCache(MODEL, Policy(batch=batch, microbatch=batch), prepare(caching, f, batch, None))
    replay_log(done.log, scheduler)  # the same events give the same commands


def test_two_feeds_take_different_branches_of_one_object() -> None:
    """It really reacts: other routing, other commands."""
    box = machine(Random(0))
    one, other = (simulate(MODEL, box, feed(seed, (5,)), Caching(2)) for seed in (1, 2))
    assert [c for _, _, c in one.log.entries] != [c for _, _, c in other.log.entries]


def slow_link(bytes_per_s: float) -> Machine:
    box = machine(Random(1))
    fast = {"capacity": 1e10}
    resources = {name: r.model_copy(update=fast if r.kind != "flops" else {"capacity": 1e12}) for name, r in box.resources.items()}
    resources["link.h2d"] = resources["link.h2d"].model_copy(update={"capacity": bytes_per_s})
    return box.model_copy(update={"resources": resources})


def test_prefetch_costs_what_it_moves_and_the_governor_ends_it() -> None:
    """Random routing on a slow link: guesses are wrong half of the time and misses wait for them. The governor finds out."""
    f = feed(3, (400,))
    box = slow_link(2e6)
    plain, free, governed = (
        simulate(MODEL, box, f, Caching(2, prefetch=p, governed=g)) for p, g in (("none", False), ("affinity", False), ("affinity", True))
    )
    assert free.served.moved > plain.served.moved
    assert governed.governor and free.served.ahead > governed.served.ahead
    assert not governed.governor[0][1] or free.tokens_per_s > plain.tokens_per_s


def test_a_demand_load_waits_for_no_guess() -> None:
    """With a guess on the link, the demand load starts at the instant at which the router asked for it."""
    done = simulate(MODEL, slow_link(1e6), feed(5, (40,)), Caching(2, prefetch="markov", governed=False))
    run = done.run
    tasks = {t.number: t for t in run.sources if isinstance(t, Task)}
    ends = {n: b for n, b in zip(run.number.tolist(), run.end_ps.tolist(), strict=True)}
    starts = {n: a for n, a in zip(run.number.tolist(), run.start_ps.tolist(), strict=True)}
    gates = {(t.step, t.layer): ends[t.number] for t in tasks.values() if t.op == "gate"}
    demands = [t for t in tasks.values() if t.op == "load_expert" and not t.notify]
    first = {}
    for t in demands:
        first.setdefault((t.step, t.layer), t)
    assert done.served.guesses > 0 and len(first) > 20
    cancelled = [n for n, s in zip(run.number.tolist(), run.status.tolist(), strict=True) if s != DONE]
    assert cancelled, "no guess was ever in the way"
    waits = [starts[t.number] - gates[at] for at, t in first.items() if not done.served.late]
    assert all(w == 0 for w in waits)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"work": "hybrid"}, "no lane 'cpu'"), ({"host": 20}, "no lane 'nvme'"), ({"capacity": 6}, "bytes are missing")],
)
def test_what_a_machine_cannot_do_is_refused(change: dict[str, Any], words: str) -> None:
    box = machine(Random(0), {"gpu": 100_000, "cpu": 2**40, "pinned": 2**40})
    lanes = tuple(lane for lane in box.lanes if lane.name != "cpu")
    box = box.model_copy(update={"lanes": lanes, "ops": tuple(op for op in box.ops if op.lane != "cpu")})
    with pytest.raises(UserError, match=words):
        simulate(MODEL, box, feed(0, (2,)), replace(Caching(2), **change))
