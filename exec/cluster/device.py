"""RankDevice: the GPU of one rank, or what stands in for it: memory, a stream for each lane and peer, and its clock.

A task has ended when the device says so, not when the call that enqueued it returns: whoever calls `do`
waits for an event, and the time of that event is the end. What other ranks are told is true on the device.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from exec.backends.cuda.device import ClockReading, Device, Stream
from exec.cluster.outputs import DeviceClock

T = TypeVar("T")

CUDA, STAND_IN = "cuda", "stand-in"
"""Values of `Order.device`. stand-in: CPU tensors and a thread a stream (`exec.backends.cuda.standin`), rows over gloo."""

LATE_S = 2e-4
"""What the stand-in does comes up to so much late, at random: a host that does not wait for it shows."""

COMPUTE = "gpu"
"""Name of the stream of the compute lane."""

SETTINGS = {"CUDA_DEVICE_MAX_CONNECTIONS": "32", "CUDA_MODULE_LOADING": "EAGER"}
"""Of CUDA, unless they are set. A kernel that waits for a peer must hold nothing up that the peer waits for: with fewer queues to the
GPU than streams, others may stand behind it; and loading a kernel when it is first called waits for all that run."""


SMALL, SMALL_PIECES, LARGE = 1 << 20, 32, 1 << 26
"""Bytes. torch cuts tensors of up to 1 MiB from blocks of their own kind, of 2 MiB (c10/cuda/CUDACachingAllocator.cpp)."""


def open_device(kind: str, rank: int) -> Device:
    """The device of a rank: under CUDA, number LOCAL_RANK (else its own number) of this computer's. Raises UserError."""
    if kind == STAND_IN:
        from exec.backends.cuda.standin import StandIn

        return StandIn(LATE_S, rank)
    from exec import devices
    from exec.backends.cuda.torch_device import CudaDevice

    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)  # read when CUDA starts
    index = int(os.environ.get("LOCAL_RANK", rank))
    devices.check_count(index + 1)
    return CudaDevice(index, asleep=True)  # a thread for each lane and peer waits: they would spin on cores that others need


class RankDevice:
    """there: where its tensors live. name, take: as `exec.arena.Arena` has them, torch keeping the books."""

    name = "device"

    def __init__(self, device: Device) -> None:
        self.there = device.torch_device
        self._device = device
        self._streams: dict[str, Stream] = {}
        self._lock = threading.Lock()
        self._began = ClockReading(0, 0)

    def take(self, name: str, shape: tuple[int, ...], touch: bool = True) -> torch.Tensor:
        """float32 [*shape] of the device's memory, zeros."""
        count = int(np.prod(shape))
        return self._device.allocate(max(1, 4 * count))[: 4 * count].view(torch.float32).view(shape).zero_()

    def spare(self, nbytes: int) -> None:
        """Have torch keep that much more memory, for the stream on which this is called: it gives out what it was given back, but not
        in any sizes, and asking CUDA for more may wait for all streams."""
        pieces = [self._device.allocate(n) for n in (max(nbytes, LARGE), *[SMALL] * SMALL_PIECES)]
        pieces.clear()

    def up(self, array: np.ndarray) -> torch.Tensor:
        """A copy of a host array."""
        return torch.tensor(array, device=self.there)

    def do(self, stream: str, work: Callable[[], T]) -> tuple[T, int]:
        """Have the named stream do `work`, and wait until it has: its result, and when it ended on this computer's clock, ns.
        `work` may look at device memory from the host."""
        where, found = self._stream(stream), list[Any]()
        where.run(lambda: found.append(work()))
        ended = where.record()
        ended.synchronize()
        return found[0], self._device.host_ns(ended)

    def _stream(self, name: str) -> Stream:
        with self._lock:
            if name not in self._streams:
                self._streams[name] = self._device.stream(name)
            return self._streams[name]

    def begin(self) -> None:
        """A run begins: its times count from a new reading of both clocks."""
        self._began = self._device.read_clocks()

    def clock(self) -> DeviceClock:
        """Of the run that ends now."""
        ended = self._device.read_clocks()
        off_ns = max(self._began.within_ns, ended.within_ns) + abs(ended.moved_ns)
        return DeviceClock(off_ns / 1e3, ended.moved_ns / 1e3)
