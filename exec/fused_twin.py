"""One fused MoE layer on both clocks: the same plan, the same tiles inside its task, side by side.

Tile times come from launches over another input: what the simulator adds is who waits for whom, how
tiles of other sizes do, and what is left of a block's time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exec.fused import LayerBackend
from exec.runtime import ThreadEngine
from kernels.fused_moe.host import Layer
from kernels.fused_moe.tiles import OPS
from sim.benchmark import Given
from sim.body import LANE, tile_rows
from sim.costs import CostModel
from sim.drive import Log, drive
from sim.engines.run import DONE, SKIPPED, Inside
from sim.machines.schema import Lane, Machine, OpRate, Resource
from sim.models.spec import ModelSpec
from sim.ops import components
from sim.plan import Plan
from sim.schedulers.ticket import layer_plan
from sim.tasks import PS_PER_S

REPEATS = 5


class Launched(NamedTuple):
    """One task: its start and end, what ran inside, and the block of each tile ([m], where it is known)."""

    start_ps: int
    end_ps: int
    inside: Inside
    ran_on: NDArray[np.int32] | None = None

    @property
    def span_ps(self) -> int:
        return self.end_ps - self.start_ps


@dataclass(frozen=True, slots=True)
class Chosen:
    """Routing that is known: rows of each expert. Implements `sim.costs.Routing`."""

    rows: tuple[int, ...]

    def expert_tokens(self, requests: tuple[int, ...], phase: str, step: int, layer: int) -> tuple[int, ...]:
        return self.rows


@dataclass(frozen=True, slots=True)
class Twin:
    """A layer that really ran, and its simulated twin. expert_rows: what its router chose, which both did."""

    plan: Plan
    measured: Launched
    simulated: Launched
    expert_rows: tuple[int, ...]

    @property
    def error(self) -> float:
        """Simulated over measured time of the task, minus 1."""
        return self.simulated.span_ps / self.measured.span_ps - 1

    def summary(self) -> dict[str, Any]:
        status = self.measured.inside.status
        return {
            "tasks": len(status), "skipped": int((status == SKIPPED).sum()), "experts": sum(r > 0 for r in self.expert_rows),
            "measured_s": self.measured.span_ps / PS_PER_S, "simulated_s": self.simulated.span_ps / PS_PER_S, "error": self.error,
            "tiles": [self._row(op) for op in OPS if self._of(op).any()],
        }  # fmt: skip

    def _of(self, op: str) -> NDArray[np.bool_]:
        body = self.measured.inside.body
        return np.array([w.op == op for w in body.works])[body.work] & (self.measured.inside.status == DONE)

    def _row(self, op: str) -> dict[str, Any]:
        mine, clocks = self._of(op), (("measured", self.measured.inside), ("simulated", self.simulated.inside))
        busy = {f"{name}_busy_s": float((one.end_ps - one.start_ps)[mine].sum()) / PS_PER_S for name, one in clocks}
        return {"op": op, "tiles": int(mine.sum()), **busy}


def twin(model: ModelSpec, tokens: int, blocks: int, seed: int = 0) -> Twin:
    """Run a layer of `model` in fp32 over `tokens` random rows on `blocks` threads, and simulate it.

    Of five launches the one of median length is shown. Those that tile times come from take turns with them.
    """
    model = replace(model, dtype="fp32", expert_dtype="")
    plan = layer_plan(model, tokens, blocks=blocks)
    other, layer = _layer(model, tokens, seed + 1), _layer(model, tokens, seed)
    known, shown = launches(model, (other, layer), blocks)
    machine, rows = calibrated(model, known, _expert_rows(other), blocks), _expert_rows(layer)
    measured = sorted(shown, key=lambda one: one.span_ps)[REPEATS // 2]
    return Twin(plan, measured, _simulate(plan, CostModel(machine, model, Chosen(rows))), rows)


def _layer(model: ModelSpec, tokens: int, seed: int) -> Layer:
    rng = np.random.default_rng(seed)

    def floats(*shape: int, scale: float = 1.0) -> NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)

    return Layer(
        x=floats(tokens, model.hidden), gate=floats(model.experts, model.hidden), residual=floats(tokens, model.hidden),
        experts=floats(model.experts * 3 * model.ffn * model.hidden, scale=model.hidden**-0.5),
        out=np.empty((tokens, model.hidden), np.float32), ids=np.empty((tokens, model.top_k), np.int16),
        weights=np.empty((tokens, model.top_k), np.float32),
    )  # fmt: skip


def _expert_rows(layer: Layer) -> tuple[int, ...]:
    return tuple(np.bincount(layer.ids.ravel(), minlength=len(layer.gate)).tolist())


def launches(model: ModelSpec, layers: Sequence[Layer], blocks: int) -> list[list[Launched]]:
    """Five launches of each layer in turn, behind one that is not counted: it touches the memory."""
    machine, backend = _machine(blocks, ()), LayerBackend(layers, blocks)
    plan = layer_plan(model, len(layers[0].x), (REPEATS + 1) * len(layers), blocks=blocks)
    with ThreadEngine(machine, backend, CostModel(machine, model), ()) as engine:
        drive(Given(plan), engine, Log())
    run = engine.run()
    made = [Launched(int(run.start_ps[i]), int(run.end_ps[i]), run.inside[i], backend.ran_on[i]) for i in range(len(plan))]
    return [made[len(layers) + i :: len(layers)] for i in range(len(layers))]


def _simulate(plan: Plan, costs: CostModel) -> Launched:
    from sim.engines.compiled import run_compiled

    run = run_compiled(costs.bind(plan), costs.lanes, {})
    return Launched(int(run.start_ps[0]), int(run.end_ps[0]), run.inside[0])


def calibrated(model: ModelSpec, made: Sequence[Launched], expert_rows: tuple[int, ...], blocks: int) -> Machine:
    """Curves of tile seconds from launches: each tile's median, and their mean over a kind and number of rows, since
    times add up; what passes between two tiles of a block; and what a launch takes beside its tiles."""
    body = made[0].inside.body
    filled = tile_rows(body, expert_rows)
    seconds = np.median([one.inside.end_ps - one.inside.start_ps for one in made], axis=0) / PS_PER_S
    between_s = float(np.median(np.concatenate([_between(one, b) for one in made for b in range(blocks)]))) / PS_PER_S
    beside_s = float(np.median([one.span_ps - int(one.inside.end_ps.max() - one.inside.start_ps.min()) for one in made])) / PS_PER_S
    ops = [OpRate(op="fused_moe", lane="gpu", latency_s=beside_s, source="calibrated: what launches took before and behind their tiles")]
    works = [body.works[w] for w in body.work.tolist()]
    rows = np.where(filled < 0, [w.tokens for w in works], filled)
    for op in OPS:
        mine = np.flatnonzero(np.array([w.op == op for w in works]) & (rows > 0))
        if len(mine):
            each = seconds[mine] / [components(model, works[i])[0].units for i in mine]
            ops.append(_curve(op, rows[mine], each, between_s))
    return _machine(blocks, tuple(ops))


def _between(one: Launched, block: int) -> NDArray[np.int64]:
    """Picoseconds from the end of a tile to the start of the next, of one block."""
    on_lane = np.flatnonzero(one.inside.body.lane >= 0)
    mine = on_lane[one.ran_on == block]
    return one.inside.start_ps[mine[1:]] - one.inside.end_ps[mine[:-1]]


def _curve(op: str, rows: NDArray[np.int64], seconds_per_unit: NDArray[np.float64], latency_s: float) -> OpRate:
    points = tuple((float(r), float(seconds_per_unit[rows == r].mean())) for r in np.unique(rows))
    source = "calibrated: stamps of launches over another input, medians over launches, mean over tiles"
    return OpRate(op=op, lane=LANE, latency_s=latency_s, curve=points, source=source)


def _machine(blocks: int, ops: tuple[OpRate, ...]) -> Machine:
    """Threads of this computer as the blocks of a kernel; each keeps a core busy."""
    usable = float(max(blocks, len(os.sched_getaffinity(0))))
    cores = Resource(kind="cores", capacity=usable, source="read from the operating system")
    gpu = Lane(name="gpu", kind="compute", cores="cores", threads=blocks)
    inside = Lane(name=LANE, order="ready", kind="compute", servers=blocks, cores="cores", threads=1)
    return Machine(name="blocks of this computer", resources={"cores": cores}, memories={}, lanes=(gpu, inside), ops=ops)
