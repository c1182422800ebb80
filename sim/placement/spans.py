"""Layers on nodes: the placement of whole layers, each node a contiguous span, and the flow that a placement lets through.

Another problem than experts on GPUs (`sim.placement.problem`): a token visits every layer once, whatever its
experts, so what counts is the chain of nodes and not the balance inside a layer. Source: Helix (ASPLOS'25,
arXiv 2406.01566), sections 4.1 to 4.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from sim.errors import UserError
from sim.placement.placement import Placement
from sim.placement.policy import Tell, silent
from sim.placement.problem import Floats, Problem

Span = tuple[int, int]
"""First layer and the one behind the last."""

GRAIN = 1000
"""Flow is counted in thousandths of a token a second: whole numbers keep max-flow exact."""


@dataclass(frozen=True, slots=True)
class SpanNode:
    """`rates[k - 1]`: tokens a second through k layers when it holds k; as many entries as layers fit."""

    name: str
    rates: tuple[float, ...]

    @property
    def most(self) -> int:
        return len(self.rates)

    def rate(self, layers: int) -> float:
        return self.rates[layers - 1]


@dataclass(frozen=True, eq=False)
class SpanProblem:
    """nodes [n]; link [n + 1, n + 1] tokens a second from node to node, the last row and column those of the coordinator;
    latency_s [n + 1, n + 1] one way."""

    layers: int
    nodes: tuple[SpanNode, ...]
    link: Floats
    latency_s: Floats
    seed: int = 0

    def __post_init__(self) -> None:
        n = len(self.nodes) + 1
        assert self.link.shape == self.latency_s.shape == (n, n), f"{self.link.shape}, {self.latency_s.shape}: must be {(n, n)}"
        room = sum(node.most for node in self.nodes)
        if room < self.layers:
            raise UserError(f"nodes: hold {room} layers together; the model has {self.layers}")

    def compute_bound(self) -> float:
        """Tokens a second that no placement exceeds: all layer visits of all nodes at their best, over the layers of a token."""
        return sum(max((k + 1) * rate for k, rate in enumerate(node.rates)) for node in self.nodes if node.most) / self.layers


Spans = tuple[Span | None, ...]
"""The span of each node; None: the node is not used."""


class SpanPolicy(Protocol):
    def spans(self, problem: SpanProblem, tell: Tell = silent) -> Spans: ...


@dataclass(frozen=True, slots=True)
class Flow:
    """value: tokens a second. edges: (from, to) -> tokens a second; -1 is the coordinator on both sides."""

    value: float
    edges: dict[tuple[int, int], float] = field(default_factory=dict)


def check(problem: SpanProblem, spans: Spans) -> Spans:
    """Itself; asserts that spans lie in the model, fit on their nodes and cover every layer."""
    assert len(spans) == len(problem.nodes), f"{len(spans)} spans for {len(problem.nodes)} nodes"
    for node, span in zip(problem.nodes, spans, strict=True):
        if span is not None:
            assert 0 <= span[0] < span[1] <= problem.layers, f"{node.name}: span {span} of {problem.layers} layers"
            assert span[1] - span[0] <= node.most, f"{node.name}: span {span}, {node.most} layers fit"
    bare = np.flatnonzero(covered(problem, spans) == 0)
    assert not len(bare), f"layer {bare[0]}: on no node"
    return spans


def covered(problem: SpanProblem, spans: Spans) -> NDArray[np.int64]:
    """Nodes that hold each layer [layers]."""
    out = np.zeros(problem.layers, np.int64)
    for span in spans:
        if span is not None:
            out[span[0] : span[1]] += 1
    return out


def layer_rates(problem: SpanProblem, spans: Spans) -> Floats:
    """Summed rate of the nodes that hold each layer [layers]."""
    out = np.zeros(problem.layers)
    for node, span in zip(problem.nodes, spans, strict=True):
        if span is not None:
            out[span[0] : span[1]] += node.rate(span[1] - span[0])
    return out


def hops(problem: SpanProblem, spans: Spans) -> list[tuple[int, int]]:
    """Pairs of nodes that may follow each other: the next goes on inside its span where the one before ended (Helix's
    partial inference); -1 is the coordinator."""
    used = [(i, s) for i, s in enumerate(spans) if s is not None]
    pairs = [(-1, i) for i, s in used if s[0] == 0] + [(i, -1) for i, s in used if s[1] == problem.layers]
    return pairs + [(i, j) for i, a in used for j, b in used if b[0] <= a[1] < b[1]]


def max_flow(problem: SpanProblem, spans: Spans) -> Flow:
    """Most tokens a second that the placement lets through: each node passes what it can do on its whole span, each link
    what it carries (Helix, section 4.2)."""
    n = len(spans)
    graph = nx.DiGraph()  # node i is entered at i and left at i + n; numbers, as sets of names have another order in each process
    source, sink = 2 * n, 2 * n + 1
    graph.add_nodes_from((source, sink))
    for i, span in enumerate(spans):
        if span is not None:
            graph.add_edge(i, i + n, capacity=_grains(problem.nodes[i].rate(span[1] - span[0])))
    for i, j in hops(problem, spans):
        graph.add_edge(source if i < 0 else i + n, sink if j < 0 else j, capacity=_grains(problem.link[i, j]))
    value, found = nx.maximum_flow(graph, source, sink)
    edges = {
        (-1 if a == source else a - n, -1 if b == sink else b): amount / GRAIN
        for a, row in found.items() for b, amount in row.items() if amount and a >= n
    }  # fmt: skip
    return Flow(value / GRAIN, edges)


def _grains(rate: float) -> int:
    return int(rate * GRAIN)


def end_to_end(problem: SpanProblem) -> Spans:
    """Spans one behind the other in the order of the nodes, round and round: covers every layer whenever all fit."""
    out: list[Span | None] = []
    at = 0
    for node in problem.nodes:
        size = min(node.most, problem.layers - at)
        out.append((at, at + size) if size else None)
        at = (at + size) % problem.layers
    return tuple(out)


class WholeLayers:
    """Lets a span policy answer the expert problem: a node's GPUs share the experts of the layers that the node holds."""

    whole_layers: ClassVar[bool] = True

    def spans(self, problem: SpanProblem, tell: Tell = silent) -> Spans:
        raise NotImplementedError

    def place(self, problem: Problem, tell: Tell = silent) -> Placement:
        """Nodes of the problem's GPUs take whole layers. Raises UserError where their memory does not hold every layer so."""
        asked = of_experts(problem)
        return to_experts(problem, check(asked, self.spans(asked, tell)))


def of_experts(problem: Problem) -> SpanProblem:
    """The nodes of an expert problem: rates as the speed of their GPUs over the layers held. Links do not bind."""
    gpus = problem.gpus
    nodes = []
    for n in range(gpus.nodes):
        mine = gpus.node == n
        most = min(problem.layers, int(problem.budget[mine].sum()) // problem.experts)
        speed = float(gpus.speed[mine].sum())
        nodes.append(SpanNode(f"node{n}", tuple(speed / (k + 1) for k in range(most))))
    wide = np.full((gpus.nodes + 1, gpus.nodes + 1), float(gpus.speed.sum()))
    return SpanProblem(problem.layers, tuple(nodes), wide, np.zeros_like(wide), problem.seed)


def to_experts(problem: Problem, spans: Spans) -> Placement:
    """All experts of a node's layers on its GPUs, contiguous blocks by what each still holds."""
    gpus = problem.gpus
    held = np.zeros((problem.layers, problem.experts, len(gpus)), np.bool_)
    room = problem.budget.copy()
    for n, span in enumerate(spans):
        mine = np.flatnonzero(gpus.node == n)
        for layer in range(*span) if span is not None else ():
            first = 0
            for g, count in zip(mine, _shares(problem.experts, room[mine]), strict=True):
                held[layer, first : first + count, g] = True
                first += count
                room[g] -= count
    return Placement(held)


def _shares(total: int, room: NDArray[np.int64]) -> Sequence[int]:
    """`total` units by room left, never more than it."""
    from sim.placement.problem import apportion

    found = np.minimum(apportion(total, room.astype(np.float64)), room)
    for g in np.argsort(-(room - found), kind="stable"):
        found[g] += min(room[g] - found[g], total - int(found.sum()))
    return [int(v) for v in found]
