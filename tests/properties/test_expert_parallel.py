"""Expert parallelism, whatever the routing: all is computed and received once, nothing hangs, no slot is overwritten early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.benchmark import Given
from sim.drive import drive
from sim.engines.run import Run
from sim.engines.simpy_engine import SimPyEngine
from sim.ep import routing, systems
from sim.ep.delays import Delays
from sim.ep.layer import MoELayer
from sim.ep.routing import Counts
from sim.ep.study import Prepared, prepare
from sim.fabric import with_nodes
from sim.machines import load
from sim.machines.schema import Machine
from sim.plan import Plan

KERNELS = ("bulk-sync", "bulk-sync:deepep", "graph-replayed", "chunked", "overlapped")
TILED = ("flashdmoe", "static-wave", "comet")
BOX = load("8xh100")


def machine(ranks: int, nodes: int = 1) -> Machine:
    """`ranks` GPUs on NVLink; on two nodes, half of them each."""
    box = BOX if nodes == 1 else load("2x8h100")
    assert box.topology is not None
    topology = box.topology.model_copy(update={"gpus": ranks // nodes})
    return with_nodes(box.model_copy(update={"topology": topology}), nodes)


@dataclass(frozen=True)
class Case:
    ranks: int
    nodes: int
    layer: MoELayer
    tokens: tuple[int, ...]
    counts: Counts


def to_few_experts(layer: MoELayer, tokens: Sequence[int], expert: int) -> Counts:
    """The worst there is: every token picks the same k experts, from `expert` on."""
    counts = np.zeros((len(tokens), layer.experts), np.int64)
    counts[:, (expert + np.arange(layer.top_k)) % layer.experts] = np.array(tokens)[:, None]
    return counts


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Uneven ranks, experts that nobody picks, everything to one expert."""
    ranks = draw(st.sampled_from([1, 2, 4]))
    nodes = draw(st.sampled_from([1, 2])) if ranks == 4 else 1
    experts = ranks * draw(st.integers(1, 3))
    layer = MoELayer(256, 128, experts, draw(st.integers(1, min(3, experts))), draw(st.booleans()), draw(st.sampled_from(["bf16", "tf32"])))
    tokens = tuple(draw(st.lists(st.integers(0, 300), min_size=ranks, max_size=ranks).filter(any)))
    kind = draw(st.sampled_from(["uniform", "skewed", "one", "even"]))
    seed = draw(st.integers(0, 1000))
    counts = {
        "uniform": lambda: routing.drawn(layer, tokens, seed), "skewed": lambda: routing.drawn(layer, tokens, seed, 3.0),
        "one": lambda: to_few_experts(layer, tokens, seed % experts), "even": lambda: routing.even(layer, tokens),
    }[kind]()  # fmt: skip
    return Case(ranks, nodes, layer, tokens, counts)


def prepared(name: str, case: Case, **options: Any) -> Prepared:
    system = systems.load(name)
    system = replace(system, options={**system.options, **options})
    return prepare(system, machine(case.ranks, case.nodes), case.layer, case.tokens, case.counts)


def column(plan: Plan, name: str) -> Any:
    """A field of each task's work, [n]."""
    return np.array([getattr(w, name) for w in plan.works])[plan.work]


def rank_counts(case: Case) -> Any:
    """Rows from each rank to each rank [source, target]."""
    return case.counts.reshape(case.ranks, case.ranks, -1).sum(axis=2)


@settings(max_examples=15)
@given(case=cases(), name=st.sampled_from(KERNELS))
def test_every_row_is_put_there_and_back_once_and_computed_once(case: Case, name: str) -> None:
    found = prepared(name, case)
    plan = found.plan
    op, tokens, variant, moved = (column(plan, c) for c in ("op", "tokens", "variant", "bytes"))
    sent = rank_counts(case)
    for way, wanted in (("dispatch", sent), ("combine", sent.T)):
        puts = (op == "put") & (variant == way)
        got = np.zeros_like(sent)
        np.add.at(got, (plan.rank[puts], plan.page[puts]), tokens[puts])
        assert np.array_equal(got, wanted - np.diag(np.diag(wanted)))
        assert moved[puts].sum() == got.sum() * case.layer.row_bytes
    computed = np.bincount(plan.rank[op == "experts"], weights=tokens[op == "experts"], minlength=case.ranks)
    assert np.array_equal(computed, sent.sum(axis=0))
    assert len(found.run()) == len(plan)  # it ends


@settings(max_examples=20)
@given(case=cases(), name=st.sampled_from(TILED))
def test_every_tile_is_computed_once_and_every_byte_crosses_once(case: Case, name: str) -> None:
    found = prepared(name, case)
    plan, layer, sent = found.plan, case.layer, rank_counts(case)
    op, tokens, columns, moved = (column(plan, c) for c in ("op", "tokens", "columns", "bytes"))
    for stage, width in (("gemm0", layer.ffn), ("gemm1", layer.hidden)):
        of = op == stage
        area = np.bincount(plan.rank[of], weights=(tokens * columns)[of], minlength=case.ranks)
        assert np.array_equal(area, sent.sum(axis=0) * width)
    combined = np.bincount(plan.rank[op == "combine"], weights=(tokens * columns)[op == "combine"], minlength=case.ranks)
    rows = sent.sum(axis=1) if name == "flashdmoe" else np.array(case.tokens)
    assert np.array_equal(combined, rows * layer.hidden)
    away = (sent.sum() - np.trace(sent)) * layer.row_bytes
    signals = (op == "signal") | (op == "put")
    carried = moved.sum() - moved[op == "signal"].sum() - 8 * (op == "put").sum()
    assert carried == 2 * away and (name != "flashdmoe" or (moved[signals] >= 8).all())
    assert len(found.run()) == len(plan)


@settings(max_examples=10)
@given(case=cases(), name=st.sampled_from(KERNELS + TILED))
def test_both_engines_see_the_same_picoseconds(case: Case, name: str) -> None:
    found = prepared(name, case)
    engine = SimPyEngine(found.costs.lanes, found.scheduler.pools, found.costs, profile=found.costs)
    drive(Given(found.plan), engine)
    assert found.run().same_times(engine.run)


@settings(max_examples=15)
@given(case=cases(), processors=st.sampled_from([1, 3, 16, 263]))
def test_flashdmoe_conserves_work(case: Case, processors: int) -> None:
    """No descriptor waits for a doorbell while the scheduler warp idles and a processor can take one; none that was rung waits while
    a processor idles."""
    found = prepared("flashdmoe", case, processors=processors)
    run, plan = found.run(), found.plan
    op = column(plan, "op")
    for rank in range(case.ranks):
        mine = plan.rank == rank
        blocks = mine & np.isin(op, ("gate_tile", "dispatch", "fetch", "gemm0", "gemm1", "combine"))
        bells = np.flatnonzero(mine & (op == "doorbell") & (column(plan, "variant") == ""))
        fetches = np.flatnonzero(mine & (op == "fetch"))
        rung, fetched = run.end_ps[bells], run.start_ps[fetches]
        late = fetched > rung
        assert (running(run, blocks, fetched[late] - 1) == processors).all()
        ready = run.end_ps[plan.dep[plan.dep_ptr[bells]]]
        waits = run.start_ps[bells] > ready
        at = run.start_ps[bells][waits] - 1
        ringing = running(run, mine & (op == "doorbell"), at)
        held = np.searchsorted(np.sort(run.start_ps[bells]), at, "right") - np.searchsorted(np.sort(run.end_ps[fetches]), at, "right")
        assert ((ringing == 1) | (held == processors)).all()


def running(run: Run, chosen: Any, at: Any) -> Any:
    """How many of the chosen tasks run at each instant."""
    begun = np.searchsorted(np.sort(run.start_ps[chosen]), at, "right")
    return begun - np.searchsorted(np.sort(run.end_ps[chosen]), at, "right")


@settings(max_examples=15)
@given(case=cases())
def test_slots_of_the_symmetric_heap_are_read_before_they_are_written_again(case: Case) -> None:
    """The cell of (source, expert) that rows go to is used again by the next layer, and so is the one that results go to."""
    found = prepared("flashdmoe", case, layers=2)
    run, plan = found.run(), found.plan
    op = column(plan, "op")
    for write, read in ((("dispatch", "put"), ("gemm0",)), (("gemm1",), ("combine",))):
        for source in range(case.ranks):
            for local in range(case.layer.experts // case.ranks):
                cell = (plan.page == source) & (plan.microbatch == local)
                reads = cell & np.isin(op, read) & (plan.layer == 0)
                writes = cell & np.isin(op, write) & (plan.layer == 1)
                assert run.start_ps[writes].min(initial=2**62) >= run.end_ps[reads].max(initial=0)


class Late:
    """One rank's launches from `first` on take longer."""

    def __init__(self, rank: int, first: int, ratio: float) -> None:
        self.rank, self.first, self.by = rank, first, ratio

    def ratio(self, seed: int, rank: Any, step: int, launch: Any) -> Any:
        return 1.0 + self.by * ((rank == self.rank) & (launch >= self.first))


@settings(max_examples=20)
@given(case=cases(), name=st.sampled_from(["bulk-sync", "graph-replayed"]), rank=st.integers(0, 3), first=st.integers(0, 90),
       by=st.floats(0, 50), more=st.floats(0, 50))  # fmt: skip
def test_a_later_rank_never_makes_a_bulk_synchronous_step_shorter(
    case: Case, name: str, rank: int, first: int, by: float, more: float
) -> None:
    """Without sharing: each task has its resources to itself (they are larger than all that is wanted of them)."""
    found = prepared(name, case)
    alone = replace(found.priced, capacity=found.priced.capacity * 4096)
    delays = Delays(alone)
    steps = [found.run(delays.drawn(Late(rank % case.ranks, first, ratio), 0, 0)).makespan_ps for ratio in (0.0, by, by + more)]  # type: ignore[arg-type]
    assert steps == sorted(steps)


@pytest.mark.parametrize("name", TILED)
def test_without_a_trace_the_plan_holds_what_capacity_allows(name: str) -> None:
    """Upper bounds: 2 ranks, 4 experts, top-2, 100 tokens each: 50 rows of each expert from each rank."""
    layer, tokens = MoELayer(256, 128, 4, 2), (100, 100)
    whole = prepared(name, Case(2, 1, layer, tokens, np.full((2, 4), 50)))
    bounded = prepared(name, Case(2, 1, layer, tokens, np.full((2, 4), 50)), rows=None)
    area = [(column(p.plan, "tokens") * (column(p.plan, "op") == "gemm0")).sum() for p in (whole, bounded)]
    assert area[0] == area[1] > 0
