"""Loading copies of experts where a new placement wants them, layer by layer, over the links that traffic uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sim.swarm.jobs import Tally
from sim.swarm.mail import WIRES
from sim.swarm.plant import Plant
from sim.tasks import Cancel, Command, Task

Bools = NDArray[np.bool_]


@dataclass(eq=False)
class Migration:
    """From what is held to `target` [layers, experts, gpus]. One layer at a time is loaded into the room kept free, switched,
    and its old copies are dropped; layers that lack an expert come first. store: the node that keeps checkpoints, from
    which an expert comes that nobody alive holds."""

    plant: Plant
    held: Bools
    target: Bools
    numbers: Iterator[int]
    tally: Tally
    alive: frozenset[int]
    store: str
    dense_to: int | None = None
    """A home that needs the dense weights first, from the store."""
    moved: int = 0
    open: set[int] = field(default_factory=set)

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
            return [self._load(self.store, self.plant.nodes[self.dense_to], self.plant.model.dense_bytes)]
        return self._next()

    def ended(self, task: int) -> list[Command]:
        """A transfer is there."""
        self.open.discard(task)
        self.loading_dense = False
        return [] if self.open else self._next()

    def cancel(self) -> list[Command]:
        """Give it up: layers that were switched stay so."""
        gone = [Cancel(n, "migration given up") for n in sorted(self.open)]
        self.open.clear()
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
        """One task for each pair of nodes: all experts of the layer that the one sends the other."""
        plant = self.plant
        sizes: dict[tuple[str, str], int] = {}
        for expert, gpu in np.argwhere(self.target[layer] & ~self.held[layer]).tolist():
            there = plant.nodes[plant.node_of[gpu]]
            source = self._source(layer, expert, there)
            sizes[source, there] = sizes.get((source, there), 0) + plant.model.expert_bytes
            self.moved += 1
        return [self._load(a, b, size) for (a, b), size in sorted(sizes.items())]

    def _source(self, layer: int, expert: int, there: str) -> str:
        """The nearest node alive that holds it, else the store."""
        holders = {int(n) for n in self.plant.node_of[np.flatnonzero(self.held[layer, expert])]} & self.alive
        names = [self.plant.nodes[n] for n in sorted(holders)]
        return min(names, key=lambda name: (self.plant.network.path(name, there).latency_s, name)) if names else self.store

    def _load(self, a: str, b: str, size: int) -> Task:
        number = next(self.numbers)
        self.open.add(number)
        self.tally.tasks += 1
        path = self.plant.network.path(a, b)
        wire = size * (path.resources[0][1] if path.resources else 0.0)
        self.tally.carried(path.link_class, wire, size * path.usd_per_byte)
        return Task(number, self.plant.transfer(a, b, size, "load"), WIRES, notify=True)

    def used(self) -> Bools:
        """Copies that take memory now [layers, experts, gpus]: those held, and those of the layer that is being loaded."""
        if self._layer < 0:
            return self.held
        taken = self.held.copy()
        taken[self._layer] |= self.target[self._layer]
        return taken
