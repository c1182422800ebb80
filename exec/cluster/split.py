"""Share: what one rank runs of a Plan for all ranks, whom it tells, and what it waits to be told.

Lanes name their rank: `gpu.R`, `comm.R`, `host.R`; `put.A.B` runs on A and ends on B, when the rows
are there. A task that depends on another rank's is told when that one ends. A join over several
ranks closes on every rank that needs it, once each of them has told that its part is done: the
barrier of a collective is as many small messages as there are pairs of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache

from exec.runtime.records import Record, record_of, records_of
from sim.errors import UserError
from sim.plan import Plan
from sim.tasks import Task, Work

_JOIN = Work("join")


class Kind(IntEnum):
    """What a record of a share is.

    RUN: a task of a lane of this rank. ARRIVED: the end of a put of another rank to this one. TOLD: the
    end of a task elsewhere. PART: what this rank adds to a join of others. JOIN: a join that tasks of
    this rank wait for.
    """

    RUN = 0
    ARRIVED = 1
    TOLD = 2
    PART = 3
    JOIN = 4


@dataclass(slots=True)
class Share:
    """Records of one rank, numbered from 0.

    kinds, numbers: of each record, and the number in the Plan of the task that it stands for.
    tells: by record, the (rank, task number) that are told of its end. awaits: by task number, the
    record that waits for messages about it. arrives: by task number, the buffer that a put to this rank fills.
    """

    rank: int
    records: list[Record] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    tells: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    awaits: dict[int, int] = field(default_factory=dict)
    arrives: dict[int, str] = field(default_factory=dict)


def rank_of(lane: str) -> int:
    """The rank whose thread runs a lane. Raises UserError for a lane that names none."""
    return _ranks(lane)[0]


def end_of(lane: str) -> int:
    """The rank on which tasks of a lane end: the target of a put."""
    return _ranks(lane)[-1]


@cache
def _ranks(lane: str) -> tuple[int, ...]:
    kind, *ranks = lane.split(".")
    if not ranks or not all(r.isdecimal() for r in ranks) or len(ranks) != (2 if kind == "put" else 1):
        raise UserError(f"lane {lane!r}: names no rank; gpu.R, comm.R, host.R or put.A.B runs on a cluster")
    return tuple(map(int, ranks))


class Split:
    """Who runs, ends and needs what in one Plan.

    start, end [n]: rank on which each task starts and ends, -1 for joins. told [n]: ranks that must know
    of its end: those whose tasks name it; for a join also those that need a join behind it.
    parts [n]: ranks on which something that a join names ends.

    Raises UserError for a Plan that takes units of pools, holds timers, or depends on an earlier Plan:
    ranks keep no common books.
    """

    def __init__(self, plan: Plan) -> None:
        if len(plan.take_units):
            raise UserError("scheduler: its plan takes units of pools; a cluster has no pool that all ranks see")
        if len(plan.dep) and int(plan.dep.min()) < plan.first:
            raise UserError("scheduler: its plan depends on tasks of an earlier one; a cluster runs one plan after another")
        self.plan = plan
        lanes = [plan.lanes[lane] if lane >= 0 else None for lane in plan.lane.tolist()]
        if any(lane is None and plan.works[w].latency_ps for lane, w in zip(lanes, plan.work.tolist(), strict=True)):
            raise UserError("scheduler: its plan holds timers; a cluster runs joins and tasks of lanes")
        self.deps = [plan.dep[a:b] - plan.first for a, b in zip(plan.dep_ptr, plan.dep_ptr[1:], strict=False)]
        self.start = [-1 if lane is None else rank_of(lane) for lane in lanes]
        self.end = [-1 if lane is None else end_of(lane) for lane in lanes]
        self.told = self._told()
        self.parts = [{self.end[d] for d in deps} - {-1} if s < 0 else set() for s, deps in zip(self.start, self.deps, strict=True)]

    def _told(self) -> list[set[int]]:
        told: list[set[int]] = [set() for _ in self.deps]
        for i in range(len(told) - 1, -1, -1):
            for d in self.deps[i]:
                if self.start[i] >= 0:
                    told[d].add(self.start[i])
                elif self.start[d] < 0:
                    told[d] |= told[i]
        return told

    def share(self, rank: int) -> Share:
        """What `rank` runs."""
        return _Builder(self, rank).share


class _Builder:
    """Walks the Plan once and adds the records of one rank, dependencies first."""

    def __init__(self, split: Split, rank: int) -> None:
        self.split, self.rank = split, rank
        self.share = Share(rank)
        self._ends: dict[int, int] = {}
        """By place in the Plan, the record whose end is that task's, as this rank sees it."""
        for i, task in enumerate(records_of(split.plan)):
            if task.lane is None:
                self._join(i)
            else:
                self._task(i, task)

    def _add(self, kind: Kind, i: int, record: Record, waits: int = 0) -> int:
        share, number = self.share, self.split.plan.first + i
        record.number, record.waiting = len(share.records), waits
        share.records.append(record)
        share.kinds.append(kind)
        share.numbers.append(number)
        if waits:
            share.awaits[number] = record.number
        return record.number

    def _note(self, kind: Kind, i: int, deps: Sequence[int] = (), waits: int = 0) -> int:
        notify = kind is Kind.ARRIVED and bool(self.split.plan.notify[i])
        return self._add(kind, i, record_of(Task(-1, _JOIN, deps=tuple(deps), notify=notify)), waits)

    def _task(self, i: int, task: Record) -> None:
        start, end, told = self.split.start[i], self.split.end[i], self.split.told[i]
        if start == self.rank:
            task.deps = [self._ends[d] for d in self.split.deps[i]]
            task.notify = task.notify and start == end
            self._ends[i] = self._add(Kind.RUN, i, task)
        if end != self.rank:
            if self.rank in told:
                self._ends[i] = self._note(Kind.TOLD, i, waits=1)
            return
        if start != self.rank:
            self._ends[i] = self._note(Kind.ARRIVED, i, waits=1)
            self.share.arrives[self.split.plan.first + i] = task.writes[0]
        self._tell(self._ends[i], i, told)

    def _join(self, i: int) -> None:
        split = self.split
        told, deps = split.told[i], split.deps[i]
        waits = [self._ends[d] for d in deps if split.end[d] == self.rank]
        if waits and told - {self.rank}:
            part = self._note(Kind.PART, i, waits)
            self._tell(part, i, told)
            waits = [part]
        if self.rank in told:
            waits += [self._ends[d] for d in deps if split.end[d] < 0]
            self._ends[i] = self._note(Kind.JOIN, i, waits, waits=len(split.parts[i] - {self.rank}))

    def _tell(self, local: int, i: int, ranks: set[int]) -> None:
        others = [(r, self.split.plan.first + i) for r in sorted(ranks - {self.rank})]
        if others:
            self.share.tells[local] = others
