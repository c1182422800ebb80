"""Robust: good on load that has gone stale, not only on the load that was seen.

Starts from EPLB's placement and searches for the best mean balancedness over the scenarios that the recordings tell
(`scenarios`), with the pooled load as one of them so that today's load stays served well. Copies go where they guard
against change: to experts that swing, and those that swing together to different GPUs. Where only one window was ever
recorded there is nothing to learn about change, and a search that balances it to the last token pays for that on the next:
then a copy leaves its place in EPLB's only for a gain that is worth it.

With a limit on moves, every copy to be loaded gets a price, the same in all layers, and the lowest price that keeps to
the limit is taken (Lagrangian relaxation): moves go to the layers and experts where they help most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sim.errors import UserError
from sim.placement.improve import effort_s, improved, steps_for
from sim.placement.packing import spread
from sim.placement.placement import Bools, Placement
from sim.placement.policy import Tell, silent
from sim.placement.problem import Floats, Problem
from sim.placement.relabel import near_current
from sim.placement.scenarios import scenarios

PRICES = (1e-4, 0.05)
"""Lowest and highest price of a copy to be loaded, in balancedness of its layer."""
HALVINGS = 7
LEAVING = 0.005
"""Price of a copy that is elsewhere than in EPLB's placement, where one window is all that is known."""


@dataclass(frozen=True)
class Robust:
    """nominal: weight of the pooled load among the scenarios. moves: copies that may be loaded, if 1 or more; below 1 the
    share of those that would be loaded without a limit; 0: no limit. Without a current placement there is no limit."""

    whole_layers: ClassVar[bool] = False
    nominal: float = 0.25
    moves: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.nominal <= 1:
            raise UserError(f"option nominal: has {self.nominal}; must be 0 to 1")
        if self.moves < 0:
            raise UserError(f"option moves: has {self.moves}; must be 0 or more")

    def place(self, problem: Problem, tell: Tell = silent) -> Placement:
        loads, weight = scenarios(problem, self.nominal)
        limited = self.moves > 0 and problem.current is not None
        seconds = effort_s(problem) / (2 if limited else 1)
        start, price = filled(problem), LEAVING if len(weight) == 1 else 0.0
        steps = steps_for(problem, seconds, len(weight), None)
        best = near_current(improved(problem, start, loads, weight, steps, price=price, home=start), problem)
        wanted = best.moved(problem.current)
        limit = int(self.moves * wanted if self.moves < 1 else self.moves)
        if not limited or wanted <= limit:
            return best
        assert problem.current is not None
        if not np.array_equal(problem.current.used, best.used):
            raise UserError("option moves: the current placement fills other slots than there are; place once without a limit")
        return _limited(problem, loads, weight, steps_for(problem, seconds / HALVINGS, len(weight), None), limit, tell)


def _limited(problem: Problem, loads: Floats, weight: Floats, steps: int, limit: int, tell: Tell) -> Placement:
    """At most `limit` copies loaded; the current placement where no price is high enough."""
    assert problem.current is not None
    low, high = np.log(PRICES)
    best = problem.current
    for i in range(HALVINGS):
        price = float(np.exp((low + high) / 2))
        found = improved(problem, problem.current.held, loads, weight, steps, price=price)
        moved = found.moved(problem.current)
        tell(f"price {price:.2g}: {moved:,} of at most {limit:,} copies ({i + 1} of {HALVINGS})")
        if moved > limit:
            low = np.log(price)
        else:
            high, best = np.log(price), found
    return best


def filled(problem: Problem) -> Bools:
    """EPLB's global placement: every slot used [layers, experts, gpus]."""
    gpus = problem.gpus
    slots = np.minimum(gpus.slots, problem.experts)
    return np.stack([spread(load, slots, gpus.speed, int(slots.sum())) for load in problem.load])
