"""The pool: which nodes are rented, since when, and what has become of each that was."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from sim.tasks import Time

State = Literal["free", "starting", "up", "draining"]


@dataclass(eq=False, slots=True)
class Rent:
    """One node from an order until it is given back; up: when it ran; serves: when it first was part of a group that is up."""

    node: int
    since: Time
    up: Time | None = None
    serves: Time | None = None
    until: Time | None = None

    @property
    def wasted(self) -> bool:
        """It was given back before it had served anybody."""
        return self.until is not None and self.serves is None


class Pool:
    """States of all nodes [nodes], and all rents so far.

    free -> starting (ordered) -> up -> draining (takes no more work) -> free; a draining node may be taken up again. kept: nodes
    that are never given back. rented: those that run when the study begins.
    """

    def __init__(self, nodes: int, rented: Collection[int], kept: Collection[int], most: int) -> None:
        self.state: list[State] = ["free"] * nodes
        self.kept, self.most = frozenset(kept), most
        self.rents: list[Rent] = []
        self._open: dict[int, Rent] = {}
        for node in sorted(rented):
            self.order(0, node)
            self.came(0, node)
            self._open[node].serves = 0

    def nodes(self, *states: State) -> frozenset[int]:
        return frozenset(n for n, s in enumerate(self.state) if s in states)

    @property
    def rented(self) -> frozenset[int]:
        return frozenset(self._open)

    @property
    def room(self) -> int:
        """Nodes that may be ordered still."""
        return self.most - len(self._open)

    def _turn(self, node: int, before: Collection[State], after: State) -> None:
        assert self.state[node] in before, f"node {node} is {self.state[node]}, must be {' or '.join(before)} to become {after}"
        self.state[node] = after

    def order(self, now: Time, node: int) -> None:
        assert self.room > 0, f"node {node}: all {self.most} nodes that may be rented are"
        self._turn(node, ["free"], "starting")
        self._open[node] = Rent(node, now)
        self.rents.append(self._open[node])

    def came(self, now: Time, node: int) -> None:
        self._turn(node, ["starting"], "up")
        self._open[node].up = now

    def serves(self, now: Time, node: int) -> None:
        rent = self._open[node]
        rent.serves = now if rent.serves is None else rent.serves

    def drain(self, node: int) -> None:
        assert node not in self.kept, f"node {node} is kept"
        self._turn(node, ["up"], "draining")

    def take_up(self, node: int) -> None:
        self._turn(node, ["draining"], "up")

    def give_back(self, now: Time, node: int) -> None:
        assert node not in self.kept, f"node {node} is kept"
        self._turn(node, ["starting", "up", "draining"], "free")
        self._open.pop(node).until = now

    def rent_of(self, node: int) -> Rent:
        """The rent of a node that is rented."""
        return self._open[node]

    def since_up(self, node: int) -> Time:
        up = self._open[node].up
        assert up is not None, f"node {node} does not run"
        return up

    def leads_s(self) -> Iterator[float]:
        """Of each order of the study that has come to serve: how long that took."""
        return ((r.serves - r.since) / 1e12 for r in self.rents if r.serves is not None and r.since > 0)
