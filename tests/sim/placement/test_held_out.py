"""Load left out: folds that share nothing, and what `joint` and `robust` make of load that they did not see."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sim.errors import UserError
from sim.placement import Gpus, Problem, Sample, measures
from sim.placement.held_out import LAYERS, MOST, Fold, folds, surely_above
from sim.placement.joint import PULLS, USUAL, Joint
from sim.placement.policy import load
from tests.sim.placement.problems import clustered, counted
from tests.traces.shared_data import folder


def recorded(windows: int, tokens: int, layers: int = 3, experts: int = 8) -> Problem:
    rng = np.random.default_rng(0)
    chosen = np.argsort(rng.random((windows * tokens, layers, experts)), axis=2)[:, :, :2].astype(np.int16)
    sample = Sample(chosen, np.repeat(np.arange(windows), tokens))
    counts = np.concatenate([counted(Sample(chosen[sample.window == w], sample.window), experts) for w in range(windows)])
    return Problem(counts, Gpus.even(2, experts), sample)


def test_each_window_is_left_out_with_its_tokens() -> None:
    problem = recorded(4, 50)
    found = folds(problem)
    assert len(found) == 4
    for i, fold in enumerate(found):
        assert (fold.counts == problem.windows[i]).all()
        assert (fold.problem.windows == np.delete(problem.windows, i, 0)).all()
        sample = fold.problem.sample
        assert sample is not None and len(sample) == 150
        for w in range(3):
            mine = Sample(sample.experts[sample.window == w], sample.window[sample.window == w])
            assert (counted(mine, 8)[0] == fold.problem.windows[w]).all()


def test_one_trace_is_cut_into_stretches() -> None:
    problem = recorded(1, 1700)
    found = folds(problem)
    assert len(found) == MOST
    for fold in found:
        assert (fold.counts + fold.problem.windows[0] == problem.windows[0]).all()
    assert np.sum([fold.counts for fold in found], axis=0) == pytest.approx(problem.windows[0])


def test_many_windows_and_layers_are_few_folds_of_few_layers() -> None:
    windows = np.random.default_rng(0).integers(1, 9, (20, 30, 4)).astype(float)
    found = folds(Problem(windows, Gpus.even(2, 4)))
    assert len(found) == MOST and all(fold.counts.shape == (LAYERS, 4) for fold in found)


def test_too_little_is_not_cut_and_the_usual_pull_is_taken() -> None:
    few = recorded(2, 50, layers=1, experts=4)
    assert folds(few) == [] and folds(Problem(few.windows[:1], few.gpus)) == []
    assert load("joint").place(few) == load(f"joint:pull={USUAL}").place(few)


def test_a_gain_must_exceed_its_own_error() -> None:
    assert surely_above(np.array([0.1, 0.2, 0.3])) and surely_above(np.array([0.1, 0.1, 0.1]))
    assert not surely_above(np.array([-0.2, 0.3, 0.0])) and not surely_above(np.array([-0.1, -0.1, -0.1]))


def test_the_pull_that_is_chosen_is_the_strongest_that_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = recorded(4, 50)
    monkeypatch.setattr(Joint, "_searcher", lambda self, problem: lambda pull, seconds: pull)
    for last in range(-1, len(PULLS)):
        passes = set(PULLS[: last + 1])
        monkeypatch.setattr(Fold, "score", lambda self, pull, ok=passes: 1.0 * (pull in ok))
        assert Joint().keeping(problem, 0.5) == PULLS[max(0, last)]


def test_the_balance_to_keep_is_a_policys_or_a_number() -> None:
    """A stronger pull where less is asked for; nothing is chosen where a pull is given."""
    sample = clustered(layers=1, tokens=800, seed=1)
    problem = Problem(counted(sample, 16), Gpus.even(4, 16), sample)
    pulls = [Joint().keeping(problem, load(name).place) for name in ("greedy", "affinity")]
    assert pulls[0] < pulls[1] and Joint().keeping(problem, 0.0) == PULLS[-1] and Joint().keeping(problem, 1.1) == PULLS[0]
    assert load("joint:keep=0.0").place(problem) == load(f"joint:pull={PULLS[-1]}").place(problem)
    assert load("joint:keep=affinity").place(problem) == load(f"joint:pull={pulls[1]}").place(problem)
    with pytest.raises(UserError, match="option keep: unknown name 'greed'; did you mean 'greedy'"):
        load("joint:keep=greed")


@pytest.mark.parametrize("balance", [-1.0, 4.2, 9.0, 30.0])
@pytest.mark.parametrize("reach", [-40.0, 2.0, 7.7, 60.0])
def test_the_pull_to_beat_a_policy_has_the_largest_smaller_lead(monkeypatch: pytest.MonkeyPatch, balance: float, reach: float) -> None:
    """Leads that fall and rise with the pull, at some of which there is no crossing at all; by their errors, which differ by ten times."""
    problem, order = recorded(4, 50), {pull: float(k) for k, pull in enumerate(PULLS)}
    jitter = {id_of(fold): 0.1 * (i - 1.5) for i, fold in enumerate(folds(problem))}
    monkeypatch.setattr(Joint, "_searcher", lambda self, problem: lambda pull, seconds: order[pull])

    def scores(self: Joint, fold: Fold, k: float) -> tuple[float, float]:
        off = jitter[id_of(fold)]
        return (0.0, 0.0) if k < 0 else (balance - k + off, k * k / 10 - reach + 10 * off)

    def smaller(k: float) -> float:
        error = np.std(list(jitter.values()), ddof=1) / 2
        return float(min(balance - k, (k * k / 10 - reach) / 10) / error)

    monkeypatch.setattr(Joint, "_scores", scores)
    told: list[str] = []
    found = order[Joint().beating(problem, lambda part: -1.0, told.append)]
    best = max(smaller(k) for k in order.values())
    assert smaller(found) == pytest.approx(best)
    assert any("does not lead in both" in line for line in told) == (best <= 0)


def id_of(fold: Fold) -> bytes:
    return fold.counts.tobytes()


def test_joint_beats_the_policy_that_it_is_told_to() -> None:
    both = clustered(layers=2, tokens=3200, seed=1)
    sample, later = (Sample(both.experts[part], both.window[part]) for part in (slice(1600), slice(1600, None)))
    problem = Problem(counted(sample, 16), Gpus.even(4, 16), sample)
    ours, theirs = (load(name).place(problem) for name in ("joint:beat=greedy", "greedy"))
    reach = [measures.gpus_touched(p, later, problem.gpus) for p in (ours, theirs)]
    balance = [measures.balancedness(p, counted(later, 16)[0], problem.gpus) for p in (ours, theirs)]
    assert reach[0] < reach[1] and balance[0] >= balance[1] - 0.005
    with pytest.raises(UserError, match="option beat: unknown name 'greed'; did you mean 'greedy'"):
        load("joint:beat=greed")
    for options in ("pull=0.5", "keep=0.9"):
        with pytest.raises(UserError, match="option beat: .* neither pull nor keep"):
            load(f"joint:beat=greedy:{options}")
    counts_alone = Problem(np.random.default_rng(0).integers(1, 9, (4, 2, 16)).astype(float), problem.gpus)
    with pytest.raises(UserError, match="option beat: needs recorded tokens"):
        load("joint:beat=greedy").place(counts_alone)


def test_robust_on_one_window_is_as_good_on_the_next_as_eplb() -> None:
    """Nothing is known of how load changes; then what it finds must not be bought with the next window's balance."""
    rng = np.random.default_rng(1)
    base = rng.normal(0, 0.8, (24, 32))
    seen, *later = (np.floor(1e4 * np.exp(base + rng.normal(0, 0.5, base.shape))) for _ in range(5))
    problem = Problem(seen[None], Gpus.even(8, 32, 8))
    scores = []
    for name in ("robust", "eplb"):
        placement = load(name).place(problem)
        scores.append(np.mean([measures.balancedness(placement, counts, problem.gpus) for counts in later]))
    assert scores[0] >= scores[1] - 0.01


def test_joint_dominates_largest_first_on_a_dataset_left_out() -> None:
    data = folder("gptoss20b_routing")
    rows = json.loads((data / "sequences.json").read_text())
    names = sorted({row["dataset"] for row in rows})
    experts = np.load(data / "routes.npz")["experts"][:, ::4].astype(np.int16)
    dataset = np.concatenate([np.full(row["tokens"], names.index(row["dataset"])) for row in rows])
    windows = np.concatenate([counted(Sample(experts[dataset == i], dataset), 32) for i in range(len(names))])
    last = len(names) - 1
    seen, unseen = dataset < last, Sample(experts[dataset == last], np.zeros((dataset == last).sum(), np.int64))
    problem = Problem(windows[:last], Gpus.even(4, 32), Sample(experts[seen], dataset[seen]))
    joint, greedy = (load(name).place(problem) for name in ("joint", "greedy"))
    reach = [measures.gpus_touched(p, unseen, problem.gpus) for p in (joint, greedy)]
    balance = [measures.balancedness(p, windows[last], problem.gpus) for p in (joint, greedy)]
    assert reach[0] < reach[1] - 0.2 and balance[0] > balance[1]
