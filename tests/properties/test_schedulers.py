"""Every scheduler, any sizes, any durations, any failure: the rules of the battery hold."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sim.drive import replay
from sim.machines.schema import Machine
from sim.schedulers import registry
from sim.testing import RULES
from sim.testing.battery import after_failure
from sim.testing.cases import Case
from sim.testing.observed import fresh, on_dice, on_simpy
from sim.testing.strategies import machines, runs

names = st.sampled_from(registry.names())
FEW = settings(max_examples=25, deadline=None)


@given(names, runs(), st.integers(0, 1000))
@FEW
def test_rules_hold_whatever_the_durations(name: str, case: Case, seed: int) -> None:
    observed = on_dice(registry.load(name), case, seed)
    assert {rule: story for rule, check in RULES.items() if (story := check(observed))} == {}
    assert observed.failures == 0


@given(names, runs(), machines())
@FEW
def test_rules_hold_on_the_simulated_clock(name: str, case: Case, rig: Machine) -> None:
    observed = on_simpy(registry.load(name), case, rig=rig)
    assert {rule: story for rule, check in RULES.items() if (story := check(observed))} == {}


@given(names, runs(), st.integers(0, 1000), st.data())
@FEW
def test_a_failure_is_recovered_from_or_stops_the_run(name: str, case: Case, seed: int, data: st.DataObject) -> None:
    """Where it happens twice in one pass, or in a batch handed out whole, nothing more is served; never too much."""
    whole = on_dice(registry.load(name), case, seed)
    numbers = [r.task.number for r in whole.ran if r.task.lane is not None]
    doomed = set(data.draw(st.lists(st.sampled_from(numbers), min_size=1, max_size=3)))
    observed = on_dice(registry.load(name), case, seed, doomed=lambda task: task.number in doomed)
    assert observed.failures > 0
    assert after_failure(observed) == ""


@given(names, runs(), st.integers(0, 1000), st.integers(0, 1000))
@FEW
def test_tokens_do_not_depend_on_durations(name: str, case: Case, one: int, other: int) -> None:
    def served(seed: int) -> dict[int, int]:
        found = on_dice(registry.load(name), case, seed)
        return {r.request_id: sum(r.request_id in x.task.requests for x in found.done if x.task.op == "sample") for r in case.requests}

    assert served(one) == served(other) == dict(enumerate(case.lengths))


@given(names, runs(), st.integers(0, 1000))
@FEW
def test_a_log_replays_to_the_same_commands(name: str, case: Case, seed: int) -> None:
    make = registry.load(name)
    first, second = on_dice(make, case, seed), on_dice(make, case, seed)
    assert first.log.digest() == second.log.digest()
    replay(first.log, fresh(make, case))
