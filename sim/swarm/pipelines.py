"""Serving a placement of layers on nodes: micro-batches that each walk a chain of nodes of their own.

Helix's per-request pipelines (ASPLOS'25, section 5) and SWARM's and Petals' routing, as one scheduler with a router: in a closed
loop so many micro-batches are under way, and one that ends makes room for the next. A node takes for a micro-batch the
time that its whole span takes, as its rate has it, wherever in the span the batch came in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

import numpy as np

from sim.drive import drive
from sim.engines.simpy_engine import SimPyEngine
from sim.events import Event, Failed, Finished, Started
from sim.placement.spans import Flow, SpanProblem, Spans, hops
from sim.placement.swarm import Wiring
from sim.swarm.costs import NamedCosts, Queue
from sim.tasks import PS_PER_S, Command, Task, Time, Work

HOME = -1
"""The coordinator, as in `sim.placement.spans`."""


class Router(Protocol):
    """Chooses the node that a micro-batch goes to next, and hears how long a node took."""

    def choose(self, at: int, options: Sequence[int]) -> int: ...
    def took(self, node: int, seconds: float) -> None: ...


class FlowRouter:
    """Interleaved weighted round robin by the edges of a max-flow (Helix, section 5.1): each next hop in proportion to its flow."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow.edges
        self._credit: dict[tuple[int, int], float] = {}

    def choose(self, at: int, options: Sequence[int]) -> int:
        """Smooth weighted round robin: every option earns its weight, the richest is chosen and pays the sum."""
        weights = {j: self._flow.get((at, j), 0.0) for j in options}
        total = sum(weights.values())
        if total == 0:  # only what the flow does not use leads on from here
            weights, total = dict.fromkeys(options, 1.0), float(len(options))
        for j, weight in weights.items():
            self._credit[at, j] = self._credit.get((at, j), 0.0) + weight
        best = max((j for j in options if weights[j]), key=lambda j: (self._credit[at, j], -j))
        self._credit[at, best] -= total
        return best

    def took(self, node: int, seconds: float) -> None:
        """Weights are fixed."""


class SpanRouter:
    """Petals' choice for throughput: at random, by the length of what the server holds of the rest of the chain."""

    def __init__(self, problem: SpanProblem, spans: Spans) -> None:
        self._rng = np.random.default_rng(problem.seed)
        self._spans = spans

    def choose(self, at: int, options: Sequence[int]) -> int:
        here = self._end(at)
        lengths = np.array([self._end(j) - here if j != HOME else 1 for j in options], np.float64)
        return options[int(self._rng.choice(len(options), p=lengths / lengths.sum()))]

    def _end(self, node: int) -> int:
        span = self._spans[node] if node != HOME else None
        return span[1] if span is not None else 0

    def took(self, node: int, seconds: float) -> None:
        """Lengths do not depend on it."""


class SwarmRouter:
    """SWARM's stochastic wiring, one heap for each set of peers that can follow."""

    def __init__(self, problem: SpanProblem, spans: Spans) -> None:
        self._expected = [1.0 / n.rate(s[1] - s[0]) if s else inf for n, s in zip(problem.nodes, spans, strict=True)]
        self._wirings: dict[tuple[int, ...], Wiring] = {}

    def choose(self, at: int, options: Sequence[int]) -> int:
        key = tuple(options)
        if key == (HOME,):
            return HOME
        if key not in self._wirings:
            self._wirings[key] = Wiring([self._expected[j] for j in key])
        return key[self._wirings[key].choose()]

    def took(self, node: int, seconds: float) -> None:
        for key, wiring in self._wirings.items():
            if node in key:
                wiring.took(key.index(node), seconds)


class Pipelines:
    """Scheduler: `batches` micro-batches of `tokens` each, `in_flight` of them under way."""

    def __init__(self, problem: SpanProblem, spans: Spans, router: Router, batches: int, tokens: int, in_flight: int) -> None:
        self.router = router
        self.tokens = tokens
        self.done = 0
        self._next: dict[int, list[int]] = {}
        for i, j in sorted(hops(problem, spans)):
            self._next.setdefault(i, []).append(j)
        self._batches, self._in_flight, self._begun, self._number = batches, in_flight, 0, 0
        self._at: dict[int, tuple[int, int, Time]] = {}
        """Task -> (micro-batch, node it goes to or runs on, when it was handed out)."""

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        if isinstance(event, Started):
            return [task for _ in range(min(self._in_flight, self._batches)) for task in self._begin(now)]
        if isinstance(event, Failed):
            raise AssertionError(f"task {event.task} failed: {event.reason}")
        assert isinstance(event, Finished), event
        batch, node, since = self._at.pop(event.task)
        if node == HOME:
            self.done += 1
            return self._begin(now)
        self.router.took(node, (now - since) / PS_PER_S)
        return self._forward(now, batch, node)

    def _begin(self, now: Time) -> list[Task]:
        if self._begun == self._batches:
            return []
        self._begun += 1
        return self._forward(now, self._begun - 1, HOME)

    def _forward(self, now: Time, batch: int, at: int) -> list[Task]:
        """The hop to the next node, and what that does."""
        to = self.router.choose(at, self._next[at])
        hop = self._task(Work("hop", tokens=self.tokens, variant=f"{at} {to}"), "wires", (), batch, notify=to == HOME)
        self._at[hop.number] = (batch, to, now)
        if to == HOME:
            return [hop]
        del self._at[hop.number]
        stage = self._task(Work("stage", tokens=self.tokens), f"node.{to}", (hop.number,), batch, notify=True)
        self._at[stage.number] = (batch, to, now)
        return [hop, stage]

    def _task(self, work: Work, lane: str, deps: tuple[int, ...], batch: int, notify: bool) -> Task:
        self._number += 1
        return Task(self._number - 1, work, lane, deps, notify=notify, requests=(batch,))


@dataclass(frozen=True, slots=True)
class Served:
    """tokens_per_s over the whole run, start and end included: a lower bound of the steady state, never above the flow."""

    tokens_per_s: float
    seconds: float
    tokens: int


def serve(
    problem: SpanProblem, spans: Spans, router: Router, batches: int = 2000, tokens: int = 32, in_flight: int | None = None
) -> Served:
    """Simulate a closed loop; by default four micro-batches a node are under way."""
    scheduler = Pipelines(problem, spans, router, batches, tokens, in_flight or 4 * len(problem.nodes))
    costs = _costs(problem, spans)
    lanes = [Queue("wires", servers=1 << 16)] + [Queue(f"node.{i}") for i, s in enumerate(spans) if s is not None]
    engine = SimPyEngine(lanes, {}, costs, profile=costs)
    drive(scheduler, engine)
    assert scheduler.done == batches, f"{scheduler.done} of {batches} micro-batches came home"
    seconds = engine.now / PS_PER_S
    return Served(batches * tokens / seconds, seconds, batches * tokens)


def _costs(problem: SpanProblem, spans: Spans) -> NamedCosts:
    """Nodes and links in tokens a second."""
    rates = {f"node.{i}": problem.nodes[i].rate(s[1] - s[0]) for i, s in enumerate(spans) if s is not None}
    links = {f"link.{i} {j}": float(problem.link[i, j]) for i, j in hops(problem, spans)}

    def price(lane: str | None, work: Work) -> tuple[float, list[tuple[str, float, float, float]]]:
        if work.op == "stage":
            return 0.0, [(str(lane), float(work.tokens), inf, 1.0)]
        i, j = (int(x) for x in work.variant.split())
        return float(problem.latency_s[i, j]), [(f"link.{i} {j}", float(work.tokens), inf, 1.0)]

    return NamedCosts({**rates, **links}, price, f"{problem.layers} {spans}", ("hop", "stage"))
