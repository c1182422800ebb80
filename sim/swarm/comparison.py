"""The design that was asked for beside those that a sane operator would run, each in a process of its own where that pays."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from sim.errors import UserError
from sim.swarm.figures import figures
from sim.swarm.settings import Settings
from sim.swarm.study import Finished, Study, simulate, words

BASELINES = ("replicas", "edge")
Row = dict[str, Any]


def compare(study: Study, settings: Settings, tell: Callable[[str], None], apart: bool = False) -> tuple[Finished, list[Row], int]:
    """The run of the design asked for; figures of all designs, its own first (of one that the model does not fit, why); and the most
    memory in MiB that all processes together can have had. apart: the baselines run at the same time, in processes of their own.

    Raises UserError where the model does not fit the design asked for.
    """
    baselines = beside(settings)
    tell("; at the same time ".join(words(s) for s in (settings, *(baselines if apart else ()))))
    with _started(study, baselines if apart else ()) as answers:
        first = simulate(study, settings)
        rows, peak_mib = [figures(settings.design, first, study)], 0
        for i, baseline in enumerate(baselines):
            tell(f"{'waiting for ' if apart else ''}{words(baseline)}")
            row, mib = _received(answers[i], baseline) if apart else (_row(study, baseline), 0)
            rows.append(row)
            peak_mib += mib
    return first, rows, peak_mib + _peak_mib()


def beside(settings: Settings) -> list[Settings]:
    """The same without moving to cheaper nodes, and with all nodes rented all the time; then a sane operator's designs with all nodes."""
    whole = replace(settings, autoscale=None, arbitrage=None)
    still = [replace(settings, arbitrage=None)] if settings.arbitrage is not None else []
    static = [whole] if settings.autoscale is not None and settings.design not in BASELINES else []
    return [*still, *static, *(replace(whole, design=d) for d in BASELINES if replace(whole, design=d) != settings)]


def _row(study: Study, settings: Settings) -> Row:
    try:
        return figures(settings.design, simulate(study, settings), study)
    except UserError as e:
        return {"design": settings.design, "words": words(settings), "does_not_fit": str(e)}


def _peak_mib() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most >> 20 if sys.platform == "darwin" else most >> 10)


# Processes --------------------------------------------------------------------------------------------


@contextmanager
def _started(study: Study, designs: Sequence[Settings]) -> Iterator[list[Connection]]:
    """A new process for each design, which is ended however the caller ends. Spawned, as a fork would copy the threads' locks."""
    context = multiprocessing.get_context("spawn")
    answers, processes = list[Connection](), list[BaseProcess]()
    try:
        for settings in designs:
            here, there = context.Pipe(duplex=False)
            answers.append(here)
            process = context.Process(target=_work, args=(there, study, settings), daemon=True)
            with there:
                process.start()
            processes.append(process)
        yield answers
    finally:
        for started in processes:
            started.terminate()
            started.join()


def _work(answer: Connection, study: Study, settings: Settings) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches everybody on a terminal; who started this process ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answer.send((_row(study, settings), _peak_mib()))


def _end_with_parent() -> None:
    """Of a parent that was killed nobody is told."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _received(answer: Connection, settings: Settings) -> tuple[Row, int]:
    try:
        row, mib = answer.recv()
    except EOFError:
        raise RuntimeError(f"{words(settings)}: its process ended without figures; what it printed tells why") from None
    return row, mib
