"""The simulator's outcome source: what a task would have shown, had it really run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sim.events import Result
from sim.tasks import Task

if TYPE_CHECKING:
    from sim.costs import Routing


class Outcomes:
    """Results of simulated tasks: the sequences that a sampling ends, the experts that a router chose.

    It counts the tokens of each sequence, so a sequence that entered late ends at its own step. One
    object serves one run.
    """

    def __init__(self, lengths: Sequence[int], routing: Routing | None = None) -> None:
        self._left = list(lengths)
        self._routing = routing

    def __call__(self, task: Task) -> Result:
        if task.op == "sample":
            return Result(ended=tuple(r for r in task.requests if self._sampled(r)))
        if task.work.experts and self._routing is not None:
            rows = self._routing.expert_tokens(task.requests, task.phase, task.step, task.layer)
            return Result(experts=rows or ())
        return Result()

    def _sampled(self, request: int) -> bool:
        self._left[request] -= 1
        return self._left[request] == 0
