"""The real device: torch's CUDA streams and events."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from exec.backends.cuda.device import ClockReading
from exec.backends.cuda.grouped import numba_stream
from kernels.fused_moe.gpu import BLOCKS_PER_SM

ANCHORS = 20
"""Tries at reading both clocks at one instant; the tightest counts."""


def blocks(device: torch.device | None = None) -> int:
    """Blocks of a persistent kernel that run at once on `device` (None: the current one)."""
    return BLOCKS_PER_SM[True] * torch.cuda.get_device_properties(device).multi_processor_count


class CudaStream:
    """asleep: who waits for its events gives the core to others, and takes longer to wake."""

    def __init__(self, name: str, device: torch.device, priority: int, asleep: bool = False) -> None:
        self.name = name
        self._asleep = asleep
        self.cuda = torch.cuda.Stream(device, priority=priority)

    def run(self, work: Callable[[], None]) -> None:
        with torch.cuda.stream(self.cuda):
            work()

    def wait(self, event: torch.cuda.Event) -> None:
        self.cuda.wait_event(event)

    def record(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True, blocking=self._asleep)
        event.record(self.cuda)
        return event


class CudaDevice:
    """CUDA device `index`. Implements `device.Device`. asleep: see `CudaStream`."""

    def __init__(self, index: int = 0, asleep: bool = False) -> None:
        self._asleep = asleep
        self.torch_device = torch.device("cuda", index)
        torch.cuda.set_device(index)
        self._streams: list[CudaStream] = []
        self._graph_memory = torch.cuda.graph_pool_handle()
        """Graphs of one stream never run together: they share their temporaries."""
        self._anchor, self._anchor_ns, _ = self._read_both_clocks()

    def allocate(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.torch_device)

    def pinned(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def stream(self, name: str) -> CudaStream:
        """Copies go before kernels where both could run: they are what the others wait for."""
        made = CudaStream(name, self.torch_device, 0 if name == "gpu" else -1, self._asleep)
        self._streams.append(made)
        return made

    def capture(self, stream: CudaStream, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other lanes go on using CUDA meanwhile; only this thread's calls belong to the graph.
        with torch.cuda.graph(graph, self._graph_memory, stream.cuda, capture_error_mode="thread_local"):
            work()
        return graph

    def limit(self, nbytes: int) -> None:
        total = torch.cuda.get_device_properties(self.torch_device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, nbytes / total), self.torch_device)

    def host_ns(self, event: torch.cuda.Event) -> int:
        return self._anchor_ns + int(self._anchor.elapsed_time(event) * 1e6)

    def read_clocks(self) -> ClockReading:
        event, ns, within_ns = self._read_both_clocks()
        moved_ns = self.host_ns(event) - ns
        self._anchor, self._anchor_ns = event, ns
        return ClockReading(within_ns, moved_ns)

    def tick(self, there: torch.Tensor, wait_ns: int) -> None:
        from kernels.cuda.sync import tick

        tick.launch(1, 1, there, wait_ns, stream=numba_stream())

    def blocks(self) -> int:
        return blocks(self.torch_device)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch_device)

    def close(self) -> None:
        self.synchronize()
        self._streams.clear()
        torch.cuda.set_per_process_memory_fraction(1.0, self.torch_device)

    def _read_both_clocks(self) -> tuple[torch.cuda.Event, int, int]:
        """An event, the host's time of it, and how far off that can be: half of the shortest try."""
        best: tuple[int, torch.cuda.Event, int] | None = None
        for _ in range(ANCHORS):
            torch.cuda.synchronize(self.torch_device)
            before = time.perf_counter_ns()
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.torch_device))
            event.synchronize()
            took = time.perf_counter_ns() - before
            if best is None or took < best[0]:
                best = took, event, before + took // 2
        assert best is not None
        return best[1], best[2], -(-best[0] // 2)
