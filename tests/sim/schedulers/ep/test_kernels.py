"""The kernel-level schedulers of expert parallelism: what they hand out, and that it is right at any durations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.costs import CostModel
from sim.drive import drive
from sim.ep import names
from sim.errors import UserError
from sim.events import Request, Result
from sim.models import load
from sim.plan import Plan
from sim.schedulers.ep.bulk_sync import VARIANTS, BulkSync, GraphReplayed
from sim.schedulers.ep.chunked import Chunked
from sim.schedulers.ep.kernels import Kernels, Launches, chunk_rows
from sim.schedulers.ep.overlapped import Overlapped
from sim.schedulers.policy import Policy
from sim.tasks import Task, Work
from sim.testing import rules
from sim.testing.cases import Case, machine, tiny_model
from sim.testing.dice import Dice
from sim.testing.observed import Observed, Ran

POLICY = Policy(batch=1, microbatch=1)
MODEL = tiny_model(1, experts=8)
ALL: tuple[type[Kernels], ...] = (BulkSync, GraphReplayed, Chunked, Overlapped)
RULES: tuple[Callable[[Observed], str], ...] = (
    rules.dependencies, rules.lanes, rules.read_after_write, rules.write_after_read, rules.write_after_write,
)  # fmt: skip


def on_dice(scheduler: Kernels, tokens: tuple[int, ...], seed: int) -> Observed:
    """A run under drawn durations; the rows of the first layer are there before it."""
    requests = tuple(Request(i, t, 0) for i, t in enumerate(tokens))
    engine = Dice(scheduler.pools, CostModel(machine(Random(0)), MODEL), requests, lambda task: Result(), seed)
    drive(scheduler, engine)
    given_rows = Task(-1, Work("input"), "", writes=tuple(names.hidden(r, 0) for r in range(len(tokens))))
    ran = (Ran(given_rows, -1, -1, "done"), *(Ran(t, *engine.times[n]) for n, t in sorted(engine.tasks.items())))
    return Observed(Case("ep", MODEL, POLICY, requests, ()), "dice", Declared(scheduler), ran, None, 0)  # type: ignore[arg-type]


class Declared:
    """The scheduler as the rules see it, with a lane for the rows that are given."""

    def __init__(self, scheduler: Kernels) -> None:
        self.lanes, self.pools = ("", *scheduler.lanes), scheduler.pools


@given(
    make=st.sampled_from(ALL), ranks=st.sampled_from([1, 2, 4]), layers=st.integers(1, 3), seed=st.integers(0, 10**6),
    tokens=st.lists(st.integers(0, 5), min_size=4, max_size=4),
)  # fmt: skip
def test_buffers_are_never_overwritten_before_they_are_read(
    make: type[Kernels], ranks: int, layers: int, seed: int, tokens: list[int]
) -> None:
    """Whatever the durations: every read sees the write before it, no write comes during a read, nothing hangs."""
    chosen = (*tokens[:ranks],) if sum(tokens[:ranks]) else (1,) * ranks
    observed = on_dice(make(MODEL, POLICY, ranks=ranks, layers=layers), chosen, seed)
    assert [story for rule in RULES if (story := rule(observed))] == []


@pytest.mark.parametrize("make", ALL)
def test_each_pair_is_served_once_in_each_direction(make: type[Kernels]) -> None:
    """Conservation: every chunk of A's rows goes once to every other rank, is computed there once, and comes back once."""
    scheduler = make(MODEL, POLICY, ranks=4, layers=2)
    tasks = list(scheduler.plan([8] * 4).tasks())
    chunks = range(scheduler.chunks)
    pairs = {(a, b, c, i) for a in range(4) for b in range(4) if a != b for c in chunks for i in range(2)}
    for variant in ("dispatch", "combine"):
        puts = [t for t in tasks if t.op == "put" and t.work.variant == variant]
        assert Counter((t.rank, t.page, t.microbatch, t.layer) for t in puts) == Counter(pairs)
        assert all(t.lane == names.put(t.rank, t.page) for t in puts)
    read = Counter((b, t.layer) for t in tasks if t.op == "experts" for b in t.reads)
    assert set(read.values()) == {1} and len(read) == 4 * 4 * len(chunks) * 2
    rows = sum(t.work.tokens for t in tasks if t.op == "permute")
    assert rows == 8 * 4 * 2


@pytest.mark.parametrize(("name", "launches"), VARIANTS.items())
def test_launches_of_a_layer_are_those_published(name: str, launches: int) -> None:
    scheduler = BulkSync(MODEL, POLICY, ranks=2, launches=Launches.of(launches))
    assert count(scheduler.plan([4, 4]), "launch") == {0: launches, 1: launches}


def count(plan: Plan, op: str) -> dict[int, int]:
    return dict(Counter(t.rank for t in plan.tasks() if t.op == op))


def test_a_graph_is_one_launch_and_waits_for_no_counts() -> None:
    plan = GraphReplayed(MODEL, POLICY, ranks=2).plan([4, 4])
    assert count(plan, "launch") == {0: 1, 1: 1}
    hosts = [t for t in BulkSync(MODEL, POLICY, ranks=2).plan([4, 4]).tasks() if t.op == "launch" and t.deps]
    assert {t.work.variant for t in hosts} == {"dispatch"} and len(hosts) == 2


def test_bytes_are_what_routing_can_ask_for_at_most() -> None:
    """8 experts on 4 ranks, top-2: both experts of a token can live on one rank; on 8 ranks one at most."""
    for ranks, rows in ((4, 2 * 5), (8, 5)):
        put = next(t for t in BulkSync(MODEL, POLICY, ranks=ranks).plan([5] * ranks).tasks() if t.op == "put")
        assert (put.work.tokens, put.work.bytes) == (rows, rows * MODEL.hidden * MODEL.dtype_bytes)


def test_chunks_cover_the_tokens_once() -> None:
    assert [list(chunk_rows(7, c, 3)) for c in range(3)] == [[0, 1], [2, 3], [4, 5, 6]]


def test_an_overlapped_rank_computes_its_own_rows_first_and_then_in_order_of_arrival() -> None:
    plan = Overlapped(MODEL, POLICY, ranks=4).plan([4] * 4)
    assert [t.page for t in plan.tasks() if t.op == "experts" and t.rank == 2] == [2, 1, 0, 3]
    assert not any(t.op == "barrier" for t in plan.tasks())


def test_a_window_lets_so_many_puts_run_at_once() -> None:
    for window, chained in ((1, 2), (2, 1), (3, 0)):
        plan = Overlapped(MODEL, POLICY, ranks=4, window=window).plan([4] * 4)
        puts = {t.number: t for t in plan.tasks() if t.op == "put" and t.work.variant == "dispatch" and t.rank == 0}
        assert sum(any(d in puts for d in t.deps) for t in puts.values()) == chained


@pytest.mark.parametrize(("how", "named"), [({"ranks": 3}, "experts"), ({"ranks": 0}, "ranks"), ({"chunks": 0}, "chunks")])
def test_sizes_that_do_not_fit_are_refused(how: dict[str, int], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Chunked(MODEL, POLICY, **how)  # type: ignore[arg-type]


def test_memory_counts_the_rank_that_holds_most() -> None:
    scheduler = BulkSync(load("mixtral-8x7b"), POLICY, ranks=4)
    peak = scheduler.memory([Request(r, 100 * (r + 1), 0) for r in range(4)])["gpu"]
    row = 4096 * 2
    assert peak["weights"] == 2 * load("mixtral-8x7b").expert_bytes
    assert peak["recv"] == 1000 * 2 * row and peak["send"] == 400 * 2 * row
