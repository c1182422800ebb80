"""Two real processes over gloo: the same outputs as one, under every schedule and any routing."""

from __future__ import annotations

import numpy as np
import pytest

from exec.cluster import calibrate, prices, runs, summary, transport
from exec.cluster.controller import Cluster
from exec.cluster.machine import Place, of_ranks
from exec.cluster.split import Split
from sim.drive import replay
from sim.engines.run import DONE
from sim.events import Arrived
from sim.machines.schema import Machine, OpRate, Resource
from sim.plan import Plan
from sim.tasks import Command
from tests.exec.cluster.setups import SCHEDULERS, layers, run, serving
from tests.exec.tiny import spec


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_layers_give_what_one_process_gives(cluster: Cluster, scheduler: str) -> None:
    setup = layers([33, 20], scheduler, layers=3)
    done = run(cluster, setup)
    assert runs.compare(setup, done.outputs).largest < 1e-5
    assert (done.run.status == DONE).all()
    assert len(done.run) == len(done.run.sources[0])


def test_four_ranks_give_what_one_process_gives() -> None:
    with Cluster(4) as four:
        for scheduler in SCHEDULERS:
            setup = layers([21, 0, 34, 16], scheduler, layers=3)
            assert runs.compare(setup, run(four, setup).outputs).largest < 1e-5


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("tokens", "skew"), [([24, 24], 60.0), ([17, 0], 0.0), ([1, 2], 0.0)])
def test_any_routing(cluster: Cluster, scheduler: str, tokens: list[int], skew: float) -> None:
    """All rows to the same experts, so that the other rank computes nothing; a rank without rows."""
    setup = layers(tokens, scheduler, skew=skew)
    done = run(cluster, setup)
    assert runs.compare(setup, done.outputs).largest < 1e-5
    counts = sum(prices.rows_of(done.outputs).values())
    assert counts.sum(axis=1).tolist() == [2 * 2 * t for t in tokens]  # layers x top-k
    if skew:
        assert (counts[:, 2:] == 0).all()


def test_what_a_rank_takes_of_the_cores_is_told_in_whole_and_in_parts(cluster: Cluster) -> None:
    """Ops that compute; the run; and until all is handed back."""
    for outputs in run(cluster, layers([40, 40], "bulk-sync")).outputs.values():
        assert 0 < outputs.computed_s
        assert 0 < outputs.cpu_s < outputs.whole_s


def test_every_row_that_leaves_comes_back(cluster: Cluster) -> None:
    setup = layers([40, 40], "overlapped")
    done = run(cluster, setup)
    rows = prices.rows_of(done.outputs)
    crossing = sum(int(c[0, 4:].sum() + c[1, :4].sum()) for c in rows.values())
    assert summary.summarize(setup, done, None)["wire_bytes"] == 2 * crossing * 64 * 4


@pytest.mark.parametrize("scheduler", ["bulk-sync", "overlapped"])
def test_a_whole_model_serves_as_one_process_does(cluster: Cluster, scheduler: str) -> None:
    """Prefill and decode; three requests on two ranks, and then one, so that a rank has none."""
    for count in (3, 1):
        setup = serving(count, 2, scheduler)
        found = runs.compare(setup, run(cluster, setup).outputs)
        assert found.tokens_equal
        assert found.largest < 1e-4


def test_the_log_replays_and_nothing_starts_before_what_it_waits_for(cluster: Cluster) -> None:
    setup = layers([30, 30], "chunked")
    done = run(cluster, setup)
    replay(done.log, setup.fresh())
    (plan,) = done.run.sources
    sure_ps = 1000 * max(o.uncertainty_ns for pair in done.offsets.values() for o in pair)
    for i in range(len(plan)):
        for dep in plan.dep[plan.dep_ptr[i] : plan.dep_ptr[i + 1]].tolist():
            assert done.run.start_ps[i] >= done.run.end_ps[dep - plan.first] - 2 * sure_ps


def test_clocks_of_one_computer_agree_within_their_uncertainty(cluster: Cluster) -> None:
    for offset in cluster.offsets().values():
        assert abs(offset.offset_ns) <= offset.uncertainty_ns


def costs(op: str, lane: str, seconds: float, cores: float) -> OpRate:
    return OpRate(op=op, lane=lane, curve=((1.0, seconds), (1e6, seconds)), ratio=((1.0, cores),), source="test")


@pytest.fixture(scope="module")
def profile() -> Machine:
    """Two ranks on two cores: a word takes 1 ms of one and a half, a put 2 ms of one."""
    curve = ((1.0, 1e-9), (1e6, 1e-9))
    ops = ("rms_norm", "router", "dispatch", "combine", "expert_ffn", "expert_columns")
    kernels = [OpRate(op=op, lane="gpu", curve=curve, source="test") for op in ops]
    rest = [OpRate(op="*", lane="gpu", source="test"), *(costs("*", lane, 1e-6, 1.0) for lane in ("host", "comm"))]
    words = [costs(op, lane, 1e-3, 1.5) for op, lane in calibrate.WORDS]
    cores = Resource(kind="cores", capacity=2, source="test")
    return of_ranks("test", [Place(0, 0)] * 2, 1, cores, {}, [*kernels, *rest, *words, costs("put", "put.local", 2e-3, 1.0)])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_simulator_runs_the_same_tasks(cluster: Cluster, profile: Machine, scheduler: str) -> None:
    setup = layers([30, 30], scheduler)
    done = run(cluster, setup)
    (plan,) = done.run.sources
    twin = prices.simulate(profile, setup.order, plan, done.outputs)
    assert np.array_equal(twin.number, done.run.number)
    put = [i for i in range(len(plan)) if plan.works[plan.work[i]].op == "put"]
    alone_ps = 2 * 10**9 if scheduler == "overlapped" else 3 * 10**9  # a collective's put waits for the other side's word
    assert (twin.end_ps[put] - twin.start_ps[put] >= alone_ps).all()


def test_every_word_between_ranks_is_paid_for_once(profile: Machine) -> None:
    """A rank that enters a collective tells all others, and so does one that has got all it gets."""
    for scheduler, collectives in (("bulk-sync", 2), ("chunked", 4), ("overlapped", 0)):
        setup = layers([5] * 4, scheduler, layers=3)
        (plan,) = (command for command in arrived(setup) if isinstance(command, Plan))
        split = Split(plan)
        words = prices.words_of(split)
        shares = [split.share(r) for r in range(4)]
        assert sum(words) == sum(len(told) for s in shares for told in s.tells.values())
        assert sum(words) >= 3 * collectives * 2 * 12


def arrived(setup: runs.Setup) -> list[Command]:
    """What a scheduler answers when all have arrived."""
    scheduler = setup.fresh()
    last = len(setup.requests) - 1
    return [c for i, request in enumerate(setup.requests) for c in scheduler.on(0, Arrived(request, i == last))]


def test_a_barrier_keeps_the_cores_of_all_ranks_busy(profile: Machine) -> None:
    latency_s, [(cores, core_s, cap, _)] = prices.HostPrices(profile, spec()).barrier(2)
    assert (latency_s, cores) == (0.0, "cores.0")
    assert core_s == pytest.approx(2 * 1.5e-3)
    assert core_s / cap == pytest.approx(1e-3)  # both at the same time


def test_puts_and_words_are_timed(cluster: Cluster) -> None:
    cluster.prepare(transport.order_of(2, spec(layers=1)))
    word = transport.time_words(cluster, 0, 1)
    assert word.seconds > 0 and word.cpu_s > 0
    timed = transport.time_puts(cluster, 0, 1, 64, word, (0, 1 << 16))
    assert [t.bytes for t in timed] == [256, 256 + (1 << 16)]
    assert all(t.seconds > 0 for t in timed)


def test_rows_of_the_op_table() -> None:
    timed = [transport.Timed(256, 2e-4, 3e-4), transport.Timed(1 << 20, 1e-3, 5e-4)]
    near = transport.row_of("put", "put.local", timed)
    assert (near.latency_s, near.curve) == (0.0, ((256.0, 2e-4), (float(1 << 20), 1e-3)))
    assert near.ratio == ((256.0, pytest.approx(1.5)), (float(1 << 20), 1.0))
    far = transport.row_of("put", "put.network", [transport.Timed(256, 5e-4, 3e-4), transport.Timed(1 << 20, 5e-2, 4e-4)], True)
    assert far.latency_s == pytest.approx(2e-4)
    assert far.curve == ((256.0, 3e-4), (float(1 << 20), 4e-4))
