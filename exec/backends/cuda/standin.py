"""A device without a GPU: a thread a stream, CPU tensors, and real copies between them.

Work is really queued and really runs later, in the stream's order; with `delay_s` each piece waits a
random while first. So an op that reads before its wait, memory that is handed on too early, or a host
that looks at results before they are there, give wrong numbers here as they would on a GPU.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable

import torch

from exec.backends.cuda.device import ClockReading


class StandInEvent:
    def __init__(self) -> None:
        self._done = threading.Event()
        self.error: BaseException | None = None
        self.at_ns = 0

    def set(self, error: BaseException | None) -> None:
        self.at_ns = time.perf_counter_ns()
        self.error = error
        self._done.set()

    def query(self) -> bool:
        return self._done.is_set()

    def synchronize(self) -> None:
        self._done.wait()
        if self.error is not None:
            raise self.error


class StandInStream:
    """After an error nothing of the stream runs any more, and every later event carries the error."""

    def __init__(self, name: str, delay: Callable[[], float]) -> None:
        self.name = name
        self._delay = delay
        self._queue: queue.SimpleQueue[Callable[[], None] | StandInEvent | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=f"stream-{name}", daemon=True)
        self._thread.start()

    def run(self, work: Callable[[], None]) -> None:
        self._queue.put(work)

    def wait(self, event: StandInEvent) -> None:
        self._queue.put(event.synchronize)

    def record(self) -> StandInEvent:
        event = StandInEvent()
        self._queue.put(event)
        return event

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _serve(self) -> None:
        torch.set_num_threads(1)
        error: BaseException | None = None
        while (item := self._queue.get()) is not None:
            if isinstance(item, StandInEvent):
                item.set(error)
            elif error is None:
                time.sleep(self._delay())
                try:
                    item()
                except BaseException as raised:
                    # As a CUDA stream does: whoever synchronises next hears of it.
                    error = raised


class StandInGraph:
    """What was captured, run again with the tensors of then: what changes must come through memory."""

    def __init__(self, device: StandIn, work: Callable[[], None]) -> None:
        self._device, self._work = device, work

    def replay(self) -> None:
        self._device.replayed += 1
        self._work()


class StandIn:
    """Implements `device.Device`. delay_s: longest time that a piece of work is held up for. captured, replayed:
    graphs made, and how often any of them ran."""

    torch_device = torch.device("cpu")

    def __init__(self, delay_s: float = 0.0, seed: int = 0) -> None:
        self._delay_s = delay_s
        self._random = random.Random(seed)
        self._streams: list[StandInStream] = []
        self.limit_bytes: int | None = None
        self.captured = self.replayed = 0

    def allocate(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def pinned(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def stream(self, name: str) -> StandInStream:
        made = StandInStream(name, lambda: self._random.random() * self._delay_s if self._delay_s else 0.0)
        self._streams.append(made)
        return made

    def capture(self, stream: StandInStream, work: Callable[[], None]) -> StandInGraph:
        self.captured += 1
        return StandInGraph(self, work)

    def limit(self, nbytes: int) -> None:
        self.limit_bytes = nbytes

    def host_ns(self, event: StandInEvent) -> int:
        return event.at_ns

    def read_clocks(self) -> ClockReading:
        """There is but one clock."""
        return ClockReading(0, 0)

    def tick(self, there: torch.Tensor, wait_ns: int) -> None:
        time.sleep(wait_ns * 1e-9)
        there[0] = time.perf_counter_ns()

    def blocks(self) -> None:
        return None

    def synchronize(self) -> None:
        for stream in self._streams:
            stream.record().synchronize()

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        self._streams.clear()
