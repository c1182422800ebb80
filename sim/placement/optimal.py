"""Optimal: the least possible load of the busiest GPU, layer by layer, by mixed integer programming, for small cases.

Binary variables: h[e, g, c], expert e has c copies, one of them on GPU g; n[e, c], it has c copies. With load w and
speed s the largest time t is minimised:
    sum over c of n[e, c] = 1;   sum over g of h[e, g, c] = c n[e, c];   h[e, g, c] <= n[e, c];
    sum over e, c of h[e, g, c] <= slots[g];   sum over e, c of h[e, g, c] w[e] / c <= t s[g].
Without spare slots this is scheduling on uniform machines (Graham et al., Annals of Discrete Mathematics 5, 1979). Solved
by HiGHS (Huangfu and Hall, Math. Prog. Comp. 10, 2018) as scipy ships it. Where the time ends first the best found stands,
or the search's (`robust` on one load) if that is better; what is proven is told as progress.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sim.errors import UserError
from sim.placement.improve import MOST_STEPS, improved
from sim.placement.placement import Bools, Placement
from sim.placement.policy import Tell, silent
from sim.placement.problem import WHOLE, Floats, Ints, Problem
from sim.placement.robust import filled

if TYPE_CHECKING:
    from scipy.sparse import csr_array

MOST_CELLS = 20_000
"""Binary variables of a layer; a larger layer is left to the search, since the solver would not even relax it in time."""


@dataclass(frozen=True)
class Optimal:
    """limit_s: of the solver, for all layers together. most: copies of one expert that are considered."""

    whole_layers: ClassVar[bool] = False
    limit_s: float = 60.0
    most: int = 4

    def __post_init__(self) -> None:
        if self.limit_s <= 0 or self.most < 1:
            raise UserError("options limit-s and most must be above 0")

    def place(self, problem: Problem, tell: Tell = silent) -> Placement:
        slots = np.minimum(problem.gpus.slots, problem.experts)
        start = improved(problem, filled(problem), problem.load[None], np.ones(1), MOST_STEPS // 4)
        most = max(1, min(self.most, int((slots > 0).sum()), int(slots.sum()) - problem.experts + 1))
        cells = problem.experts * len(slots) * most
        if cells > MOST_CELLS:
            tell(f"{cells:,} variables a layer are more than {MOST_CELLS:,}: the search's placement stands, nothing is proven")
            return start
        held, end = start.held.copy(), time.monotonic() + self.limit_s
        for layer, load in enumerate(problem.load):
            left = (end - time.monotonic()) / (problem.layers - layer)
            found, bound = solved(load / WHOLE, slots, problem.gpus.speed, most, left) if left > 0 else (None, 0.0)
            times = [_slowest(h, load / WHOLE, problem.gpus.speed) for h in (held[layer], found) if h is not None]
            if found is not None and times[-1] <= times[0]:
                held[layer] = found
            tell(f"layer {layer + 1} of {problem.layers}: within {max(0.0, 1 - bound / min(times)):.2%} of the optimum")
        return Placement(held)


def _slowest(held: Bools, load: Floats, speed: Floats) -> float:
    return float(((load / held.sum(axis=1)) @ held / speed).max())


def solved(load: Floats, slots: Ints, speed: Floats, most: int, limit_s: float) -> tuple[Bools | None, float]:
    """The best placement of a layer found in the time [experts, gpus] (None: none), and a bound on the slowest GPU's time."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    experts, gpus = len(load), len(slots)
    matrix, low, high = _rows(load, slots, speed, most)
    count = experts * gpus * most + experts * most
    cost = np.zeros(count + 1)
    cost[-1] = 1.0
    upper = np.append(np.ones(count), np.inf)
    answer = milp(
        cost, constraints=LinearConstraint(matrix, low, high), integrality=np.append(np.ones(count), 0), bounds=Bounds(0, upper),
        options={"time_limit": limit_s, "mip_rel_gap": 1e-6},
    )  # fmt: skip
    bound = float(answer.mip_dual_bound) if answer.mip_dual_bound is not None else 0.0
    if answer.x is None:
        return None, bound
    placed = answer.x[: experts * gpus * most].reshape(experts, gpus, most)
    return np.asarray(placed.sum(axis=2) > 0.5), bound


def _rows(load: Floats, slots: Ints, speed: Floats, most: int) -> tuple[csr_array, Floats, Floats]:
    """Constraints as a sparse matrix with lower and upper limits, in the order of the module's lines."""
    from scipy.sparse import block_array, coo_array, eye_array, kron

    experts, gpus = len(load), len(slots)
    copies = np.arange(1, most + 1)
    of_expert, of_gpu, one = eye_array(experts), eye_array(gpus), np.ones
    pairs = eye_array(experts * most)
    each_copy = kron(kron(of_expert, one((1, gpus))), eye_array(most))
    spread = kron(kron(of_expert, one((gpus, 1))), eye_array(most))
    on_gpu = kron(kron(one((1, experts)), of_gpu), one((1, most)))
    times = kron(kron(load[None, :], of_gpu), (1.0 / copies)[None, :])
    blocks: list[list[Any]] = [
        [None, kron(of_expert, one((1, most))), None],
        [each_copy, -pairs.multiply(np.tile(copies, experts)[None, :]), None],
        [eye_array(experts * gpus * most), -spread, None],
        [on_gpu, None, None],
        [times, None, coo_array(-speed[:, None])],
    ]
    none = np.full
    low = np.concatenate([one(experts), np.zeros(experts * most), none(experts * gpus * most + 2 * gpus, -np.inf)])
    high = np.concatenate([one(experts), np.zeros(experts * most + experts * gpus * most), slots, np.zeros(gpus)])
    return block_array(blocks, format="csr"), low, high
