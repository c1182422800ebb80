"""The KV cache on the device, and the tokens sampled there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from exec.arena import Gaps
from exec.backends.caches import KVCache, Segment
from exec.state import MicroBatch, Sequences


class DeviceKVCache(KVCache):
    """As `KVCache`; only the compute stream touches its rows, so that a move is in order behind their readers.

    run: enqueues device work on that stream.
    """

    k: torch.Tensor  # type: ignore[assignment]
    v: torch.Tensor  # type: ignore[assignment]
    run: Callable[[Callable[[], None]], None]

    def _move_together(self) -> None:
        end = 0
        for request, (first, entries) in sorted(self._segments.items(), key=lambda item: item[1].first):
            size = entries * self.layers
            if first > end:
                self.run(_moving((self.k, self.v), first, end, size))
                self._segments[request] = Segment(end, entries)
            end += size
        self._gaps = Gaps(len(self.k))
        self._gaps.take(end)


def _moving(caches: Sequence[torch.Tensor], first: int, to: int, size: int) -> Callable[[], None]:
    def move() -> None:
        # Pieces no longer than the distance do not overlap their targets.
        step = first - to
        for rows in caches:
            for at in range(0, size, step):
                count = min(step, size - at)
                rows[to + at : to + at + count].copy_(rows[first + at : first + at + count])

    return move


class EnqueuedSequences(Sequences):
    """Sequences whose samplings may be enqueued and not done: rows follow from how many were enqueued."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._enqueued = dict.fromkeys(self._all, 0)
        self.slot = {request: k for k, request in enumerate(self._all)}
        """Place of each request's last token on the device."""
        self.longest = max((len(s.prompt) for s in self._all.values()), default=0) + max((s.most for s in self._all.values()), default=0)
        """Positions that the longest sequence may reach."""

    def enqueued(self, requests: Sequence[int]) -> None:
        """The next token of each is sampled by what is enqueued."""
        for request in requests:
            self._enqueued[request] += 1

    def slots(self, requests: Sequence[int]) -> NDArray[np.int64]:
        return np.array([self.slot[r] for r in requests], np.int64)

    def decode_batch(self, requests: Sequence[int]) -> MicroBatch:
        return self._decode_rows(requests, self._before(requests))

    def _before(self, requests: Sequence[int]) -> NDArray[np.int64]:
        return np.array([self._all[r].rows + self._enqueued[r] - 1 for r in requests], np.int64)
