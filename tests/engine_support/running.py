"""A set of tasks that run at once, put straight into the rate solver."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.engines.layout import ONE
from sim.engines.slots import Rates, step
from tests.engine_support.fakes import Demand, pack

NONE = np.zeros(0, np.int64)


class Running:
    """Tasks by position; enters and leaves them one by one."""

    def __init__(self, capacity: Sequence[float], tasks: Sequence[Sequence[Demand]]) -> None:
        self.tasks = tasks
        self.rates = Rates(np.array(capacity, np.float64), len(tasks))
        self.rates.extend(pack([(0, demands) for demands in tasks]))

    def step(self, leaving: Sequence[int] = (), entering: Sequence[int] = (), now: int = 0) -> tuple[int, int]:
        rows = np.array(entering, np.int64)
        return step(*self.rates.arrays, now, np.array(leaving, np.int64), rows, rows, np.ones(len(rows)))

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
