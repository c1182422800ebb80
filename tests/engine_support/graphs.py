"""Hypothesis strategies for whole simulations: machine, prices, tasks, changes."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from sim.engines.compiled import run_compiled
from sim.engines.run import Run
from sim.engines.simpy_engine import SimPyEngine
from sim.plan import Plan, plan_of
from sim.tasks import Task, Work
from tests.engine_support.fakes import Demand, FakeCosts, Lane

ORDERS = ("submitted", "ready", "priority")
OPS = ("a", "b", "c", "d", "e")


@dataclass(frozen=True)
class Case:
    """Everything that an engine is given."""

    lanes: tuple[Lane, ...]
    pools: dict[str, int]
    costs: FakeCosts
    tasks: tuple[Task, ...]
    changes: tuple[tuple[int, str, float], ...]

    def __repr__(self) -> str:
        costs = f"FakeCosts({dict(zip(self.costs.resources, self.costs.capacity.tolist(), strict=True))}, {self.costs.rows})"
        tasks = ", ".join(
            f"Task({t.number}, Work({t.op!r}, latency_ps={t.work.latency_ps}), {t.lane!r}, deps={t.deps}, takes={t.takes},"
            f" releases={t.releases}, priority={t.priority})"
            for t in self.tasks
        )
        return f"Case({self.lanes}, {self.pools}, {costs}, ({tasks}), {self.changes})"

    def simpy(self) -> Run:
        engine = SimPyEngine(self.lanes, self.pools, self.costs, changes=self.changes)
        engine.submit([plan_of(self.tasks)])
        while engine.wait() is not None:
            pass
        return engine.run

    def simpy_loose(self) -> Run:
        """Handed out task by task."""
        engine = SimPyEngine(self.lanes, self.pools, self.costs, changes=self.changes)
        engine.submit(self.tasks)
        while engine.wait() is not None:
            pass
        return engine.run

    def compiled(self) -> Run:
        return run_compiled(self.costs.bind(plan_of(self.tasks)), self.lanes, self.pools, changes=self.changes)


lanes = st.lists(
    st.tuples(st.sampled_from(ORDERS), st.sampled_from([1, 1, 1, 2, 3])), min_size=1, max_size=4
).map(lambda rows: tuple(Lane(f"lane{i}", order, servers) for i, (order, servers) in enumerate(rows)))

amounts = st.one_of(st.integers(0, 12).map(float), st.floats(0.01, 20.0))
caps = st.one_of(st.just(float("inf")), st.integers(1, 8).map(float), st.floats(0.1, 10.0))
weights = st.one_of(st.just(1.0), st.integers(1, 4).map(float), st.floats(0.1, 5.0))


@st.composite
def prices(draw: st.DrawFn) -> FakeCosts:
    """One to four resources; five ops. Times lie between a picosecond and seconds, with many ties."""
    capacity = {f"r{k}": draw(st.one_of(st.integers(1, 8).map(float), st.floats(0.5, 10.0))) for k in range(draw(st.integers(1, 4)))}
    scale = draw(st.sampled_from([1e-12, 1e-10, 1e-6, 1.0]))
    rows = {}
    for op in OPS:
        used = draw(st.lists(st.integers(0, len(capacity) - 1), unique=True, max_size=3))
        rows[op] = (
            draw(st.sampled_from([0, 0, 1, 5, 1000])),
            [Demand(k, draw(amounts) * scale, draw(caps), draw(weights)) for k in used],
        )
    return FakeCosts(capacity, rows)


@st.composite
def cases(draw: st.DrawFn, max_tasks: int = 25, pools: bool = True, changes: bool = True, bodies: bool = False) -> Case:
    """A random task graph on a random machine. It may deadlock where pools are in play. bodies: some tasks have one."""
    machine = draw(lanes)
    inside = draw(st.lists(_body(machine), min_size=1, max_size=2)) if bodies else []
    costs = draw(prices())
    capacity = {f"p{k}": draw(st.integers(1, 4)) for k in range(draw(st.integers(0, 2)))} if pools else {}
    first = draw(st.sampled_from([0, 7]))
    tasks: list[Task] = []
    for number in range(first, first + draw(st.integers(1, max_tasks))):
        kind = draw(st.sampled_from(["lane"] * 6 + ["timer", "join"]))
        lane = draw(st.sampled_from([row.name for row in machine])) if kind == "lane" else None
        op = draw(st.sampled_from(OPS)) if kind == "lane" else kind
        latency = draw(st.sampled_from([0, 1, 3, 700])) if kind == "timer" else 0
        takes = draw(st.lists(st.sampled_from(sorted(capacity)), unique=True, max_size=2)) if capacity and kind != "timer" else []
        earlier = st.integers(first, number - 1)
        holders = [t.number for t in tasks if t.takes]
        releases = draw(st.lists(st.sampled_from(holders), max_size=3)) if holders else []
        if takes and draw(st.integers(0, 3)) > 0:
            releases.append(number)
        tasks.append(Task(
            number, Work(op, latency_ps=latency), lane,
            deps=tuple(draw(st.lists(earlier, max_size=3))) if number > first else (),
            takes=tuple((p, draw(st.integers(1, capacity[p]))) for p in takes),
            releases=tuple(releases), priority=draw(st.integers(0, 2)),
            body=draw(st.sampled_from([None, *inside])) if lane else None,
        ))  # fmt: skip
    return Case(machine, capacity, costs, tuple(tasks), tuple(draw(_changes(costs)) if changes else ()))


@st.composite
def _body(draw: st.DrawFn, machine: tuple[Lane, ...]) -> Plan:
    """Up to six tasks, some surplus, on lanes that take what is ready; joins only where the machine has no such lane."""
    found = [None, *(row.name for row in machine if row.order != "submitted")]
    first = draw(st.sampled_from([0, 40]))
    tasks: list[Task] = []
    for number in range(first, first + draw(st.integers(0, 6))):
        lane = draw(st.sampled_from(found))
        work = Work(draw(st.sampled_from(OPS)), variant=draw(st.sampled_from(["", "", "surplus"]))) if lane else Work("join")
        deps = draw(st.lists(st.integers(first, number - 1), max_size=2)) if tasks else []
        tasks.append(Task(number, work, lane, deps=tuple(deps), priority=draw(st.integers(0, 2))))
    return plan_of(tasks)


@st.composite
def _changes(draw: st.DrawFn, costs: FakeCosts) -> list[tuple[int, str, float]]:
    """Up to four capacity changes; each 0 is followed by a return, except now and then."""
    found = []
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(costs.resources))
        at = draw(st.one_of(st.integers(0, 30), st.integers(0, 10**6)))
        to = draw(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.7]))
        found.append((at, name, to))
        if draw(st.integers(0, 9)) > 0:
            found.append((at + draw(st.integers(0, 1000)), name, draw(st.sampled_from([1.0, 2.5, 4.0]))))
    return found
