"""How long nodes and GPUs have worked: what running steps are charged, and what is taken back of those that were cut or cancelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sim.tasks import PS_PER_S, Time

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Charge:
    """What one step takes if nothing stops it. parts: of each of its tasks the seconds of every node [nodes]; gpu_s [gpus]: of its
    experts alone."""

    began: Time
    parts: Mapping[int, Floats]
    gpu_s: Floats

    @cached_property
    def busy_s(self) -> Floats:
        """[nodes]"""
        return np.asarray(sum(self.parts.values()))

    def share(self, now: Time, task: int, share: float) -> Charge:
        """That share of it, as one task that begins now."""
        return Charge(now, {task: self.busy_s * share}, self.gpu_s * share)

    def so_far(self, now: Time) -> tuple[Floats, Floats]:
        """What of it can have been run by now: nobody works for longer than the time that has passed."""
        passed = (now - self.began) / PS_PER_S
        return np.minimum(self.busy_s, passed), np.minimum(self.gpu_s, passed)


class Meter:
    """Seconds worked. busy_s [nodes], gpu_s [gpus]: of the steps that are over. node_of: of each GPU."""

    def __init__(self, node_of: NDArray[np.int64]) -> None:
        self.node_of = node_of
        self.busy_s = np.zeros(int(node_of.max(initial=-1)) + 1)
        self.gpu_s = np.zeros(len(node_of))
        self._open: dict[int, Charge] = {}
        """Running steps by the number of their charge's last task."""
        self._of: dict[int, Charge] = {}
        """The charge of each task that may still be cancelled."""

    def begin(self, charge: Charge) -> None:
        """A step begins."""
        self._open[max(charge.parts)] = charge
        self._of.update(dict.fromkeys(charge.parts, charge))

    def end(self, charge: Charge) -> None:
        """All of a step was run."""
        self.stop(charge)
        for task in charge.parts:
            self._of.pop(task, None)

    def stop(self, charge: Charge) -> None:
        """A step is over; if its tasks were cancelled, `failed` tells for each how far it had come."""
        if self._open.pop(max(charge.parts), None) is not None:
            self.busy_s += charge.busy_s
            self.gpu_s += charge.gpu_s

    def failed(self, task: int, fraction: float) -> None:
        """A task was cancelled when that part of it was done: the rest is taken back, and of the GPUs' time as much as of their
        node's."""
        charge = self._of.pop(task, None)
        if charge is None:
            return
        self.stop(charge)
        back = charge.parts[task] * (1.0 - fraction)
        share = np.divide(back, charge.busy_s, out=np.zeros_like(back), where=charge.busy_s > 0)
        self.busy_s -= back
        self.gpu_s -= share[self.node_of] * charge.gpu_s

    def worked(self, now: Time) -> tuple[Floats, Floats]:
        """(nodes, GPUs) with what running steps have done so far."""
        parts = [charge.so_far(now) for charge in self._open.values()]
        return self.busy_s + sum(b for b, _ in parts), self.gpu_s + sum(g for _, g in parts)

    def node_s(self, now: Time, node: int) -> float:
        """What `worked` tells of one node, which asks often."""
        running = (min(float(c.busy_s[node]), (now - c.began) / PS_PER_S) for c in self._open.values())
        return float(self.busy_s[node]) + sum(running)

    def close(self, now: Time) -> None:
        """The study is over: what still runs counts as far as it can have come."""
        self.busy_s, self.gpu_s = self.worked(now)
        self._open.clear()
        self._of.clear()
