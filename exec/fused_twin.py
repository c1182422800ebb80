"""One fused MoE layer on both clocks: the same scheduler, the same tasks, side by side.

Tile times come from a launch over another input: what the simulator adds is who waits for whom, how
tiles of other sizes do, and what is left of a block's time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exec.fused import LaunchEngine, Stamps, on_host
from kernels.fused_moe.host import Layer
from kernels.fused_moe.tiles import OPS, Tiles
from sim.body import LANE, TileCosts, units, with_skipped
from sim.drive import Log, drive
from sim.engines.run import DONE, SKIPPED, Run
from sim.events import Request
from sim.machines.schema import Lane, Machine, OpRate, Resource
from sim.models.spec import ModelSpec
from sim.plan import Plan
from sim.schedulers.policy import Policy
from sim.schedulers.ticket import Ticket
from sim.tasks import PS_PER_S

REPEATS = 5


@dataclass(frozen=True, slots=True)
class Twin:
    """A layer that really ran, and its simulated twin. expert_rows: what its router chose, which both did."""

    plan: Plan
    measured: Run
    simulated: Run
    expert_rows: tuple[int, ...]

    @property
    def error(self) -> float:
        """Simulated over measured makespan, minus 1."""
        return self.simulated.makespan_ps / self.measured.makespan_ps - 1

    def summary(self) -> dict[str, Any]:
        return {
            "tasks": len(self.plan), "skipped": int((self.measured.status == SKIPPED).sum()),
            "experts": sum(r > 0 for r in self.expert_rows),
            "measured_s": self.measured.makespan_ps / PS_PER_S, "simulated_s": self.simulated.makespan_ps / PS_PER_S, "error": self.error,
            "tiles": [self._row(op) for op in OPS if self._of(op).any()],
        }  # fmt: skip

    def _of(self, op: str) -> NDArray[np.bool_]:
        return np.array([w.op == op for w in self.plan.works])[self.plan.work] & (self.measured.status == DONE)

    def _row(self, op: str) -> dict[str, Any]:
        mine = self._of(op)
        busy = {name: float((run.end_ps - run.start_ps)[mine].sum()) / PS_PER_S for name, run in self._clocks()}
        return {"op": op, "tiles": int(mine.sum()), **{f"{name}_busy_s": seconds for name, seconds in busy.items()}}

    def _clocks(self) -> tuple[tuple[str, Run], tuple[str, Run]]:
        return ("measured", self.measured), ("simulated", self.simulated)


def twin(model: ModelSpec, tokens: int, blocks: int, seed: int = 0) -> Twin:
    """Run a layer of `model` in fp32 over `tokens` random rows on `blocks` threads, and simulate it.

    Of five launches the one of median makespan is shown.
    """
    requests = [Request(i, 1, 1) for i in range(tokens)]
    tiles = _scheduler(model).tiles(tokens)
    other, layer = _layer(tiles, seed + 1), _layer(tiles, seed)
    unpriced = TileCosts(_machine(blocks, ()), tiles, 4)  # nothing is known yet; the list is the same
    machine = calibrated(tiles, [_launch(model, requests, tiles, other, blocks, unpriced) for _ in range(REPEATS)], other, blocks)
    expected = TileCosts(machine, tiles, 4)
    runs = sorted((_launch(model, requests, tiles, layer, blocks, expected).run for _ in range(REPEATS)), key=lambda run: run.makespan_ps)
    rows = _expert_rows(layer)
    return Twin(plan_of_run(runs[0]), runs[REPEATS // 2], _simulate(model, requests, TileCosts(machine, tiles, 4, rows)), rows)


def _scheduler(model: ModelSpec) -> Ticket:
    return Ticket(model, Policy(batch=1, microbatch=1))


def _layer(tiles: Tiles, seed: int) -> Layer:
    s, rng = tiles.shape, np.random.default_rng(seed)

    def floats(*shape: int, scale: float = 1.0) -> NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)

    return Layer(
        x=floats(s.tokens, s.hidden), gate=floats(s.experts, s.hidden), residual=floats(s.tokens, s.hidden),
        experts=floats(s.experts * 3 * s.ffn * s.hidden, scale=s.hidden**-0.5), out=np.empty((s.tokens, s.hidden), np.float32),
        ids=np.empty((s.tokens, s.top_k), np.int16), weights=np.empty((s.tokens, s.top_k), np.float32),
    )  # fmt: skip


def _expert_rows(layer: Layer) -> tuple[int, ...]:
    return tuple(np.bincount(layer.ids.ravel(), minlength=len(layer.gate)).tolist())


def _launch(model: ModelSpec, requests: list[Request], tiles: Tiles, layer: Layer, blocks: int, profile: TileCosts) -> LaunchEngine:
    engine = LaunchEngine(on_host(tiles, layer, blocks), requests, profile)
    drive(_scheduler(model), engine, Log())
    return engine


def _simulate(model: ModelSpec, requests: list[Request], costs: TileCosts) -> Run:
    from sim.engines.simpy_engine import SimPyEngine

    engine = SimPyEngine(costs.lanes, {}, costs, profile=costs, arrivals=requests)
    drive(_scheduler(model), engine, Log())
    return with_skipped(engine.run, plan_of_run(engine.run), costs)


def plan_of_run(run: Run) -> Plan:
    """The one Plan that a run of a body was given."""
    (plan,) = run.sources
    assert isinstance(plan, Plan), plan
    return plan


def calibrated(tiles: Tiles, launches: list[LaunchEngine], layer: Layer, blocks: int) -> Machine:
    """Curves of tile seconds from launches over `layer`: the median of each kind and number of rows; and what
    passes between two tiles of a block."""
    costs = TileCosts(_machine(blocks, ()), tiles, 4, _expert_rows(layer))
    sizes = costs.sizes(plan_of_run(launches[0].run))
    seconds = np.median([one.run.end_ps - one.run.start_ps for one in launches], axis=0) / PS_PER_S
    between_s = float(np.median(np.concatenate([_between(one.stamps, b) for one in launches for b in range(blocks)]))) * 1e-9
    ops = []
    for code, op in enumerate(OPS):
        mine = (sizes[:, 0] == code) & (sizes[:, 1] > 0)
        if mine.any():
            each = seconds[mine] / [units(code, c, tiles.shape) for c in sizes[mine, 2].tolist()]
            ops.append(_curve(op, sizes[mine, 1], each, between_s))
    return _machine(blocks, tuple(ops))


def _between(stamps: Stamps, block: int) -> NDArray[np.int64]:
    """Nanoseconds from the end of a tile to the start of the next, of one block."""
    mine = stamps.stamps[stamps.ran_on == block]
    return mine[1:, 0] - mine[:-1, 1]


def _curve(op: str, rows: NDArray[np.int64], seconds_per_unit: NDArray[np.float64], latency_s: float) -> OpRate:
    points = tuple((float(r), float(np.median(seconds_per_unit[rows == r]))) for r in np.unique(rows))
    source = "calibrated: median of the stamps of launches over another input"
    return OpRate(op=op, lane=LANE, latency_s=latency_s, curve=points, source=source)


def _machine(blocks: int, ops: tuple[OpRate, ...]) -> Machine:
    """Threads of this computer as the blocks of a kernel; each keeps a core busy."""
    usable = float(max(blocks, len(os.sched_getaffinity(0))))
    cores = Resource(kind="cores", capacity=usable, source="read from the operating system")
    lane = Lane(name=LANE, order="ready", kind="compute", servers=blocks, cores="cores", threads=1)
    return Machine(name="blocks of this computer", resources={"cores": cores}, memories={}, lanes=(lane,), ops=ops)
