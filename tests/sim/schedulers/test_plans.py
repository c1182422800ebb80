"""Whole batches: tiled Plans equal Plans launched step by step, and say exactly what each task needs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from sim import models
from sim.events import Arrived, Request
from sim.plan import Plan
from sim.schedulers import registry
from sim.schedulers.launch import Launcher
from sim.schedulers.policy import Policy
from sim.tasks import Task, Work
from sim.testing.cases import tiny_model


def whole(name: str, model: Any, policy: Policy, gen: int, prompt: int = 7) -> Plan:
    scheduler = registry.load(name)(model, policy)
    for i in range(policy.batch):
        (*commands,) = scheduler.on(0, Arrived(Request(i, prompt + i % 3, gen, gen), last=i == policy.batch - 1))
    (plan,) = commands
    return plan


def one_by_one(self: Launcher, launch: Any, first: int, last: int, period: int, advance: Any) -> None:
    for step in range(first, last + 1):
        launch(step)


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("gen", [2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize(("layers", "dense"), [(1, 0), (2, 0), (3, 0), (3, 1), (4, 1)])
def test_tiled_steps_are_what_launching_each_gives(name: str, gen: int, layers: int, dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for microbatches in (1, 3):
        model, policy = tiny_model(layers, dense_layers=dense), Policy(batch=2 * microbatches, microbatch=2, cache_tokens=99)
        tiled = whole(name, model, policy, gen)
        with monkeypatch.context() as m:
            m.setattr(Launcher, "steps", one_by_one)
            plain = whole(name, model, policy, gen)
        assert list(map(repr, tiled.tasks())) == list(map(repr, plain.tasks())), "bodies by their digests"


@pytest.mark.parametrize("name", ["cgopipe", "flexgen"])
@pytest.mark.parametrize("window", [1, 8, 10, 30])
def test_sliding_windows_fill_up_and_stay(name: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of 7, 8 and 9; layers 0 and 2 see `window` entries."""
    model, policy = tiny_model(3, window=window), Policy(batch=6, microbatch=2, cache_tokens=99)
    tiled = whole(name, model, policy, gen=14)
    with monkeypatch.context() as m:
        m.setattr(Launcher, "steps", one_by_one)
        assert list(tiled.tasks()) == list(whole(name, model, policy, gen=14).tasks())
    for t in tiled.tasks():
        entries = [7 + q % 3 + t.step for q in t.requests]
        seen = [n if t.layer == 1 else min(n, window) for n in entries]
        if t.op == "attn_decode":
            assert t.work.context == sum(seen)
        elif t.op == "kv_to_gpu":
            assert t.work.context == sum(n - 1 if t.layer == 1 else min(n - 1, window) for n in entries)
        elif t.op == "attn_prefill":
            assert t.work.context == sum(sum(min(k, n) for k in range(1, p + 1)) for p, n in zip(entries, seen, strict=True))
        elif t.op == "kv_to_cpu" and t.step == 0:
            assert t.work.bytes == sum(seen) * model.kv_bytes_per_token_layer


def test_steps_really_are_tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 127 decode steps of Mixtral 8x7B only a handful is launched task by task."""
    launched: Counter[int] = Counter()
    add = Launcher.add

    def counted(self: Launcher, *args: Any, **how: Any) -> int:
        launched[how["at"].step] += 1
        return add(self, *args, **how)

    monkeypatch.setattr(Launcher, "add", counted)
    plan = whole("cgopipe", models.load("mixtral-8x7b"), Policy(batch=1020, microbatch=68, cache_tokens=10**6), gen=128)
    assert sorted(launched) == [0, 1, 2, 127]
    # Of each layer and micro-batch: pre_attn, attention, post_attn, two copies of rows, two of a page; a join of each layer.
    assert launched[2] == 15 * (32 * 7 + 2) + 32
    assert launched[127] == launched[2] - 15 * 2 - 1, "nothing of layer 0 for a step that will not come"
    # pre_attn, attention, post_attn, KV; activations there and back between layers; 33 whole layers.
    assert launched[0] == 15 * (32 * 4 + 2 + 31 * 2) + 33
    assert len(plan) == launched[0] + 126 * launched[2] + launched[127] == 437_476
    assert plan.nbytes / len(plan) < 100


@pytest.mark.parametrize("name", registry.names())
def test_contexts_grow_by_one_entry_a_sequence_and_step(name: str) -> None:
    plan = whole(name, tiny_model(2), Policy(batch=3, microbatch=2, cache_tokens=99), gen=7)
    contexts = {(t.step, t.layer, t.requests): t.work.context for t in plan.tasks() if t.op == "attn_decode"}
    prompts = {i: 7 + i % 3 for i in range(3)}
    assert contexts == {(step, layer, rows): sum(prompts[q] + step for q in rows) for step, layer, rows in contexts}
    assert len(contexts) == 6 * 2 * 2


def test_flexgen_loads_what_is_in_the_cache_so_far() -> None:
    plan = whole("flexgen", tiny_model(2), Policy(batch=2, microbatch=2, cache_tokens=99), gen=6)
    loads = {t.step: t.work for t in plan.tasks() if t.op == "kv_to_gpu" and t.layer == 0}
    kv = tiny_model(2).kv_bytes_per_token_layer
    assert {s: (w.context, w.bytes) for s, w in loads.items()} == {s: (13 + 2 * s, (13 + 2 * s) * kv) for s in range(1, 6)}


def tasks_of(plan: Plan, op: str, **labels: int) -> list[Task]:
    return [t for t in plan.tasks() if t.op == op and all(getattr(t, k) == v for k, v in labels.items())]


def test_cgopipe_tasks_in_full() -> None:
    """One slot of the steady state, with what it waits for, takes and gives back."""
    plan = whole("cgopipe", tiny_model(3), Policy(batch=8, microbatch=2, cache_tokens=99), gen=6)
    model = tiny_model(3)

    def one(op: str, **labels: int) -> Task:
        (found,) = tasks_of(plan, op, **labels)
        return found

    at = {"step": 3, "layer": 1, "microbatch": 2}
    pre, offload, attend, load, post = (one(op, **at) for op in ("pre_attn", "offload_qkv", "attn_decode", "load_hidden", "post_attn"))
    before = {op: one(op, step=3, layer=0, microbatch=2) for op in ("post_attn", "offload_qkv", "attn_decode", "load_hidden")}
    joins = [t for t in tasks_of(plan, "join", step=3, layer=1)]
    assert len(joins) == 1 and joins[0].lane is None
    yesterday = one("attn_decode", step=2, layer=1, microbatch=2)
    assert set(pre.deps) == {before["post_attn"].number, before["offload_qkv"].number}
    assert set(offload.deps) == {pre.number, before["attn_decode"].number}
    assert set(attend.deps) == {offload.number, before["load_hidden"].number, yesterday.number}
    assert set(load.deps) == {attend.number, before["post_attn"].number}
    assert set(post.deps) == {load.number, before["post_attn"].number, joins[0].number}
    assert post.reads == ("attn.2", "hidden.2", "w.0.0", "w.0.1", "w.0.2", "w.0.3") and post.writes == ("hidden.2",)
    assert (pre.reads, pre.writes) == (("hidden.2",), ("qkv.2",))
    assert (attend.reads, attend.writes) == (("qkv_host.2", "kv_host.1.2"), ("attn_host.2", "kv_host.1.2"))
    assert post.work == Work("post_attn", 2, 2, 0, model.experts, variant="tiled")
    assert offload.work == Work("offload_qkv", 2, 2, bytes=2 * model.qkv_dim * 2)
    assert load.work == Work("load_hidden", 2, 2, bytes=2 * model.attention_out_dim * 2)
    assert len(post.requests) == 2 and post.requests == pre.requests == attend.requests

    pages = tasks_of(plan, "page_to_gpu", step=3, layer=1)
    staged = tasks_of(plan, "page_to_pin", step=3, layer=1)
    assert [p.takes for p in pages] == [(("gpu_pages", 1),)] * 4
    assert [p.releases for p in pages] == [(s.number,) for s in staged]
    assert [p.deps for p in pages] == [(s.number,) for s in staged]
    assert [s.takes for s in staged] == [(("pinned_slots", 1),)] * 4 and all(s.deps == () for s in staged)
    assert [(p.page, p.writes, p.reads) for p in pages] == [(k, (f"w.0.{k}",), (f"pin.{k}",)) for k in range(4)]
    assert joins[0].deps == tuple(p.number for p in pages)
    assert one("post_attn", step=3, layer=1, microbatch=3).releases == tuple(p.number for p in pages)
    assert post.releases == ()
    assert all(t.phase == "decode" for t in plan.tasks() if t.step > 0)


def test_prefill_tasks_in_full() -> None:
    plan = whole("cgopipe", tiny_model(3), Policy(batch=8, microbatch=2, cache_tokens=99), gen=2)
    model = tiny_model(3)
    at = {"step": 0, "layer": 1, "microbatch": 2}
    (load,), (pre,), (attend,), (keep,), (post,), (swap,) = (
        tasks_of(plan, op, **at) for op in ("hidden_to_gpu", "pre_attn", "attn_prefill", "kv_to_cpu", "post_attn", "hidden_to_cpu")
    )
    assert load.takes == (("hidden_slots", 1),) and swap.releases == (load.number,)
    assert pre.takes == (("kv_lines", 1),) and keep.releases == (pre.number,)
    assert load.number in pre.deps and pre.number in attend.deps
    assert set(keep.deps) == {pre.number, attend.number}
    assert set(swap.deps) == {load.number, post.number}
    tokens = pre.work.tokens
    assert tokens == sum(7 + q % 3 for q in pre.requests)
    assert attend.work.context == sum((7 + q % 3) * (8 + q % 3) // 2 for q in pre.requests)
    assert keep.work.bytes == tokens * model.kv_bytes_per_token_layer
    assert load.work.bytes == swap.work.bytes == tokens * model.hidden * 2
    (layer,) = tasks_of(plan, "layer_to_gpu", layer=2)
    assert layer.takes == (("gpu_pages", 4),) and layer.work.bytes == model.layer_expert_bytes
    assert layer.writes == ("w.0.0", "w.0.1", "w.0.2", "w.0.3")
    last = tasks_of(plan, "post_attn", step=0, layer=2)[-1]
    assert last.releases == (layer.number,) and layer.number in last.deps
    samples = tasks_of(plan, "sample", step=0)
    assert [s.releases for s in samples] == [(t.number,) for t in tasks_of(plan, "hidden_to_gpu", layer=2)]
    assert all(t.phase == "prefill" for t in plan.tasks() if t.step == 0)
    # The first reload waits for the last embedding: both lanes take activation slots.
    assert tasks_of(plan, "embed", step=0)[-1].number in tasks_of(plan, "hidden_to_gpu", layer=1)[0].deps


def test_chunks_of_a_micro_batch_fill_one_cache() -> None:
    plan = whole("cgopipe", tiny_model(2), Policy(batch=4, microbatch=2, prefill_microbatch=1, cache_tokens=99), gen=2)
    chunks = tasks_of(plan, "kv_to_cpu", layer=0)
    assert [t.microbatch for t in chunks] == [0, 1, 2, 3]
    assert [t.writes for t in chunks] == [("kv_host.0.0",), ("kv_host.0.0",), ("kv_host.0.1",), ("kv_host.0.1",)]
    assert [t.reads for t in chunks] == [(f"qkv.{q}",) for q in range(4)]


def test_dense_layers_stream_nothing_and_route_nothing() -> None:
    plan = whole("cgopipe", tiny_model(3, dense_layers=1), Policy(batch=4, microbatch=2, cache_tokens=99), gen=3)
    copies = {t.layer for t in plan.tasks() if t.op in ("page_to_pin", "page_to_gpu", "layer_to_gpu")}
    assert copies == {1, 2}
    assert {t.work.experts for t in tasks_of(plan, "post_attn", layer=0)} == {0}
    assert all(not any(b.startswith("w.") for b in t.reads) for t in tasks_of(plan, "post_attn", layer=0))


def test_nobody_reports_in_a_batch_after_which_nobody_waits() -> None:
    plan = whole("cgopipe", tiny_model(2), Policy(batch=4, microbatch=2, cache_tokens=99), gen=3)
    assert not plan.notify.any()
