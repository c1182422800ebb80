"""Two real processes over gloo: the same outputs as one, under every schedule and any routing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from exec.cluster import prices, runs, summary, transport
from exec.cluster.controller import Cluster
from exec.cluster.execute import Executed, execute
from exec.cluster.machine import Place, of_ranks
from exec.cluster.profile import Unknown
from exec.prompts import byte_prompts
from sim.drive import replay
from sim.engines.run import DONE
from sim.events import Request
from sim.machines.schema import OpRate, Resource
from tests.exec.cluster.setups import layers
from tests.exec.tiny import spec

SCHEDULERS = ("bulk-sync", "chunked", "overlapped")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(2) as ready:
        yield ready


def run(cluster: Cluster, setup: runs.Setup) -> Executed:
    cluster.prepare(setup.order)
    scheduler = setup.fresh()
    return execute(cluster, scheduler, setup.requests, Unknown(), scheduler.lanes)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_layers_give_what_one_process_gives(cluster: Cluster, scheduler: str) -> None:
    setup = layers([33, 20], scheduler, layers=3)
    done = run(cluster, setup)
    assert runs.compare(setup, done.outputs).largest < 1e-5
    assert (done.run.status == DONE).all()
    assert len(done.run) == len(done.run.sources[0])


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
        requests = [Request(i, 9 + i, 5, 5) for i in range(count)]
        prompts = byte_prompts([r.prompt_tokens for r in requests])
        setup = runs.model_setup(spec(vocab=256), "", requests, [5] * count, prompts, 2, scheduler, keep=True)
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


def test_the_simulator_runs_the_same_tasks(cluster: Cluster) -> None:
    setup = layers([30, 30], "overlapped")
    done = run(cluster, setup)
    curve = ((1.0, 1e-9), (1e6, 1e-9))
    kernels = [OpRate(op=op, lane="gpu", curve=curve, source="test") for op in ("rms_norm", "router", "dispatch", "combine", "expert_ffn")]
    rest = [OpRate(op="*", lane=lane, source="test") for lane in ("gpu", "host", "comm")]
    puts = [OpRate(op="put", lane="put.local", latency_s=1e-3, curve=((1.0, 1e-6), (1e6, 1e-6)), source="test")]
    machine = of_ranks("test", [Place(0, 0)] * 2, 1, Resource(kind="cores", capacity=2, source="test"), {}, [*kernels, *rest, *puts])
    (plan,) = done.run.sources
    twin = prices.simulate(machine, setup.order, plan, done.outputs)
    assert np.array_equal(twin.number, done.run.number)
    put = [i for i in range(len(plan)) if plan.works[plan.work[i]].op == "put"]
    assert (twin.end_ps[put] - twin.start_ps[put] >= 10**9).all()


def test_puts_are_timed(cluster: Cluster) -> None:
    cluster.prepare(transport.order_of(2, spec(layers=1)))
    timed = transport.time_puts(cluster, 0, 1, 64, (0, 1 << 16))
    assert [t.bytes for t in timed] == [256, 256 + (1 << 16)]
    assert all(t.seconds > 0 and t.cpu_s > 0 for t in timed)
    row = transport.row_of("put.local", timed, False)
    assert row.latency_s == timed[0].seconds
    assert row.curve[1][1] == pytest.approx(max(timed[1].seconds - timed[0].seconds, 1e-7))
