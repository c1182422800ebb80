"""Ranks with a device each. Here a stand-in plays it: the same tensors, streams and links, late at random, rows over gloo."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from exec import devices
from exec.backends.cuda.standin import StandIn
from exec.cli import profiling
from exec.cli.app import main
from exec.cluster import machine, prices, probes, runs, transport
from exec.cluster.controller import Cluster
from exec.cluster.device import CUDA, STAND_IN, RankDevice
from exec.cluster.links import MOST_RANKS, Links
from exec.cluster.mesh import PeerLost
from exec.weights import hf_config
from sim import machines
from sim.engines.compiled import run_compiled
from sim.engines.run import DONE
from sim.ep import names
from sim.errors import UserError
from sim.machines.schema import OpRate, Resource
from sim.plan import PlanBuilder
from sim.tasks import Work
from tests.exec.cluster.setups import SCHEDULERS, layers, run, serving
from tests.exec.tiny import spec
from traces.timeline import read_timeline


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("tokens", "skew"), [([33, 20], 0.0), ([24, 24], 60.0), ([17, 0], 0.0), ([1, 2], 0.0)])
def test_any_routing_gives_what_one_process_gives(cluster: Cluster, scheduler: str, tokens: list[int], skew: float) -> None:
    """Uneven ranks, all rows to the same experts so that the others stay empty, a rank without rows, single rows."""
    setup = layers(tokens, scheduler, layers=3, skew=skew, device=STAND_IN)
    done = run(cluster, setup)
    assert (done.run.status == DONE).all()
    assert runs.compare(setup, done.outputs).largest < 1e-5
    counts = sum(prices.rows_of(done.outputs).values())
    assert counts.sum(axis=1).tolist() == [3 * 2 * t for t in tokens]  # layers x top-k
    if skew:
        assert (counts[:, 2:] == 0).all()


def test_four_ranks_and_bulk_sync_with_cores_before_and_after() -> None:
    """One cluster serves orders for devices and for cores in turn. All rows go to two experts of one rank, which takes them in parts."""
    with Cluster(4) as four:
        for device in ("", STAND_IN, ""):
            setup = layers([21, 0, 34, 16], "bulk-sync", layers=3, skew=60.0, device=device)
            done = run(four, setup)
            assert runs.compare(setup, done.outputs).largest < 1e-5
            assert (done.outputs[0].clock is not None) == bool(device)


@pytest.mark.parametrize("scheduler", ["chunked", "overlapped"])
def test_a_whole_model_serves_as_one_process_does(cluster: Cluster, scheduler: str) -> None:
    """Prefill and decode; three requests on two ranks, and then one, so that a rank has none."""
    for count in (3, 1):
        setup = serving(count, 2, scheduler, STAND_IN)
        found = runs.compare(setup, run(cluster, setup).outputs)
        assert found.tokens_equal
        assert found.largest < 1e-4


def test_nothing_starts_before_what_it_waits_for(cluster: Cluster) -> None:
    setup = layers([30, 30], "overlapped", device=STAND_IN)
    done = run(cluster, setup)
    (plan,) = done.run.sources
    sure_ps = 1000 * max(o.uncertainty_ns for pair in done.offsets.values() for o in pair)
    for i in range(len(plan)):
        for dep in plan.dep[plan.dep_ptr[i] : plan.dep_ptr[i + 1]].tolist():
            assert done.run.start_ps[i] >= done.run.end_ps[dep - plan.first] - 2 * sure_ps


@pytest.mark.parametrize(("said", "whose"), [
    ("CUDA error: an illegal memory access was encountered\nmore of it", None),
    ("CUDA out of memory. Tried to allocate 2.00 GiB", None),
    ("NCCL error in: a.cpp:1, unhandled cuda error\nncclUnhandledCudaError: Call to CUDA function failed.", None),
    ("NCCL error in: a.cpp:1, remote process exited\nncclRemoteError: A call failed possibly due to a network error", 1),
    ("[tcp/pair.cc:1] Connection closed by peer", 1),
])  # fmt: skip
def test_an_error_of_the_own_device_is_no_loss_of_a_peer(said: str, whose: int | None) -> None:
    def operation(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    device = StandIn()
    with closing(device), pytest.raises(RuntimeError if whose is None else PeerLost) as raised:
        RankDevice(device).do("to.1", Links._transfer(operation, torch.empty(0), 1, None))
    if whose is None:
        assert str(raised.value) == said
    else:
        assert (raised.value.peer, "\n" in str(raised.value)) == (1, False)


def test_more_ranks_than_links_can_join_are_refused() -> None:
    with pytest.raises(UserError, match=f"--ranks: is {MOST_RANKS + 1}"):
        Links(0, MOST_RANKS + 1, STAND_IN, device=None)  # type: ignore[arg-type]


GPUS = 0 if devices.missing() else torch.cuda.device_count()


@pytest.mark.gpu
@pytest.mark.skipif(not GPUS, reason=devices.missing())
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_on_gpus_over_nccl(ranks: int, scheduler: str) -> None:
    """Rows that all go to few experts, a rank without rows, and more rows than before. One rank sends nothing."""
    if ranks > GPUS:
        pytest.skip(f"{ranks} ranks need as many GPUs, here are {GPUS}")
    with Cluster(ranks) as cluster:
        idle = [17] + [0] * (ranks - 1)
        for tokens, skew in (([300 + r for r in range(ranks)], 0.0), ([64] * ranks, 60.0), (idle, 0.0), ([900] * ranks, 0.6)):
            setup = layers(tokens, scheduler, layers=3, skew=skew, device=CUDA)
            done = run(cluster, setup)
            assert runs.compare(setup, done.outputs).largest < 1e-4
            assert np.all(done.run.status == DONE)
        setup = serving(ranks + 1, ranks, scheduler, CUDA)
        assert runs.compare(setup, run(cluster, setup).outputs).tokens_equal


# A profile of such ranks ------------------------------------------------------------------------


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--device cuda` of commands that start ranks is the stand-in, and what calibration takes is small."""
    monkeypatch.setattr(devices, "for_ranks", lambda name, ranks: STAND_IN)
    monkeypatch.setattr(probes, "PROBES", tuple(probes.Probe(s, 48, 64, 128, 8, 2, 0.0) for s in SCHEDULERS))
    monkeypatch.setattr(transport, "SIZES", (0, 1 << 14, 1 << 16))


@pytest.mark.usefixtures("played")
def test_the_commands_calibrate_run_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One profile by the same calibration as ranks on cores: ops on one device alone, puts and words, corrected by whole layers."""
    (tmp_path / "config.json").write_text(json.dumps(hf_config(spec(vocab=256))))
    path = tmp_path / "profile.yaml"
    assert main(["calibrate", "--ranks", "2", "--device", "cuda", "-o", str(path)]) == 0
    profile = machines.load(str(path))
    assert machine.ranks_of(profile) == 2 and machine.has_devices(profile)
    assert {lane.cores for lane in profile.lanes} == {"gpu.0", "gpu.1", "cores.0"}
    assert profile.lane["put.0.1"].path == ("link.0.out", "link.1.in")
    capsys.readouterr()
    command = f"run --ranks 2 --device cuda --model {tmp_path} --scheduler bulk-sync --tokens 30 --check --json --machine {path}"
    timeline = tmp_path / "run.parquet"
    assert main([*command.split(), "--timeline", str(timeline)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["max_difference"] < 1e-5
    assert found["simulated"]["makespan_s"] > 0
    assert sorted(found["device_clocks"]) == ["0", "1"]
    assert read_timeline(timeline).provenance.facts["device_clock.1"].startswith("events sure to 0.0 us on the clock of its host")
    with pytest.raises(UserError, match="is no profile of 2 ranks; run: python -m exec calibrate --ranks 2 -o"):
        profiling.load(str(path), [2])


def test_a_rank_computes_beside_another_where_each_has_a_device() -> None:
    """A task takes all of its own device and nothing of the other's; ranks that share one core take turns."""
    ops = [OpRate(op=op, lane="gpu", curve=((1.0, 1e-9),), source="test") for op in ("rms_norm", "router")]
    ops.append(OpRate(op="task.gate", lane="gpu", latency_s=1e-3, source="test"))
    one = Resource(kind="cores", capacity=1, source="test")
    builder = PlanBuilder()
    for rank in range(2):
        builder.add(Work("gate", tokens=1), names.gpu(rank))
    plan, order = builder.build(), layers([1, 1], "overlapped").order
    took = []
    for device in (one, None):
        made = machine.of_ranks("test", [machine.Place(0, 0)] * 2, 1, one, {}, ops, device=device)
        costs = prices.ClusterCosts(made, order, {(0, 0, 0): np.ones((2, 8), np.int64)})
        took.append(run_compiled(costs.bind(plan), made.lanes, {}).makespan_ps)
    assert took[1] == pytest.approx(2 * took[0], rel=1e-6)


def test_the_rate_of_a_link_survives_a_disturbed_put() -> None:
    timed = [transport.Timed(1 << 20, 2e-3, 0.0), transport.Timed(1 << 22, 2.1e-3, 0.0)]
    assert transport.link_of(timed).capacity == pytest.approx((1 << 22) / 2.1e-3)
    timed[0] = transport.Timed(1 << 20, 1e-3, 0.0)
    assert transport.link_of(timed).capacity == pytest.approx(3 * (1 << 20) / 1.1e-3)
