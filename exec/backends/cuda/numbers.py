"""Positions, cache rows and token ids of a task: small integers that the device needs, uploaded ahead of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch

from exec.backends.cuda.device import Device, Event, Stream

ALIGN = 256


class Numbers:
    """A ring of page-locked memory and one as large on the device, for the tasks of one stream.

    The device's ring needs no wait of its own: what overwrites a range comes behind its readers in the
    stream. The host's does: a copy may still be on its way from it.
    """

    def __init__(self, device: Device, stream: Stream, nbytes: int) -> None:
        self._stream, self._size = stream, nbytes
        self._host, self._there = device.pinned(nbytes), device.allocate(nbytes)
        self._next = 0
        self._on_its_way: deque[tuple[int, int, Event]] = deque()

    def upload(self, values: Sequence[np.ndarray], there: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Enqueue the copy; flat int64 tensors that what is enqueued behind it may read. `there`: a fixed
        place for all of them on the device, for a graph that reads them there."""
        flat = [np.ascontiguousarray(v, np.int64).ravel() for v in values]
        joined = np.concatenate(flat)
        start = self._room(-(-joined.nbytes // ALIGN) * ALIGN)
        host = self._host[start : start + joined.nbytes].view(torch.int64)
        target = there if there is not None else self._there[start : start + joined.nbytes].view(torch.int64)
        host.copy_(torch.from_numpy(joined))
        self._stream.run(_copying(target, host))
        self._on_its_way.append((start, start + joined.nbytes, self._stream.record()))
        return list(target.split([len(f) for f in flat]))

    def _room(self, nbytes: int) -> int:
        assert nbytes <= self._size // 2, f"{nbytes} bytes of numbers for one task; the ring has {self._size}"
        start = self._next if self._next + nbytes <= self._size else 0
        self._next = start + nbytes
        while any(a < start + nbytes and start < b for a, b, _ in self._on_its_way):
            self._on_its_way.popleft()[2].synchronize()
        while self._on_its_way and self._on_its_way[0][2].query():
            self._on_its_way.popleft()
        return start


def _copying(target: torch.Tensor, source: torch.Tensor) -> Callable[[], None]:
    def copy() -> None:
        target.copy_(source, non_blocking=True)

    return copy
