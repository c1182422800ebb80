"""What a deadlock tells: who waits, for what, and who has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sim.drive import Deadlock

SHOWN = 8
"""Waits, dependencies and holders that a message names; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A task that is open when nothing can happen any more.

    deps: dependencies that are not done; takes: (pool, units) it wants; running: it started, and a
    resource that it needs has capacity 0.
    """

    number: int
    op: str
    lane: str | None
    running: bool
    deps: tuple[int, ...]
    takes: tuple[tuple[str, int], ...]


def deadlock(open_tasks: int, waits: Sequence[Wait], room: Mapping[str, int], holders: Mapping[str, Sequence[int]]) -> Deadlock:
    """`waits`: running tasks and the first waiting task of each lane; `room`: units free of each pool."""
    lines = [f"  task {w.number} ({w.op}) {_place(w)} {_reason(w, room, holders)}" for w in waits[:SHOWN]]
    if len(waits) > SHOWN:
        lines.append(f"  and {len(waits) - SHOWN} more")
    return Deadlock("\n".join([f"{open_tasks} tasks are open and nothing can happen any more", *lines]))


def _place(w: Wait) -> str:
    return "without a lane" if w.lane is None else f"on lane {w.lane!r}"


def _reason(w: Wait, room: Mapping[str, int], holders: Mapping[str, Sequence[int]]) -> str:
    if w.running:
        return "is stalled: a resource that it needs has capacity 0"
    if w.deps:
        return f"waits for {_names(w.deps)} to be done"
    wanted: dict[str, int] = {}
    for pool, units in w.takes:
        wanted[pool] = wanted.get(pool, 0) + units
    lacking = [
        f"{units} of pool {pool!r} ({room[pool]} free, held by {_names(holders[pool])})"
        for pool, units in wanted.items() if units > room[pool]
    ]  # fmt: skip
    return f"waits for {' and '.join(lacking)}" if lacking else "waits for its turn"


def _names(numbers: Sequence[int]) -> str:
    if not numbers:
        return "no task"
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return ("task " if len(numbers) == 1 else "tasks ") + ", ".join(map(str, numbers[:SHOWN])) + more
