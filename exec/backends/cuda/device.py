"""What the CUDA backend needs of a device: streams in order, events between them, memory.

`torch_device` is the real one. `standin` does the same with a thread a stream and CPU tensors, late and out
of step on purpose, so that a missing wait shows without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import torch


class Event(Protocol):
    """A point in a stream."""

    def query(self) -> bool:
        """Whether all work before it is done."""
        ...

    def synchronize(self) -> None:
        """Wait for it on the host. Raises what the device reports."""
        ...


class Stream(Protocol):
    """A queue of device work that runs in order."""

    name: str

    def run(self, work: Callable[[], None]) -> None:
        """Enqueue the device work of `work`; it may not look at device memory from the host."""
        ...

    def wait(self, event: Event) -> None:
        """What is enqueued from here on starts after `event`, whichever stream it is of."""
        ...

    def record(self) -> Event: ...


class Graph(Protocol):
    def replay(self) -> None:
        """Enqueue on the stream that is current inside `Stream.run`."""
        ...


class ClockReading(NamedTuple):
    """How far off `Device.host_ns` can be at the time of a reading, and by how much it had moved since the reading before."""

    within_ns: int
    moved_ns: int


class Device(Protocol):
    """One accelerator. `torch_device`: where its tensors live."""

    torch_device: torch.device

    def allocate(self, nbytes: int) -> torch.Tensor:
        """uint8 [nbytes] of device memory."""
        ...

    def pinned(self, nbytes: int) -> torch.Tensor:
        """uint8 [nbytes] of page-locked host memory."""
        ...

    def stream(self, name: str) -> Stream: ...

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Record the device work of `work` without running it."""
        ...

    def limit(self, nbytes: int) -> None:
        """Refuse allocations that would bring this process beyond so many bytes of the device."""
        ...

    def host_ns(self, event: Event) -> int:
        """When a completed event happened, on the clock of `time.perf_counter_ns`."""
        ...

    def read_clocks(self) -> ClockReading:
        """Compare both clocks again: from here on `host_ns` counts from now."""
        ...

    def tick(self, there: torch.Tensor, wait_ns: int) -> None:
        """Enqueue on the stream that is current inside `Stream.run`: wait so long, then write the time by the clock
        that kernels stamp with to there [1] int64."""
        ...

    def blocks(self) -> int | None:
        """Blocks of a persistent kernel that run at once; None: as many as the lane has threads."""
        ...

    def synchronize(self) -> None:
        """Wait for all streams."""
        ...

    def close(self) -> None:
        """End what belongs to the device's streams."""
        ...


class Token(NamedTuple):
    """The end of what a task has enqueued: who is on the same stream need not wait."""

    stream: Stream
    event: Event


def wait_on(stream: Stream | None, tokens: Iterable[Token]) -> None:
    """Let `stream` wait for `tokens`; None: let the calling thread do so."""
    latest: dict[int, Token] = {}
    for token in tokens:
        if stream is None:
            token.event.synchronize()
        elif token.stream is not stream:
            latest[id(token.event)] = token
    for token in latest.values():
        assert stream is not None
        stream.wait(token.event)
