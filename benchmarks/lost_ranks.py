"""How long after a rank is killed or stalls every process of a run is gone: a table over schedulers and moments.

    python benchmarks/lost_ranks.py [--ranks 2] [--repeats 3]

Each run is `python -m exec run --ranks N` in a session of its own. It is hit while ranks load their weights, or while they
compute, and timed from the blow until the command and all ranks have ended, the stopped one too.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ANNOUNCED = Path(__file__).parents[1] / "tests" / "exec" / "cluster" / "announced.py"
SCHEDULERS = ("bulk-sync", "chunked", "overlapped")
BLOWS = (signal.SIGKILL, signal.SIGSTOP)
GIVE_UP_S = 120.0
CALLED_S = 0.5
"""Ranks have called the controller so long after they were started, on a quiet computer, and load. (One that stalls before is
given a minute.)"""


def family(session: int) -> dict[int, int]:
    """Living processes of a session, and the parent of each."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, _, own = entry.joinpath("stat").read_text().rsplit(")", 1)[1].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(own) == session and state != "Z":
            found[int(entry.name)] = int(parent)
    return found


def ranks_of(session: int) -> list[int]:
    """The processes that the session's fork server has started."""
    parents = family(session)
    servers = {pid for pid, parent in parents.items() if parent == session}
    return sorted(pid for pid, parent in parents.items() if parent in servers)


def wait_until(met: object, what: str) -> None:
    assert callable(met)
    give_up = time.monotonic() + GIVE_UP_S
    while not met():
        if time.monotonic() > give_up:
            raise SystemExit(f"error: {what} has not come within {GIVE_UP_S:g} s")
        time.sleep(0.005)


@contextmanager
def started(ranks: int, scheduler: str, folder: str) -> Iterator[subprocess.Popen[str]]:
    arguments = f"run --ranks {ranks} --model tiny-mixtral --scheduler {scheduler} --tokens 512 --layers 1500".split()
    environment = {**os.environ, "PYTHONPATH": str(ANNOUNCED.parents[3])}
    process = subprocess.Popen(
        [sys.executable, str(ANNOUNCED), *arguments], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        for pid in family(process.pid):
            os.kill(pid, signal.SIGKILL)


def once(ranks: int, scheduler: str, blow: signal.Signals, running: bool) -> tuple[float, float]:
    """Seconds until the last process has ended, and until the last rank that was not hit has."""
    with tempfile.TemporaryDirectory() as folder, started(ranks, scheduler, folder) as process:
        wait_until(lambda: len(ranks_of(process.pid)) == ranks, "the start of all ranks")
        time.sleep(CALLED_S)
        if running:
            wait_until(Path(folder, "began").exists, "the first task's end")
        victims = ranks_of(process.pid)
        struck = time.monotonic()
        os.kill(victims[-1], blow)
        wait_until(lambda: not set(victims[:-1]) & set(family(process.pid)), "the end of the other ranks")
        others_s = time.monotonic() - struck
        wait_until(lambda: process.poll() is not None and not family(process.pid), "the end of all processes")
        took_s = time.monotonic() - struck
        said = process.stderr.read().splitlines()[-1:] if process.stderr else []
        if process.returncode != 1 or not said or "was lost" not in said[0]:
            raise SystemExit(f"error: exit code {process.returncode}, {said}")
        return took_s, others_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{options.ranks} ranks, {options.repeats} repeats, seconds after the blow: median (longest)")
    for running in (False, True):
        for blow in BLOWS:
            for scheduler in SCHEDULERS if running else SCHEDULERS[:1]:
                found = np.array([once(options.ranks, scheduler, blow, running) for _ in range(options.repeats)])
                moment = "running" if running else "loading"
                all_s, others_s = (f"{np.median(column):.1f} ({column.max():.1f})" for column in found.T)
                print(f"{moment:8} {blow.name:8} {scheduler:11} other ranks gone {others_s}, everything gone {all_s}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
