"""Replay of what repeats: a compute task's kernels, captured once and launched together ever after.

In the steady state of decode a task of the same op, layer and micro-batch comes back each step, on the
same memory; only its numbers (positions, cache rows) differ, and those are read from a fixed place.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from exec.backends.cuda.device import Device, Graph, Stream
from exec.backends.cuda.numbers import Numbers

GRAPHS = 4096
"""Most graphs that are kept; beyond them tasks run kernel by kernel."""


@dataclass(frozen=True, slots=True)
class Step:
    """Device work of a compute task. run: enqueues it, given its `numbers` on the device. key: tasks with
    equal keys do the same work on the same memory, numbers apart; None: never captured."""

    run: Callable[[list[torch.Tensor]], None]
    numbers: Sequence[np.ndarray] = ()
    key: Hashable | None = None


class Graphs:
    """Graphs by key. A key's first task runs as it is (kernels load, the BLAS chooses), its second is captured.

    replayed, captured: how many tasks went each way.
    """

    def __init__(self, device: Device, stream: Stream, numbers: Numbers) -> None:
        self._device, self._stream, self._numbers = device, stream, numbers
        self._known: dict[Hashable, tuple[Graph, torch.Tensor] | None] = {}
        self.replayed = self.captured = 0

    def run(self, step: Step) -> None:
        """Enqueue a step, by its graph where there is one."""
        if step.key is None or (step.key not in self._known and len(self._known) >= GRAPHS):
            enqueue(step, self._stream, self._numbers)
        elif step.key not in self._known:
            self._known[step.key] = None
            enqueue(step, self._stream, self._numbers)
        else:
            graph, there = self._known[step.key] or self._capture(step)
            if step.numbers:
                self._numbers.upload(step.numbers, there)
            self._stream.run(graph.replay)
            self.replayed += 1

    def _capture(self, step: Step) -> tuple[Graph, torch.Tensor]:
        sizes = [np.asarray(v).size for v in step.numbers]
        there = self._device.allocate(8 * max(1, sum(sizes))).view(torch.int64)
        numbers = list(there.split(sizes)) if sizes else []
        made = self._device.capture(self._stream, lambda: step.run(numbers)), there
        self._known[step.key] = made
        self.captured += 1
        return made


def enqueue(step: Step, stream: Stream, numbers: Numbers) -> None:
    """Enqueue a step kernel by kernel."""
    there = numbers.upload(step.numbers) if step.numbers else []
    stream.run(lambda: step.run(there))
