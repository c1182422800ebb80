"""Loading copies of experts where a new placement wants them, layer by layer, over the links that traffic uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sim.swarm.jobs import Tally
from sim.swarm.mail import WIRES
from sim.swarm.plant import Plant
from sim.swarm.shelves import DISK_BYTES_PER_S, Shelves
from sim.tasks import Cancel, Command, Task

Bools = NDArray[np.bool_]


@dataclass(eq=False)
class Migration:
    """From what is held to `target` [layers, experts, gpus]. One layer at a time is loaded into the room kept free, switched, and its
    old copies are dropped; layers that lack an expert come first. What a node lacks comes as chunks of the checkpoint, from the
    nearest node alive that has them, else from the store; what its disk has is read there."""

    plant: Plant
    shelves: Shelves
    held: Bools
    target: Bools
    numbers: Iterator[int]
    tally: Tally
    alive: frozenset[int]
    dense_to: int | None = None
    """A home that needs the dense weights first."""
    moved: int = 0
    open: dict[int, int] = field(default_factory=dict)
    """Task -> the node that it loads."""
    sources: dict[int, str] = field(default_factory=dict)
    """Task -> the node that sends, for those that fetch."""

    def __post_init__(self) -> None:
        lacking = [not bool(layer.any(axis=1).all()) for layer in self.held]
        changed = [layer for layer in range(len(self.held)) if (self.held[layer] != self.target[layer]).any()]
        self._todo = sorted(changed, key=lambda layer: (not lacking[layer], layer))
        self._layer = -1
        self.loading_dense = self.dense_to is not None

    @property
    def done(self) -> bool:
        return not self.open and not self._todo and self._layer < 0

    def start(self) -> list[Command]:
        """The first transfers; none where nothing is to be loaded."""
        if self.dense_to is not None:
            return self._load(self.dense_to, ["dense"], self.plant.model.dense_bytes)
        return self._next()

    def ended(self, task: int, share: float) -> list[Command]:
        """A transfer is over, and that share of it is there. What is not is asked for again, of the nodes that are alive then."""
        node = self.open.pop(task)
        self.sources.pop(task, None)
        again = self.shelves.ended(task, share)
        if again:
            return self._fetch(node, again)
        self.loading_dense = self.loading_dense and bool(self.open)
        return [] if self.open else self._next()

    def without(self, source: str) -> list[Command]:
        """A node that may be sending is lost. What it sends is cancelled: without that it would stand still until the node is back.
        `ended` then asks others for the rest."""
        self.alive -= {self.plant.nodes.index(source)}
        return [Cancel(n, "its source is gone") for n, name in sorted(self.sources.items()) if name == source]

    def cancel(self) -> list[Command]:
        """Give it up: layers that were switched stay so, chunks that came stay where they are."""
        gone = [Cancel(n, "migration given up") for n in sorted(self.open)]
        self.open.clear()
        self.sources.clear()
        self._todo.clear()
        self._layer = -1
        return list(gone)

    def _next(self) -> list[Command]:
        """Switch the layer that is loaded, and go on with the next that needs loading."""
        if self._layer >= 0:
            self.held[self._layer] = self.target[self._layer]
            self._layer = -1
        while self._todo:
            self._layer = self._todo.pop(0)
            tasks = self._transfers(self._layer)
            if tasks:
                return tasks
            self.held[self._layer] = self.target[self._layer]
            self._layer = -1
        return []

    def _transfers(self, layer: int) -> list[Command]:
        """What each node lacks of the layer; a node gets an expert once for all of its GPUs."""
        wanted: dict[int, list[int]] = {}
        for expert, gpu in np.argwhere(self.target[layer] & ~self.held[layer]).tolist():
            wanted.setdefault(int(self.plant.node_of[gpu]), []).append(expert)
            self.moved += 1
        tasks: list[Command] = []
        for node, experts in sorted(wanted.items()):
            blobs = [f"expert/{layer}/{e}" for e in dict.fromkeys(experts)]
            tasks += self._load(node, blobs, len(experts) * self.plant.model.expert_bytes)
        return tasks

    def _load(self, node: int, blobs: Sequence[str], wanted_bytes: int) -> list[Command]:
        names = self.shelves.missing(node, blobs, wanted_bytes)
        return self._fetch(node, names) if names else [self._read(node, wanted_bytes)]

    def _read(self, node: int, size: int) -> Task:
        """All is on the node's own disk."""
        number = self._number(node)
        return Task(number, self.plant.work("read", size / DISK_BYTES_PER_S, {}), WIRES, notify=True)

    def _fetch(self, node: int, names: Sequence[str]) -> list[Command]:
        """One task for each node that sends chunks."""
        tasks: list[Command] = []
        there = self.plant.nodes[node]
        for source, found in self.shelves.sources(node, names, self.alive).items():
            number, size = self._number(node), round(self.shelves.bytes_of(found))
            self.shelves.sent(number, source, node, found)
            self.sources[number] = source
            path = self.plant.network.path(source, there)
            self.tally.load(path, size, there)
            tasks.append(Task(number, self.plant.transfer(source, there, size, "load"), WIRES, notify=True))
        return tasks

    def _number(self, node: int) -> int:
        number = next(self.numbers)
        self.open[number] = node
        self.tally.tasks += 1
        return number

    def used(self) -> Bools:
        """Copies that take memory now [layers, experts, gpus]: those held, and those of the layer that is being loaded."""
        if self._layer < 0:
            return self.held
        taken = self.held.copy()
        taken[self._layer] |= self.target[self._layer]
        return taken
