"""What has run, as the simulator's engines tell it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from exec.runtime.board import Ended
from sim.engines.run import Run
from sim.plan import Plan
from sim.tasks import Task


def run_of(ended: Sequence[Ended], sources: Sequence[Plan | Task], lanes: tuple[str, ...]) -> Run:
    """Tasks that have ended, in order of their numbers, whatever order they ended in."""
    rows = sorted(ended)
    index = {name: i for i, name in enumerate(lanes)}
    return Run(
        sources=tuple(sources),
        lanes=lanes,
        number=np.array([row[0] for row in rows], np.int64),
        lane=np.array([index[row[1]] if row[1] is not None else -1 for row in rows], np.int16),
        start_ps=np.array([row[2] for row in rows], np.int64),
        end_ps=np.array([row[3] for row in rows], np.int64),
        status=np.array([row[4] for row in rows], np.int8),
    )


def last_number(source: Plan | Task) -> int:
    """The highest task number of what was submitted at once."""
    return source.first + len(source) - 1 if isinstance(source, Plan) else source.number
