"""One reacting scheduler class on two clocks: it branches by its events, and each log replays on its own."""

from __future__ import annotations

import pytest

from exec import session
from sim.costs import CostModel
from sim.drive import Diverged, Log, drive, replay
from sim.engines.simpy_engine import SimPyEngine
from sim.events import Finished
from sim.schedulers import registry
from sim.schedulers.policy import Policy
from sim.workloads import Outcomes
from tests.exec.backends.support import SPEC, machine, weights, workload

POLICY = Policy(batch=4, microbatch=2)


def _simulated(scheduler: str, work, log: Log) -> None:
    requests, _, lengths = work
    costs = CostModel(machine(), SPEC)
    made = registry.load(scheduler)(SPEC, POLICY)
    engine = SimPyEngine(costs.lanes, dict(made.pools), costs, profile=costs, arrivals=tuple(requests), outcomes=Outcomes(lengths))
    drive(made, engine, log)


def _measured(scheduler: str, work, log: Log, eos: tuple[int, ...] = ()) -> session.Outcome:
    requests, prompts, lengths = work
    made = registry.load(scheduler)(SPEC, POLICY)
    profile = CostModel(machine(), SPEC)
    return session.run(SPEC, weights(), machine(), made, requests, prompts, lengths=lengths, eos=eos, profile=profile, log=log)


def _ends(log: Log) -> list[tuple[int, ...]]:
    return [event.result.ended for _, event, _ in log.entries if isinstance(event, Finished)]


@pytest.mark.parametrize("scheduler", ["cgopipe", "flexgen"])
def test_both_clocks_replay_and_agree_where_their_events_do(scheduler: str) -> None:
    work = workload((5, 17, 3, 8, 1, 12), (4, 2, 6, 3, 5, 3), known=False)
    simulated, measured = Log(), Log()
    _simulated(scheduler, work, simulated)
    _measured(scheduler, work, measured)
    for log in (simulated, measured):
        replay(log, registry.load(scheduler)(SPEC, POLICY))
    assert [c for *_, c in simulated.entries if c] == [c for *_, c in measured.entries if c]


@pytest.mark.parametrize("scheduler", ["cgopipe", "flexgen"])
def test_it_takes_other_branches_where_a_stop_token_comes_early(scheduler: str) -> None:
    """The simulator knows lengths from the workload; on the real clock the model itself ends a sequence."""
    work = workload((5, 17, 3, 8, 1, 12), 6, known=False)
    stop = _measured(scheduler, work, Log()).tokens[1][1]
    simulated, measured = Log(), Log()
    _simulated(scheduler, work, simulated)
    _measured(scheduler, work, measured, eos=(stop,))
    assert _ends(simulated) != _ends(measured)
    assert [c for *_, c in simulated.entries if c] != [c for *_, c in measured.entries if c]
    for log in (simulated, measured):
        replay(log, registry.load(scheduler)(SPEC, POLICY))


def test_a_log_of_another_run_does_not_replay() -> None:
    log = Log()
    _simulated("cgopipe", workload((5, 17, 3, 8), (4, 2, 6, 3), known=False), log)
    with pytest.raises(Diverged, match="entry"):
        replay(log, registry.load("cgopipe")(SPEC, Policy(batch=4, microbatch=1)))


def test_same_seed_same_log_on_the_simulated_clock() -> None:
    digests = set()
    for _ in range(2):
        log = Log()
        _simulated("cgopipe", workload((5, 17, 3, 8, 1, 12), (4, 2, 6, 3, 5, 3), known=False), log)
        digests.add(log.digest())
    assert len(digests) == 1
