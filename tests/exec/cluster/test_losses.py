"""Ranks that are killed or stopped in the middle: the run ends everywhere, with one message, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from exec.cluster import launch, runs
from exec.cluster.controller import Cluster
from exec.cluster.device import STAND_IN
from exec.cluster.execute import execute
from exec.cluster.losses import RankLost
from exec.cluster.profile import Unknown
from exec.weights import hf_config
from sim.engines.run import DONE
from tests.exec.cluster.setups import layers
from tests.exec.tiny import spec
from traces.timeline import read_timeline

LONG = 400
"""Layers of a run that is still going on whenever it is hit."""

ROWS = [512, 512]

HANGING_S = 90.0
"""The promise is 5 s; a busy computer that runs tests may need longer, and a run that hangs would take for ever."""


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def lose(cluster: Cluster, setup: runs.Setup, hit: signal.Signals, rank: int, after_s: float) -> tuple[RankLost, float]:
    """Hit a rank so long after the run began; the error, and how long it took from the blow."""
    cluster.prepare(setup.order)
    scheduler = setup.fresh()
    struck: list[float] = []

    def strike() -> None:
        while not cluster.ended:  # the first heartbeat with something done
            time.sleep(0.01)
        time.sleep(after_s)
        struck.append(time.monotonic())
        os.kill(cluster.pids[rank], hit)

    thread = threading.Thread(target=strike)
    thread.start()
    with pytest.raises(RankLost) as lost:
        execute(cluster, scheduler, setup.requests, Unknown(), scheduler.lanes)
    assert struck, f"lost before it was hit: {lost.value}"
    took = time.monotonic() - struck[0]
    thread.join()
    return lost.value, took


@pytest.mark.parametrize(("hit", "rank", "after_s", "device"), [
    (signal.SIGKILL, 1, 0.0, ""), (signal.SIGKILL, 0, 0.3, ""), (signal.SIGSTOP, 1, 0.1, ""), (signal.SIGSTOP, 0, 0.0, STAND_IN),
])  # fmt: skip
def test_a_lost_rank_ends_the_run(hit: signal.Signals, rank: int, after_s: float, device: str) -> None:
    setup = layers(ROWS, "overlapped", layers=LONG, device=device)
    with Cluster(2) as cluster:
        pids = cluster.pids
        lost, took = lose(cluster, setup, hit, rank, after_s)
    assert lost.rank == rank
    what = "was killed by SIGKILL" if hit is signal.SIGKILL else "it has stalled"
    assert re.match(f"rank {rank} was lost: {what}", str(lost))
    assert took < HANGING_S
    assert not any(alive(pid) for pid in pids.values())
    assert lost.run is not None
    assert 0 < (lost.run.status == DONE).sum() < len(lost.run) == len(lost.run.sources[0])


def test_a_rank_lost_between_runs_is_noticed() -> None:
    setup = layers([16, 16], "bulk-sync")
    with Cluster(2) as cluster:
        cluster.prepare(setup.order)
        os.kill(cluster.pids[1], signal.SIGKILL)
        with pytest.raises(RankLost, match="rank 1 was lost: was killed by SIGKILL"):
            give_up = time.monotonic() + HANGING_S
            while time.monotonic() < give_up:
                cluster.hear(0.01)


@pytest.mark.parametrize("order_bytes", [0, 1 << 25])
def test_a_rank_that_stalls_while_it_should_prepare_is_noticed(order_bytes: int) -> None:
    """Whether it falls silent, or does not even take what it is sent."""
    setup = layers([16, 16], "bulk-sync")
    with Cluster(2) as cluster:
        pids = cluster.pids
        os.kill(pids[1], signal.SIGSTOP)
        with pytest.raises(RankLost, match="rank 1 was lost: it has stalled"):
            cluster.prepare(replace(setup.order, weights="x" * order_bytes))
    assert not any(alive(pid) for pid in pids.values())


def test_a_rank_killed_before_it_called_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    start = launch.Children.__init__

    def start_and_kill(children: launch.Children, ranks: range, world: int) -> None:
        start(children, ranks, world)
        children.kill(1)

    monkeypatch.setattr(launch.Children, "__init__", start_and_kill)
    with pytest.raises(RankLost, match="rank 1 was lost: was killed by SIGKILL"), Cluster(2):
        pass


def test_a_rank_that_lives_and_never_calls_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that stalls while it starts: here it calls where nobody listens."""
    address, seen = launch.control_address, []

    def elsewhere() -> tuple[str, int]:
        seen.append(address())
        return address() if len(seen) == 1 else ("127.0.0.1", 9)  # the controller asks first, then its children are told

    monkeypatch.setattr(launch, "control_address", elsewhere)
    with pytest.raises(RankLost, match="rank 0 was lost: it has stalled, it did not call within 3 s"), Cluster(2):
        pass
    assert len(seen) == 2


def test_ranks_do_not_outlive_a_killed_controller() -> None:
    code = """
import sys
from exec.cluster.controller import Cluster
if __name__ == "__main__":
    with Cluster(2) as cluster:
        print(*cluster.pids.values(), flush=True)
        sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(p) for p in process.stdout.readline().split()]
    assert len(pids) == 2
    process.kill()
    process.wait()
    give_up = time.monotonic() + 90
    while any(alive(pid) for pid in pids) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`exec run --ranks 2` of a long run, in a session of its own."""
    (tmp_path / "config.json").write_text(json.dumps(hf_config(spec(vocab=256, hidden=256, ffn=512))))
    program = str(Path(__file__).with_name("announced.py"))
    command = [sys.executable, program, "run", "--ranks", "2", "--model", str(tmp_path), "--scheduler", "bulk-sync"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--tokens", str(4 * ROWS[0]), "--layers", str(4 * LONG)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # who runs the tests in the background ignores it
    )  # fmt: skip
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def family(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and alive(int(entry.name)):
            try:
                if os.getsid(int(entry.name)) == session:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


def once_it_runs(folder: Path) -> None:
    """Wait until ranks have reported a task as done: whatever getting ready takes them, they are at work."""
    give_up = time.monotonic() + 120
    while not (folder / "began").exists():
        assert time.monotonic() < give_up, "the ranks never began"
        time.sleep(0.02)


def ranks_of(session: int) -> list[int]:
    """The processes of a session's ranks: those that its fork server has started."""
    parents = {pid: int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]) for pid in family(session)}
    server = next(parent for pid, parent in parents.items() if parents.get(parent) == session)
    return sorted(pid for pid, parent in parents.items() if parent == server)


def test_the_command_says_who_was_lost_and_where_the_timeline_is(running: subprocess.Popen[str], tmp_path: Path) -> None:
    once_it_runs(tmp_path)
    ranks = ranks_of(running.pid)
    assert len(ranks) == 2, ranks
    os.kill(ranks[0], signal.SIGKILL)
    struck = time.monotonic()
    out, err = running.communicate(timeout=180)
    assert time.monotonic() - struck < HANGING_S
    assert running.returncode == 1
    assert out == ""
    (line,) = err.splitlines()
    lost = r"error: rank [01] was lost: was killed by SIGKILL; the other ranks were stopped; "
    found = re.fullmatch(lost + r"the timeline until then is in (lost-run-\S+\.parquet)", line)
    assert found, line
    kept = read_timeline(tmp_path / found[1])
    done = kept.status == kept.statuses.index("done")
    assert 0 < done.sum() < len(kept)
    assert family(running.pid) == []


def test_ctrl_c_leaves_nothing_behind(running: subprocess.Popen[str], tmp_path: Path) -> None:
    once_it_runs(tmp_path)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=180)
    assert running.returncode == 1
    assert err.splitlines()[-1] == "error: python -m exec: interrupted"
    assert family(running.pid) == []
