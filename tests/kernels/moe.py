"""A layer of random numbers, its tiles in the scheduler's order, and what its stamps must satisfy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from exec.fused import program_of
from exec.runtime.bodies import Stamps, inside_of
from kernels.fused_moe.host import Layer
from kernels.fused_moe.reference import reference
from kernels.fused_moe.tiles import Tiles, Tiling
from sim import models
from sim.body import tile_rows
from sim.engines.run import DONE, SKIPPED, Inside
from sim.models.spec import ModelSpec
from sim.plan import Plan
from sim.schedulers.ticket import body_of, tiles_of
from tests.kernels.arrays import floats, poisoned


@dataclass(frozen=True)
class Case:
    """One layer: operands, the body that the scheduler made, and what must come out (float64)."""

    tiles: Tiles
    plan: Plan
    layer: Layer
    wanted: np.ndarray
    ids: np.ndarray
    weights: np.ndarray

    @property
    def program(self) -> np.ndarray:
        return program_of(self.plan)

    @property
    def expert_rows(self) -> tuple[int, ...]:
        return tuple(np.bincount(self.ids.ravel(), minlength=self.tiles.shape.experts).tolist())


def model_of(hidden: int, ffn: int, experts: int, top_k: int) -> ModelSpec:
    return replace(models.load("tiny-mixtral"), hidden=hidden, ffn=ffn, experts=experts, top_k=top_k)


def case(
    tokens: int, hidden: int, ffn: int, experts: int, top_k: int, tiling: Tiling | None = None, *, spread: str = "random", seed: int = 0
) -> Case:
    """spread "one": the router prefers the same experts for every token, so that all others have none."""
    rng = np.random.default_rng(seed)
    tiles = tiles_of(model_of(hidden, ffn, experts, top_k), tokens, tiling)
    x, gate, residual = floats(rng, tokens, hidden), floats(rng, experts, hidden), floats(rng, tokens, hidden)
    if spread == "one":
        x[:, 0] = 40
        gate[:, 0] = -np.arange(experts)
    weights = floats(rng, experts * 3 * ffn * hidden) * np.float32(hidden**-0.5)
    layer = Layer(
        x, gate, weights, residual, poisoned(tokens, hidden), poisoned(tokens, top_k, dtype=np.int16), poisoned(tokens, top_k)
    )
    wanted = reference(*(a.astype(float) for a in (x, gate, weights, residual)), top_k, ffn)
    return Case(tiles, body_of(tiles), layer, *wanted)


def check_timeline(case: Case, state: Any, blocks: int) -> Inside:
    """Each tile once, dependencies kept, exactly the surplus ones skipped, no block in two tiles at a time."""
    run = inside_of(0, case.plan, Stamps(*state.stamps.T, state.ran_on < 0), int(state.stamps.min()))
    assert np.array_equal(run.status, np.where(tile_rows(case.plan, case.expert_rows) == 0, SKIPPED, DONE))
    assert (run.end_ps >= run.start_ps).all() and (state.stamps[:, 0] > 0).all()
    owner = np.repeat(np.arange(len(case.plan)), np.diff(case.plan.dep_ptr))
    assert (run.start_ps[owner] >= run.end_ps[case.plan.dep - case.plan.first]).all()
    ran = np.where(state.ran_on < 0, ~state.ran_on, state.ran_on)
    assert ran.min() >= 0 and ran.max() < blocks
    for block in range(blocks):
        mine = np.flatnonzero(state.ran_on == block)  # tickets ascend, as the block drew them
        assert (state.stamps[mine[1:], 0] >= state.stamps[mine[:-1], 1]).all()
    return run
