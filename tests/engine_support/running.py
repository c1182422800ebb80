"""A set of tasks that run at once, put straight into the rate solver."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.engines.layout import CUT, HEAP, NEVER, ONE, PART, TOUCHED
from sim.engines.slots import Rates, step
from tests.engine_support.fakes import Demand, pack


class Running:
    """Tasks by position; enters and leaves them one by one."""

    def __init__(self, capacity: Sequence[float], tasks: Sequence[Sequence[Demand]]) -> None:
        self.tasks = tasks
        self.rates = Rates(np.array(capacity, np.float64), len(tasks))
        self.rates.extend(pack([(0, demands) for demands in tasks]))

    def step(self, leaving: Sequence[int] = (), entering: Sequence[int] = (), now: int = 0) -> tuple[int, int]:
        rows = np.array(entering, np.int64)
        found = step(*self.rates.arrays, now, np.array(leaving, np.int64), rows, rows, np.ones(len(rows)))
        self.check()
        return found

    def check(self) -> None:
        """What must hold between instants: sums and lists as if summed up anew, no scratch left, a heap."""
        r = self.rates
        running = [i for i in range(len(self.tasks)) if r.slots["fluid"][i]]
        assert r.counts[[CUT, TOUCHED, PART]].tolist() == [0, 0, 0]
        assert not r.slots["cut"].any() and not r.slots["touched"].any() and not r.resources["part"].any()
        assert (r.slots["base"][running] == 1.0).all()
        assert r.resources["used"].tolist() == self.used()
        heap = r.lists[HEAP, : r.counts[HEAP]].tolist()
        assert sorted(heap) == [i for i in running if r.slots["end"][i] < NEVER]
        assert [r.slots["heap"][s] for s in heap] == list(range(len(heap)))
        ends = r.slots["end"][heap]
        assert all(ends[(place - 1) // 2] <= end for place, end in enumerate(ends) if place)

    def speeds(self) -> list[float]:
        """Relative to running alone; 0 where a capacity of 0 stalls the task."""
        solo = self.rates.classes["solo"]
        return [0.0 if np.isinf(solo[i]) else float(self.rates.slots["speed"][i]) for i in range(len(self.tasks))]

    def used(self) -> list[int]:
        """Units of ONE that the running tasks use of each resource, summed up anew."""
        total = [0] * len(self.rates.resources)
        for i, speed in enumerate(self.speeds()):
            if self.rates.slots["fluid"][i]:
                row = self.rates.classes[i]
                for d in self.rates.demands[row["first"] : row["last"]]:
                    total[d["resource"]] += int(speed * int(d["share"]))
        return total

    def full(self, resource: int) -> bool:
        users = int(self.rates.resources["users"][resource])
        return ONE - self.used()[resource] <= 2**10 + users
