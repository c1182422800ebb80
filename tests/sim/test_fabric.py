"""Topologies, routes, ranks with lanes of their own, and collectives made of puts on simulated time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from sim import machines
from sim.benchmark import Given
from sim.costs import PricedPlan, Prices, pack
from sim.drive import drive
from sim.engines.compiled import run_compiled
from sim.engines.run import Run
from sim.engines.simpy_engine import SimPyEngine
from sim.errors import UserError
from sim.fabric import all_gather, all_to_all, barrier, expand, put_price, ranks, reduce_scatter, with_nodes
from sim.machines.op_table import OpTable
from sim.machines.schema import Machine, Topology
from sim.plan import Plan, PlanBuilder
from sim.tasks import PS_PER_S, Task

RANKS = ("2xa100", "4xh100", "8xh100", "8xh20", "8xh800", "2x8h100", "8x8h100")


class PutCosts:
    """Prices puts by the fabric and nothing else."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.table = machine, OpTable(machine)
        self.resources = tuple(machine.resources)
        self.capacity = np.array([r.capacity for r in machine.resources.values()])

    def bind(self, plan: Plan) -> PricedPlan:
        rows = [self._row(task) for task in plan.tasks()]
        return PricedPlan(plan, np.arange(len(plan), dtype=np.int32), pack(rows), self.resources, self.capacity)

    def task(self, task: Task) -> Prices:
        return pack([self._row(task)])

    def _row(self, task: Task) -> Any:
        if task.lane is None:
            return 0, []
        lane = self.machine.lane[task.lane]
        latency, demands = put_price(self.machine, lane, task.work, self.table.row(lane, task.work))
        priced = [(self.resources.index(name), amount, cap, weight) for name, amount, cap, weight in demands if amount]
        return round(latency * PS_PER_S), priced


def run(machine: Machine, builder: PlanBuilder) -> Run:
    """On both engines, which must agree."""
    plan, costs = builder.build(), PutCosts(machine)
    fast = run_compiled(costs.bind(plan), machine.lanes, {})
    slow = SimPyEngine(machine.lanes, {}, costs, profile=costs)  # type: ignore[arg-type]
    drive(Given(plan), slow)
    assert fast.same_times(slow.run)
    return fast


def seconds(found: Run, number: int) -> float:
    return float(found.end_ps[number]) / PS_PER_S


@pytest.mark.parametrize("name", RANKS)
def test_machines_of_ranks_expand(name: str) -> None:
    machine = machines.load(name)
    n = ranks(machine)
    wide = expand(machine)
    puts = [lane for lane in wide.lanes if lane.kind == "copy"]
    assert len(puts) == n * (n - 1)
    assert all(wide.resources[r].source for lane in puts for r in lane.path)
    assert {f"gpu.{r}.{part}" for r in range(n) for part in ("flops", "hbm", "sms")} <= set(wide.resources)
    assert all(lane.families[-1] == lane.name.partition(".")[0] for lane in wide.lanes)


def test_routes_of_two_nodes() -> None:
    topology = machines.load("2x8h100").topology
    assert topology is not None and topology.node_of(7) == 0 and topology.node_of(8) == 1
    inside, rail, across = topology.route(0, 7), topology.route(0, 8), topology.route(0, 9)
    assert inside.resources == ("gpu.0>nvswitch.0", "nvswitch.0>gpu.7") and inside.kind == "nvlink" and inside.messages_per_s is None
    assert rail.kind == "rdma" and rail.resources[1:3] == ("nic0.0>rail0", "nic0.0>rail0.messages") and rail.messages_per_s == 260e6
    assert rail.latency_s == pytest.approx(9.4e-6)
    assert "rail0>spine" in across.resources and across.latency_s > rail.latency_s
    with pytest.raises(ValueError, match="from rank 3 to rank 3"):
        topology.route(3, 3)
    with pytest.raises(ValueError, match="0 to 15"):
        topology.route(0, 16)


def test_no_gpu_forwards_for_others() -> None:
    chain = {"gpus": 3, "links": [link("gpu0", "gpu1"), link("gpu1", "gpu2")]}
    topology = Topology.model_validate({**chain, "gpu": gpu()})
    assert topology.route(0, 1).resources == ("gpu.0>gpu.1",)
    with pytest.raises(KeyError):
        topology.route(0, 2)


def test_a_pcie_tree_shares_its_root() -> None:
    """Two GPUs behind one switch share the link above it on the way to the third."""
    links = [link("gpu0", "switch"), link("gpu1", "switch"), link("switch", "root"), link("gpu2", "root")]
    tree = Topology.model_validate({"gpus": 3, "gpu": gpu(), "links": links})
    a, b = tree.route(0, 2).resources, tree.route(1, 2).resources
    assert set(a) & set(b) == {"switch.0>root.0", "root.0>gpu.2"}
    assert "switch.0>root.0" not in tree.route(0, 1).resources


def link(a: str, b: str, rate: float = 1e9) -> dict[str, Any]:
    return {"ends": [a, b], "kind": "pcie", "bytes_per_s": rate, "latency_s": 1e-6, "source": "drawn"}


def gpu() -> dict[str, Any]:
    return {"peaks": {"bf16": 1e12}, "hbm_bytes_per_s": 1e11, "memory_bytes": 10**9, "sms": 10, "source": "drawn"}


def test_a_topology_that_is_no_whole_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"none ends at gpu\.1"):
        Topology.model_validate({"gpus": 2, "gpu": gpu(), "links": [link("gpu0", "nic")]})
    with pytest.raises(ValidationError, match="cannot reach each other"):
        Topology.model_validate({"gpus": 2, "gpu": gpu(), "links": [link("gpu*", "nic*")]})
    with pytest.raises(ValidationError, match="peaks.bf16: missing"):
        Topology.model_validate({"gpus": 1, "gpu": gpu() | {"peaks": {"fp8": 1e12}}})
    with pytest.raises(UserError, match="t4: has no topology"):
        ranks(machines.load("t4"))
    with pytest.raises(UserError, match="4xh100: topology.network: missing; 2 nodes"):
        with_nodes(machines.load("4xh100"), 2)


def test_nodes_can_be_added() -> None:
    assert ranks(with_nodes(machines.load("8xh800"), 4)) == 32


def small(**put: Any) -> Machine:
    """Four ranks on a switch of 1 GB/s a port and 1 us a hop."""
    row = {"op": "*", "lane": "put", "source": "drawn"} | put
    topology = {"gpus": 4, "gpu": gpu(), "links": [link("gpu*", "switch")], "ops": [row]}
    return expand(Machine.model_validate({"name": "small", "topology": topology}))


def nobody(n: int = 4) -> list[list[int]]:
    return [[] for _ in range(n)]


def test_all_to_all_takes_what_its_fullest_link_does() -> None:
    """Every rank sends 1 MB to each of three: 3 ms at 1 GB/s, and the latency of two hops."""
    builder = PlanBuilder()
    done = all_to_all(builder, [[10**6] * 4] * 4, nobody())
    assert seconds(run(small(), builder), done.done) == pytest.approx(3e-3 + 2e-6, rel=1e-6)


def test_all_to_all_v_waits_for_its_hot_receiver_only_there() -> None:
    sizes = [[0, 10**6, 0, 0], [0, 0, 0, 0], [0, 10**6, 0, 0], [0, 2 * 10**6, 0, 0]]
    builder = PlanBuilder()
    found = all_to_all(builder, sizes, nobody(), rendezvous=False)
    times = run(small(), builder)
    assert seconds(times, found.puts[0, 1]) == pytest.approx(3e-3 + 2e-6, rel=1e-6)
    assert seconds(times, found.received[1]) == pytest.approx(4e-3 + 2e-6, rel=1e-6)
    assert seconds(times, found.puts[1, 0]) == pytest.approx(2e-6, rel=1e-6)


def test_rendezvous_waits_for_the_receiver() -> None:
    def late(rendezvous: bool) -> float:
        builder = PlanBuilder()
        slow = builder.add(all_to_all_work(10**7), "put.3.2")
        found = all_to_all(builder, [[0] * 4] * 4, [[], [], [], [slow]], rendezvous=rendezvous)
        return seconds(run(small(), builder), found.puts[0, 3])

    assert late(True) > 1e-2 > late(False)


def all_to_all_work(size: int) -> Any:
    from sim.tasks import Work

    return Work("put", bytes=size, messages=1)


def test_efficiency_is_shared_by_the_puts_of_a_link_and_a_cap_is_not() -> None:
    def a2a(**put: Any) -> float:
        builder = PlanBuilder()
        return seconds(run(small(**put), builder_with(builder)), len(builder) - 1)

    def builder_with(builder: PlanBuilder) -> PlanBuilder:
        all_to_all(builder, [[10**6] * 4] * 4, nobody())
        return builder

    assert a2a(bytes_efficiency=0.5) == pytest.approx(6e-3 + 2e-6, rel=1e-6)
    assert a2a(bytes_per_s=0.5e9) == pytest.approx(3e-3 + 2e-6, rel=1e-6)
    assert a2a(bytes_per_s=0.2e9) == pytest.approx(5e-3 + 2e-6, rel=1e-6)


def test_a_nic_sends_only_so_many_messages() -> None:
    nic = link("gpu*", "switch") | {"messages_per_s": 1e6}
    topology = {"gpus": 2, "gpu": gpu(), "links": [nic], "ops": [{"op": "*", "lane": "put", "source": "drawn"}]}
    machine = expand(Machine.model_validate({"name": "small", "topology": topology}))
    for messages, expected in ((1, 1e-3), (5000, 5e-3)):
        builder = PlanBuilder()
        sizes, cut = [[0, 10**6], [0, 0]], [[0, messages], [0, 0]]
        found = all_to_all(builder, sizes, nobody(2), messages=cut)
        assert seconds(run(machine, builder), found.puts[0, 1]) == pytest.approx(expected + 2e-6, rel=1e-6)


def test_a_kernel_that_moves_data_takes_sms() -> None:
    machine = small(sms=4.0)
    builder = PlanBuilder()
    all_to_all(builder, [[10**6] * 4] * 4, nobody())
    costs = PutCosts(machine)
    plan = builder.build()
    rows = [costs._row(task)[1] for task in plan.tasks() if task.lane is not None and task.rank == 0]
    sms = costs.resources.index("gpu.0.sms")
    busy = sum(amount for row in rows for k, amount, _, _ in row if k == sms)
    assert busy == pytest.approx(4 * 3e-3)  # four SMs for the 3 ms that the rank's link is full


def test_ring_gather_and_scatter_cross_every_link_w_minus_1_times() -> None:
    for collective in (all_gather, reduce_scatter):
        builder = PlanBuilder()
        done = collective(builder, [10**6] * 4, nobody())
        assert seconds(run(small(), builder), done.done) == pytest.approx(3 * (1e-3 + 2e-6), rel=1e-6)
        moved = [task for task in builder.build().tasks() if task.lane is not None]
        assert sum(task.work.bytes for task in moved) == 12 * 10**6


def test_ring_gather_sends_every_part_to_everybody() -> None:
    builder = PlanBuilder()
    all_gather(builder, [1, 10, 100, 1000], nobody())
    into: dict[int, int] = {}
    for task in builder.build().tasks():
        if task.lane is not None:
            into[task.page] = into.get(task.page, 0) + task.work.bytes
    assert into == {0: 1110, 1: 1101, 2: 1011, 3: 111}


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_barrier_lets_nobody_through_before_the_last(n: int) -> None:
    for late in range(n):
        builder = PlanBuilder()
        timer = builder.add(all_to_all_work(10**6), f"put.{late}.{(late + 1) % 4}")
        found = barrier(builder, [[timer] if r == late else [] for r in range(n)])
        times = run(small(), builder)
        assert all(seconds(times, r) >= seconds(times, timer) for r in found.received)
        rounds = (n - 1).bit_length()
        assert seconds(times, found.done) == pytest.approx(1e-3 + 2e-6 + rounds * 2e-6, rel=1e-6)
