"""Two real processes with placed experts: the answers of a single process, whatever moves and whoever is killed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer

from exec.cli import placing
from exec.cluster.losses import RankLost, RunStopped
from exec.cluster.phases import MOVING, SHORT, phases, summarize
from exec.cluster.placing import DrawnCosts, Served, Serving, largest_difference, serve, when_lost
from exec.cluster.profile import Unknown
from exec.cluster.recovering import Kill
from exec.cluster.standing import StandingCluster
from sim.drive import replay
from sim.engines.run import DONE
from sim.ep.chosen import drawn, onto_one_rank
from sim.errors import UserError
from sim.machines import load as load_machine
from sim.placement.policy import load as load_policy
from sim.placement.rebalance import Rebalancer
from sim.plan import Plan
from sim.schedulers.ep.rebalancing import Settings
from tests.exec.tiny import spec
from traces.timeline import read_timeline

MODEL = spec()
REQUESTS, SHIFT, STEPS = 24, 8, 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[StandingCluster]:
    with StandingCluster(2) as ready:
        yield ready


def serving(slots: int = 6, every: int = 1) -> Serving:
    """Messages hold 8 rows, so that an expert travels in many."""
    chosen = drawn(MODEL, REQUESTS, STEPS, 1.5, 0)
    rebalancer = Rebalancer(load_policy("eplb"), slots)
    before = chosen.counts(slice(0, SHIFT))
    chosen = chosen.shifted(SHIFT, onto_one_rank(before, rebalancer.first(before, 2)))
    lengths = tuple(STEPS - i % 2 for i in range(REQUESTS))
    return Serving(MODEL, 2, chosen, SHIFT, rebalancer, Settings(4, 2, every, most_rows=8), lengths)


def check(job: Serving, done: Served) -> None:
    assert sorted(done.scheduler.answered) == list(range(REQUESTS))
    assert largest_difference(job, [done.answers]) < 1e-5


def test_experts_move_while_they_serve_and_answers_stay_those_of_one_process(cluster: StandingCluster) -> None:
    job = serving()
    done = serve(cluster, job, Unknown())
    check(job, done)
    assert done.scheduler.tally.moves > 0
    assert (done.run.status == DONE).all()
    replay(done.log, job.fresh())
    found = summarize(job, [done], [], None)
    assert (found["answered"], found["lost"], found["duplicated"]) == (REQUESTS, 0, 0)
    assert next(p for p in found["phases"] if p["phase"] == MOVING)["measured_rows_per_s"] > 0


@pytest.mark.parametrize(("rank", "step", "slots"), [(1, 0, 6), (0, 5, 8), (1, 7, 4)])
def test_a_killed_rank_is_replaced_and_no_request_is_lost(cluster: StandingCluster, rank: int, step: int, slots: int) -> None:
    """At once; while experts move; and where the other rank has no room for all experts and waits for the replacement."""
    job = serving(slots)
    done = serve(cluster, job, Unknown(), Kill(rank, step))
    check(job, done)
    replay(done.log, job.fresh())
    tally = done.scheduler.tally
    assert (tally.lost_ranks, tally.joined_ranks) == ([rank], [rank])
    assert any(plan.living == 2 for plan in tally.served)
    assert len(done.replaced_s) == 1
    short = [p for p in tally.served if p.living == 1]
    assert bool(short) == (slots >= MODEL.experts)
    assert len(phases(job, [done])[SHORT].rates) == sum(p.rows == 8 for p in short)
    assert not short or short[0].rows == 8  # 4 seats, 2 steps
    assert np.isin([p.first for p in tally.served], done.run.number).all()


def test_a_drill_after_the_last_step_is_refused_and_one_that_did_not_happen_is_not_simulated() -> None:
    """24 requests of 3 or 4 steps in 8 seats."""
    job = serving()
    assert job.steps == 12
    assert Kill.of("1@11", 2, job.steps) == Kill(1, 11)
    with pytest.raises(UserError, match=r"--kill: is '1@12', and the run has 12 steps; a step of 0 to 11 is needed"):
        Kill.of("1@12", 2, job.steps)
    with pytest.raises(UserError, match="--kill: is '2@1'; RANK@STEP is needed"):
        Kill.of("2@1", 2, job.steps)
    assert when_lost(job, load_machine("8xh100"), Kill(1, 11), replaced_s=()) == []


def test_messages_that_hold_less_than_a_rank_may_send_are_refused() -> None:
    with pytest.raises(UserError, match="most_rows: is 7; 8 or more is needed, 2 for each of 4 seats"):
        replace(serving(), settings=Settings(4, 2, most_rows=7))


def test_a_replacement_that_is_killed_on_its_way_is_replaced(cluster: StandingCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, as soon as it has started; only one with no room for all experts waits for the next."""
    killed: list[int] = []
    start = cluster.replace

    def replaced(rank: int) -> None:
        start(rank)
        if not killed:
            killed.append(rank)
            cluster._children.kill(rank)

    monkeypatch.setattr(cluster, "replace", replaced)
    job = serving(4)
    done = serve(cluster, job, Unknown(), Kill(1, 2))
    check(job, done)
    assert killed == [1]
    assert (done.scheduler.tally.lost_ranks, done.scheduler.tally.joined_ranks) == ([1], [1])


def test_each_draw_of_the_twin_has_its_own_digest() -> None:
    first, second, again = (DrawnCosts(load_machine("8xh100"), serving(), draw) for draw in (0, 1, 0))
    assert first.digest == again.digest != second.digest


def test_without_recovery_a_killed_rank_ends_the_run_and_all_until_then_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with StandingCluster(2, recover=False) as cluster, pytest.raises(RankLost, match="rank 1 was lost: was killed by SIGKILL") as lost:
        serve(cluster, serving(), Unknown(), Kill(1, 2))
    assert lost.value.run is not None
    first, *more = lost.value.run.sources
    assert more and isinstance(first, Plan)
    assert (lost.value.run.status[: len(first)] == DONE).all()
    assert shown(lost.value, tmp_path / "kept.parquet", monkeypatch) == 1
    assert capsys.readouterr().err == f"error: {lost.value}; the timeline until then is in {tmp_path / 'kept.parquet'}\n"
    assert len(read_timeline(tmp_path / "kept.parquet")) == len(lost.value.run.number)


def shown(stopped: RunStopped, timeline: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """What `run --placement` makes of it; its exit code."""

    def stop(*_: object) -> None:
        raise stopped

    monkeypatch.setattr(placing, "_really", stop)
    with pytest.raises(typer.Exit) as left:
        placing.run(
            2, "tiny-mixtral", "eplb", machine=None, trace=None, skew=0.0, shift=None, requests=8, batch=None, gen=2, spares=0, every=0,
            hysteresis=0.0, recover=False, kill=None, seed=0, timeline=timeline, check=False, as_json=False,
        )  # fmt: skip
    return left.value.exit_code
