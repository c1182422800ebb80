"""Designs in processes of their own: none outlives who asked for it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from sim.swarm import comparison
from sim.swarm.settings import Settings


class Endless:
    """A study that is never read to its end."""

    def __reduce__(self) -> Any:
        return Endless, ()

    def __getattr__(self, name: str) -> Any:
        threading.Event().wait()


def ask_and_wait() -> None:
    """Start a design, tell its process, and wait for figures that never come."""
    with comparison._started(Endless(), [Settings()]) as answers:  # type: ignore[arg-type]
        (child,) = comparison.multiprocessing.active_children()
        print(child.pid, flush=True)
        answers[0].recv()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd_open to wait for another's child")
def test_a_design_ends_when_who_asked_is_killed() -> None:
    code = f"import {__name__} as t; t.ask_and_wait()"
    root = str(Path(__file__).parents[3])
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    poll = select.poll()
    poll.register(child)
    try:
        assert poll.poll(60_000), "the design's process is still there"
    finally:
        os.close(child)
