"""Two real processes with placed experts: the answers of a single process, whatever moves and whoever is killed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from exec.cluster.losses import RankLost
from exec.cluster.phases import MOVING, summarize
from exec.cluster.placing import Served, Serving, largest_difference, serve
from exec.cluster.profile import Unknown
from exec.cluster.recovering import Kill
from exec.cluster.standing import StandingCluster
from sim.drive import replay
from sim.engines.run import DONE
from sim.ep.chosen import drawn, onto_one_rank
from sim.placement.policy import load as load_policy
from sim.placement.rebalance import Rebalancer
from sim.schedulers.ep.rebalancing import Settings
from tests.exec.tiny import spec

MODEL = spec()
REQUESTS, SHIFT, STEPS = 24, 8, 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[StandingCluster]:
    with StandingCluster(2) as ready:
        yield ready


def serving(slots: int = 6, every: int = 1) -> Serving:
    """Messages hold 5 rows, so that an expert travels in many."""
    chosen = drawn(MODEL, REQUESTS, STEPS, 1.5, 0)
    rebalancer = Rebalancer(load_policy("eplb"), slots)
    before = chosen.counts(slice(0, SHIFT))
    chosen = chosen.shifted(SHIFT, onto_one_rank(before, rebalancer.first(before, 2)))
    lengths = tuple(STEPS - i % 2 for i in range(REQUESTS))
    return Serving(MODEL, 2, chosen, SHIFT, rebalancer, Settings(4, 2, every, most_rows=8), lengths)


def check(job: Serving, done: Served) -> None:
    assert sorted(done.scheduler.answered) == list(range(REQUESTS))
    assert largest_difference(job, done.answers) < 1e-5


def test_experts_move_while_they_serve_and_answers_stay_those_of_one_process(cluster: StandingCluster) -> None:
    job = serving()
    done = serve(cluster, job, Unknown())
    check(job, done)
    assert done.scheduler.tally.moves > 0
    assert (done.run.status == DONE).all()
    replay(done.log, job.fresh())
    found = summarize(job, done, [], None)
    assert (found["answered"], found["lost"], found["duplicated"]) == (REQUESTS, 0, 0)
    assert next(p for p in found["phases"] if p["phase"] == MOVING)["measured_rows_per_s"] > 0


@pytest.mark.parametrize(("rank", "step", "slots"), [(1, 0, 6), (0, 5, 8), (1, 7, 4)])
def test_a_killed_rank_is_replaced_and_no_request_is_lost(cluster: StandingCluster, rank: int, step: int, slots: int) -> None:
    """At once; while experts move; and where the other rank has no room for all experts and waits for the replacement."""
    job = serving(slots)
    done = serve(cluster, job, Unknown(), Kill(rank, step))
    check(job, done)
    tally = done.scheduler.tally
    assert (tally.lost_ranks, tally.joined_ranks) == ([rank], [rank])
    assert any(plan.living == 2 for plan in tally.served)
    assert len(done.replaced_s) == 1
    assert np.isin([p.first for p in tally.served], done.run.number).all()


def test_without_recovery_a_killed_rank_ends_the_run() -> None:
    with StandingCluster(2, recover=False) as cluster, pytest.raises(RankLost, match="rank 1 was lost: was killed by SIGKILL"):
        serve(cluster, serving(), Unknown(), Kill(1, 2))
