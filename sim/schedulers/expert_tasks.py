"""Tasks of an expert-cache decode: numbered, in order on the GPU, and those whose end the flow waits for."""

from __future__ import annotations

from sim.events import Request
from sim.models.spec import ModelSpec
from sim.schedulers.background import Flight
from sim.schedulers.caching import Served
from sim.tasks import Task, Work

GPU, H2D, D2H, CPU, NVME = "gpu", "h2d", "d2h", "cpu", "nvme"


class Tasks:
    """rows: requests of the step and the tokens made of each. layer: where the flow is.
    awaited: tasks whose end the flow waits for, and their op."""

    def __init__(self, model: ModelSpec, served: Served) -> None:
        self.rows: list[tuple[Request, int]] = []
        self.layer = -1
        self.awaited: dict[int, str] = {}
        self._model, self._served = model, served
        self._next = 0
        self._last = -1
        """Last task on the GPU."""

    def compute(
        self, work: Work, *, reads: tuple[str, ...], writes: tuple[str, ...], deps: tuple[int, ...] = (), notify: bool = False
    ) -> Task:
        """The next one on the GPU, which does one thing after another."""
        before = (self._last,) if self._last >= 0 else ()
        task = self.make(work, GPU, (*before, *deps), reads=reads, writes=writes, notify=notify)
        self._last = task.number
        return task

    def copy(
        self, op: str, lane: str, flight: Flight, deps: tuple[int, ...], to: str, reads: tuple[str, ...] = (), notify: bool = False
    ) -> Task:
        """What is left of a flight."""
        layer, expert = divmod(flight.key, self._model.experts)
        work = Work(op, bytes=max(1, round(flight.left * self._model.expert_bytes)))
        return self.make(work, lane, deps, reads=reads, writes=(to,), layer=layer, page=expert, notify=notify)

    def make(
        self, work: Work, lane: str, deps: tuple[int, ...], *, reads: tuple[str, ...], writes: tuple[str, ...], notify: bool = False,
        layer: int | None = None, page: int = -1,
    ) -> Task:  # fmt: skip
        number = self._next
        self._next += 1
        if notify and page < 0:
            self.awaited[number] = work.op
        return Task(
            number, work, lane, deps, reads, writes, notify=notify, phase="decode", step=self._served.steps + 1,
            layer=self.layer if layer is None else layer, microbatch=0, page=page, requests=tuple(r.request_id for r, _ in self.rows),
        )  # fmt: skip
