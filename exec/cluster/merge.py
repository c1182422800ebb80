"""One timeline from the stamps of all ranks, on the controller's clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from exec.cluster.clocks import Offset, drift_corrected_ps
from exec.cluster.engine import ENDED, STARTED, Stamp
from sim.engines.run import CANCELLED, DONE, Run
from sim.plan import Plan
from sim.tasks import Time


class Stamps:
    """What ranks have reported of one Plan."""

    def __init__(self, plan: Plan, lanes: Sequence[str]) -> None:
        self.plan, self._lanes = plan, tuple(lanes)
        self._by_rank: dict[int, list[Stamp]] = {}
        self._latest: Time = 0

    def add(self, rank: int, stamps: Sequence[Stamp]) -> None:
        self._by_rank.setdefault(rank, []).extend(stamps)
        self._latest = max([self._latest, *(s.end_ps for s in stamps)])

    def run(self, origin_ns: int = 0, before: Mapping[int, Offset] | None = None, after: Mapping[int, Offset] | None = None) -> Run:
        """Times of all tasks known. Offsets by rank, where both are known, correct the drift between them.

        A put has its start from one rank and its end from another; with the start alone it ends as cancelled,
        with the end alone (its sender is lost) it has no length. A join is done when the last of what
        it waits for is. What is not known of ended, as far as this run goes, as cancelled with the last that is known.
        """
        times: dict[int, tuple[Time | None, Time | None, int]] = {}
        for rank, stamps in self._by_rank.items():
            for stamp in stamps:
                if before is not None and after is not None and rank in after:
                    moved = [drift_corrected_ps(t, origin_ns, before[rank], after[rank]) for t in (stamp.start_ps, stamp.end_ps)]
                    stamp = stamp._replace(start_ps=moved[0], end_ps=moved[1])
                self._put_down(times, stamp)
        rows = {number: self._whole(*found) for number, found in times.items()}
        self._close_joins(rows)
        last = self._latest
        for number in range(self.plan.first, self.plan.first + len(self.plan)):
            rows.setdefault(number, (last, last, CANCELLED))
        return self._as_run(rows)

    @staticmethod
    def _put_down(times: dict[int, tuple[Time | None, Time | None, int]], stamp: Stamp) -> None:
        start, end, status = times.get(stamp.number, (None, None, DONE))
        if stamp.what != ENDED:
            start = stamp.start_ps
        if stamp.what != STARTED:
            end = stamp.end_ps
        times[stamp.number] = start, end, max(status, stamp.status)

    def _whole(self, start: Time | None, end: Time | None, status: int) -> tuple[Time, Time, int]:
        if end is None:
            assert start is not None
            return start, max(start, self._latest), CANCELLED
        # Clocks of two ranks agree only within the uncertainty of their offset.
        return (end if start is None else min(start, end)), end, status

    def _close_joins(self, rows: dict[int, tuple[Time, Time, int]]) -> None:
        plan = self.plan
        for i in np.flatnonzero(plan.lane < 0).tolist():
            waited = [rows.get(d) for d in plan.dep[plan.dep_ptr[i] : plan.dep_ptr[i + 1]].tolist()]
            if all(row is not None and row[2] == DONE for row in waited):
                at = max((row[1] for row in waited if row is not None), default=0)
                rows[plan.first + i] = at, at, DONE

    def _as_run(self, rows: Mapping[int, tuple[Time, Time, int]]) -> Run:
        numbers = np.array(sorted(rows), np.int64)
        index = {name: k for k, name in enumerate(self._lanes)}
        code = np.array([index.get(name, -1) for name in self.plan.lanes] + [-1], np.int16)
        at = numbers - self.plan.first
        table = np.array([rows[n] for n in numbers.tolist()], np.int64).reshape(-1, 3)
        return Run(
            sources=(self.plan,), lanes=self._lanes, number=numbers, lane=code[self.plan.lane[at]], start_ps=table[:, 0],
            end_ps=table[:, 1], status=table[:, 2].astype(np.int8),
        )  # fmt: skip
