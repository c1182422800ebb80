"""A task on its way through the CUDA backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exec.backends.cuda.device import Token
from exec.backends.cuda.graphs import Step
from exec.runtime import Interrupt, Record
from sim.events import Result

Work = Callable[[Any], None] | Step
"""What a task does, once all its tokens are waited for: a step of the compute stream, or a function of the
lane's stream (None: a host lane) that enqueues, or does, the work."""


class Call:
    """tokens: what to wait for first. dropped: buffers that the task uses up; uses: (buffer, use) of those that it
    uses up together with others. later: makes the result once the task is done. done_on_host: the work has
    ended when its function returns."""

    __slots__ = ("done_on_host", "dropped", "interrupt", "later", "task", "tokens", "uses")

    def __init__(self, task: Record, interrupt: Interrupt, tokens: list[Token]) -> None:
        self.task = task
        self.interrupt = interrupt
        self.tokens = tokens
        self.dropped: list[str] = []
        self.uses: list[tuple[str, str]] = []
        self.later: Callable[[], Result | None] | None = None
        self.done_on_host = False
