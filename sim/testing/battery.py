"""The conformance battery: what any scheduler must pass to run on both clocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from random import Random
from typing import NamedTuple

from sim.drive import Deadlock, Diverged, replay
from sim.tasks import Task
from sim.testing import footprint, rules
from sim.testing.cases import Case, cases
from sim.testing.observed import Endless, Observed, SchedulerClass, fresh, on_dice, on_simpy


class Verdict(NamedTuple):
    """story: of the first violation; empty where it passed."""

    name: str
    passed: bool
    story: str


Rule = Callable[[Observed], str]

RULES: dict[str, Rule] = {
    "dependencies": rules.dependencies,
    "lanes": rules.lanes,
    "pools": rules.pools,
    "read after write": rules.read_after_write,
    "write after read": rules.write_after_read,
    "write after write": rules.write_after_write,
    "tokens once": rules.tokens_once,
    "bytes moved": rules.bytes_moved,
    "weights present": rules.weights_present,
    "memory": footprint.memory,
}
"""Rules of a single run, see their docstrings."""

MORE = ("termination", "same seed", "replay", "failure")
"""Rules over several runs: every case ends on both clocks, whatever the order of events; the same seed
gives the same log, and the log replays; after a failure either every token is made once, or nothing more is asked for."""

DICE_SEEDS = (0, 1)
"""Draws of durations for each case, beside one machine on the SimPy clock."""

FAILURES = 4
"""Runs of each case in which one task fails."""


def check(make: SchedulerClass, seed: int = 0, runs: Sequence[Case] | None = None) -> list[Verdict]:
    """Run the battery on a scheduler class. The same seed gives the same runs.

    runs: what to run in place of `sim.testing.cases.cases(seed)`.
    """
    runs = cases(seed) if runs is None else runs
    stories: dict[str, str] = {}
    for case in runs:
        seen = []
        for observed, where in _on_both_clocks(make, case, seed, stories):
            seen.append(observed)
            for name, rule in RULES.items():
                story = "" if name in stories else rule(observed)
                if story:
                    stories[name] = f"{where}: {story}"
        if "termination" not in stories:
            _repeatable(make, seen[-1], seed, stories)
            _failing(make, seen[0], seed, stories)
    if "termination" in stories:
        for name in MORE:
            stories.setdefault(name, "not looked at to the end: a run did not end")
    return [Verdict(name, name not in stories, stories.get(name, "")) for name in (*RULES, *MORE)]


def _on_both_clocks(make: SchedulerClass, case: Case, seed: int, stories: dict[str, str]) -> Iterator[tuple[Observed, str]]:
    """The case under several draws of durations, and on SimPy; a run that does not end is told under "termination"."""
    clocks = {f"dice seed {s}": partial(on_dice, make, case, seed + s) for s in DICE_SEEDS}
    clocks["simpy"] = partial(on_simpy, make, case, seed)
    for clock, run in clocks.items():
        where = f"case {case.name!r} on {clock}"
        try:
            observed = run()
        except (Deadlock, Endless) as e:
            stories.setdefault("termination", f"{where}: {e}")
        except Exception as e:  # a user's code may raise anything; its story is the verdict
            stories.setdefault("termination", f"{where}: raised {type(e).__name__}: {e}")
        else:
            yield observed, where


def _repeatable(make: SchedulerClass, first: Observed, seed: int, stories: dict[str, str]) -> None:
    """A second run on SimPy, and a replay."""
    case = first.case
    if first.log.digest() != on_simpy(make, case, seed).log.digest():
        stories.setdefault("same seed", f"case {case.name!r}: two runs with seed {case.seed} answered the same events with other commands")
    try:
        replay(first.log, fresh(make, case))
    except Diverged as e:
        stories.setdefault("replay", f"case {case.name!r}: {e}")


def _failing(make: SchedulerClass, whole: Observed, seed: int, stories: dict[str, str]) -> None:
    """Tasks of some ops fail, each in a run of its own, on one of the clocks."""
    case = whole.case
    rng = Random(f"{seed} {case.name}")
    for n, task in enumerate(_some_tasks([r.task for r in whole.ran], rng)):
        clock = "simpy" if n % 2 else "dice"
        try:
            if clock == "dice":
                story = after_failure(on_dice(make, case, seed, doomed=_only(task.number)))
            else:
                story = after_failure(on_simpy(make, case, seed, failures=[(task.number, 0.5)]))
        except Exception as e:  # as above
            story = f"raised {type(e).__name__}: {e}"
        if story:
            stories.setdefault("failure", f"case {case.name!r} on {clock}, when {rules.told(task)} fails: {story}")


def _some_tasks(tasks: list[Task], rng: Random) -> Iterable[Task]:
    """One task of each of some ops that run on a lane."""
    ops = sorted({t.op for t in tasks if t.lane is not None})
    return [rng.choice([t for t in tasks if t.op == op]) for op in rng.sample(ops, min(FAILURES, len(ops)))]


def _only(number: int) -> Callable[[Task], bool]:
    return lambda task: task.number == number


def after_failure(o: Observed) -> str:
    """Either the schedule recovered, and every token was sampled once, or it stopped and left nothing
    open; buffers and weights are as they must be in both cases."""
    short = [r.request_id for r in o.case.requests if _tokens(o, r.request_id) != o.case.lengths[r.request_id]]
    over = [q for q in short if _tokens(o, q) > o.case.lengths[q]]
    if over:
        return f"request {over[0]} got {_tokens(o, over[0])} tokens, not {o.case.lengths[over[0]]}"
    if short and not o.failures:
        return f"request {short[0]} is short of tokens, and no failure was reported"
    return rules.lanes(o) or rules.dependencies(o) or rules.write_after_read(o) or rules.weights_present(o)


def _tokens(o: Observed, request: int) -> int:
    return sum(request in r.task.requests for r in o.done if r.task.op == "sample")

