"""The clock that kernels stamp with (%globaltimer), on the host's.

A reading is a kernel of one thread between two events: it ran somewhere between them, so that its time is that of
the middle, to within half of what lies between. Of several readings in a row the tightest counts; the first of them
waits so long that the others are enqueued by then and follow without gaps. Between a reading before the run and
one behind it the clocks are taken to be a line: nowhere on it is it further off than the worse of the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from exec.backends.cuda.device import Device, Event, Stream
from exec.backends.cuda.staging import copying

TRIES = 8
HOLD_NS = 1_000_000
"""How long the first try waits; a launch takes the host some 50 us at most."""


class Reading(NamedTuple):
    """Both clocks at one instant, the host's to within `within_ns`."""

    kernel_ns: int
    host_ns: int
    within_ns: int


class Line(NamedTuple):
    """Host time over kernel time, through two readings; where they are the same one, both clocks run alike."""

    first: Reading
    last: Reading

    @property
    def within_ns(self) -> int:
        """How far off a time between the readings can be."""
        return max(self.first.within_ns, self.last.within_ns)

    def offset(self) -> dict[str, float]:
        """As a run tells it: host minus kernel time at the first reading, how far off any time on the line can be, and by how
        much the clocks moved apart until the last."""
        offset, later = (r.host_ns - r.kernel_ns for r in self)
        return {"offset_us": offset / 1e3, "uncertainty_us": self.within_ns / 1e3, "moved_us": (later - offset) / 1e3}

    def host_ns(self, kernel_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Times of the kernels' clock [...] on that of `time.perf_counter_ns`."""
        since, passed = kernel_ns - self.first.kernel_ns, self.last.kernel_ns - self.first.kernel_ns
        drift = (self.last.host_ns - self.first.host_ns - passed) / passed if passed else 0.0
        return self.first.host_ns + since + np.rint(since * drift).astype(np.int64)


class KernelClock:
    """Readings of one device, enqueued on `stream`; none of them waits for anything."""

    def __init__(self, device: Device, stream: Stream) -> None:
        self._device, self._stream = device, stream
        self._there = device.allocate(8 * TRIES).view(torch.int64)
        self._read: list[tuple[torch.Tensor, list[tuple[Event, Event]]]] = []

    def read(self) -> None:
        """Enqueue a reading; of several, the first and the last count."""
        here = self._device.pinned(8 * TRIES).view(torch.int64)
        events = []
        for i in range(TRIES):
            before = self._stream.record()
            self._stream.run(self._ticking(self._there[i : i + 1], 0 if i else HOLD_NS))
            events.append((before, self._stream.record()))
        self._stream.run(copying([(here, self._there)]))
        self._stream.record()
        self._read[1:] = [(here, events)]

    def line(self) -> Line:
        """By what was read, and has ended."""
        return Line(self._tightest(*self._read[0]), self._tightest(*self._read[-1]))

    def _ticking(self, there: torch.Tensor, wait_ns: int) -> Callable[[], None]:
        return lambda: self._device.tick(there, wait_ns)

    def _tightest(self, here: torch.Tensor, events: list[tuple[Event, Event]]) -> Reading:
        tries = []
        for kernel_ns, (before, behind) in zip(here.tolist(), events, strict=True):
            a, b = self._device.host_ns(before), self._device.host_ns(behind)
            tries.append(Reading(kernel_ns, (a + b) // 2, -(-(b - a) // 2)))
        return min(tries, key=lambda one: one.within_ns)
