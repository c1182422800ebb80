"""The desk: hands out a scheduler's timers and messages, and knows what follows when one of them is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count

from sim.events import Finished, Result
from sim.swarm.jobs import Tally
from sim.swarm.mail import WIRES
from sim.swarm.plant import Plant
from sim.tasks import PS_PER_S, Command, Task, Time, Work

Then = Callable[[Time, Result], Sequence[Command]]


class Desk:
    """numbers: where the numbers of all of the scheduler's tasks come from."""

    def __init__(self, plant: Plant, tally: Tally) -> None:
        self.plant, self.tally = plant, tally
        self.numbers: Iterator[int] = count()
        self._then: dict[int, Then] = {}

    def __contains__(self, task: int) -> bool:
        return task in self._then

    @property
    def open(self) -> set[int]:
        """Tasks that are not done."""
        return set(self._then)

    def timer(self, after_s: float, then: Then, op: str = "timer") -> Task:
        """op: "market": the world tells what nodes cost and which are to be had, when it rings."""
        number = next(self.numbers)
        self._then[number] = then
        return Task(number, Work(op, latency_ps=max(1, round(after_s * PS_PER_S))), notify=True)

    def send(self, a: str, b: str, size: int, op: str, then: Then) -> Task:
        """Bytes from node to node; what they are carried on is counted."""
        number = next(self.numbers)
        self._then[number] = then
        self.tally.tasks += 1
        self.tally.carry(self.plant.network.path(a, b), size, "requests")
        return Task(number, self.plant.transfer(a, b, size, op), WIRES, notify=True)

    def finished(self, now: Time, event: Finished) -> Sequence[Command]:
        return self._then.pop(event.task)(now, event.result)

    def forget(self, task: int) -> None:
        """Nothing follows from it any more."""
        self._then.pop(task, None)
