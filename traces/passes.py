"""Forward passes of a model that is being recorded: which request, step and position each of their tokens is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Batch:
    """The requests that are running: number of the first, prompt tokens so far, decode steps so far, which have ended; each [sequences]."""

    first: int
    prompt: NDArray[np.int64]
    ended: NDArray[np.bool_]
    steps: int = 0


@dataclass(slots=True)
class Pass:
    """One forward pass: its batch, its decode step (0: prefill).

    live [sequences, tokens] and position [sequences, tokens] in a prefill; ids [sequences, 1], the fed tokens, in a decode step.
    """

    batch: Batch
    step: int
    live: NDArray[np.bool_] | None = None
    position: NDArray[np.int64] | None = None
    ids: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Of all sequences together."""
        return len(self.batch.prompt) if self.live is None else self.live.size


def runs(passes: list[Pass]) -> Iterator[list[Pass]]:
    """Runs of consecutive decode steps of one batch; prefills alone."""
    run: list[Pass] = []
    for p in passes:
        if run and (p.step == 0 or run[0].step == 0 or p.batch is not run[0].batch or (p.ids is None) != (run[0].ids is None)):
            yield run
            run = []
        run.append(p)
    if run:
        yield run


def places(run: list[Pass], ends: frozenset[int]) -> tuple[NDArray[Any], ...]:
    """step, request, position and whether it counts, each [passes, rows of a layer] of a run of like passes."""
    batch = run[0].batch
    sequences = len(batch.prompt)
    request = batch.first + np.arange(sequences)
    if run[0].live is not None and run[0].position is not None:
        tokens = run[0].live.shape[1]
        flat = (np.repeat(request, tokens), run[0].position.ravel(), run[0].live.ravel())
        return np.zeros((1, sequences * tokens), np.int64), *(a[None, :] for a in flat)
    step = np.array([p.step for p in run])[:, None] + np.zeros(sequences, np.int64)
    live = _live(batch, run, ends)
    return step, np.broadcast_to(request, step.shape), batch.prompt + step - 1, live


def _live(batch: Batch, run: list[Pass], ends: frozenset[int]) -> NDArray[np.bool_]:
    """Rows of decode steps whose sequence has not been fed its end token, [passes, sequences]."""
    fed = [p.ids for p in run if p.ids is not None]
    if not ends or len(fed) != len(run):
        return np.ones((len(run), len(batch.prompt)), np.bool_)
    ended = np.isin(np.stack([array(ids[:, 0]) for ids in fed]), list(ends))
    ended[0] |= batch.ended
    ended = np.logical_or.accumulate(ended, axis=0)
    batch.ended = ended[-1]
    return ~ended


def array(t: Tensor) -> NDArray[Any]:
    return (t.float() if t.is_floating_point() else t).cpu().numpy()  # numpy has no bfloat16
