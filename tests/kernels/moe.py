"""A layer of random numbers, its tiles in the scheduler's order, and what its stamps must satisfy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from exec.fused import program_of, run_of
from kernels.fused_moe.host import Layer
from kernels.fused_moe.reference import reference
from kernels.fused_moe.tiles import Tiles, Tiling
from sim import models
from sim.body import TileCosts, with_blocks
from sim.engines.run import DONE, SKIPPED, Run
from sim.machines import load
from sim.models.spec import ModelSpec
from sim.plan import Plan
from sim.schedulers.policy import Policy
from sim.schedulers.ticket import Ticket
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
    scheduler = Ticket(model_of(hidden, ffn, experts, top_k), Policy(batch=1, microbatch=1), tiling=tiling)
    x, gate, residual = floats(rng, tokens, hidden), floats(rng, experts, hidden), floats(rng, tokens, hidden)
    if spread == "one":
        x[:, 0] = 40
        gate[:, 0] = -np.arange(experts)
    weights = floats(rng, experts * 3 * ffn * hidden) * np.float32(hidden**-0.5)
    layer = Layer(
        x, gate, weights, residual, poisoned(tokens, hidden), poisoned(tokens, top_k, dtype=np.int16), poisoned(tokens, top_k)
    )
    wanted = reference(*(a.astype(float) for a in (x, gate, weights, residual)), top_k, ffn)
    return Case(scheduler.tiles(tokens), scheduler.body(tokens), layer, *wanted)


def check_timeline(case: Case, state: Any, blocks: int) -> Run:
    """Each tile once, dependencies kept, exactly the surplus ones skipped, no block in two tiles at a time."""
    run = run_of(case.plan, state)
    costs = TileCosts(with_blocks(load("h200"), blocks), case.tiles, 4, case.expert_rows)
    assert np.array_equal(run.status, np.where(costs.surplus(case.plan), SKIPPED, DONE))
    assert (run.end_ps >= run.start_ps).all() and (state.stamps[:, 0] > 0).all()
    owner = np.repeat(np.arange(len(case.plan)), np.diff(case.plan.dep_ptr))
    assert (run.start_ps[owner] >= run.end_ps[case.plan.dep - case.plan.first]).all()
    ran = np.where(state.ran_on < 0, ~state.ran_on, state.ran_on)
    assert ran.min() >= 0 and ran.max() < blocks
    for block in range(blocks):
        mine = np.flatnonzero(state.ran_on == block)  # tickets ascend, as the block drew them
        assert (state.stamps[mine[1:], 0] >= state.stamps[mine[:-1], 1]).all()
    return run
