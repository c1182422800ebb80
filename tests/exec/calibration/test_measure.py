"""Timing beside others, and what is left of it where it is given up."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from exec.calibration import measure


def calibrating() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("calibrate-")]


@pytest.mark.parametrize("works", [1, 2])
def test_an_interrupt_leaves_no_thread_that_goes_on(works: int, monkeypatch: pytest.MonkeyPatch) -> None:
    began = threading.Event()

    def sleep(_: float) -> None:
        assert began.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "time", SimpleNamespace(sleep=sleep, perf_counter=measure.time.perf_counter))
    with pytest.raises(KeyboardInterrupt):
        measure.together([began.set] * works)
    for thread in calibrating():
        thread.join(60)
    assert not calibrating()


def test_threads_that_wait_for_one_that_never_begins_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the second of two is started."""
    first = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if self.name == "calibrate-1":
            raise KeyboardInterrupt
        first(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(KeyboardInterrupt):
        measure.together([lambda: None] * 2)
    for thread in calibrating():
        thread.join(60)
    assert not calibrating()
