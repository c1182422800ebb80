"""Helix's placement: the spans whose max-flow is largest, found by mixed-integer programming (HiGHS).

Source: Helix (ASPLOS'25, arXiv 2406.01566), section 4.4. Helix has a binary for each node and size and one for each pair
of nodes. Here nodes that are alike (same rates, same links) are counted instead: x[c, s, k] is how many nodes of class c
hold layers s to s + k, so that a permutation of equal nodes is one solution and not many. Flow runs over layer boundaries,
from class to class, bounded by nodes and links; entering a span in its middle (partial inference) is left to the
final max-flow over the real nodes, which can only be more.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from sim.errors import UserError
from sim.placement.petals import Petals
from sim.placement.policy import Tell, silent
from sim.placement.polish import polish
from sim.placement.spans import Span, SpanProblem, Spans, WholeLayers, max_flow
from sim.placement.swarm import Swarm


@dataclass(frozen=True)
class MaxFlow(WholeLayers):
    """`time_limit_s`: of the search; `gap`: it may stop when its bound is this share above what it has; `sizes`: how many
    span lengths of a node are tried, the longest first (Helix prunes its problem likewise); `polish_steps`: moves of the
    local search behind it."""

    time_limit_s: float = 60.0
    gap: float = 0.01
    sizes: int = 3
    polish_steps: int = 3000

    def __post_init__(self) -> None:
        if not self.time_limit_s > 0:
            raise UserError(f"time-limit-s: is {self.time_limit_s:g}; a number of seconds above 0 is needed")

    def spans(self, problem: SpanProblem, tell: Tell = silent) -> Spans:
        """The best by true max-flow of the program's answer and of the heuristics that Helix starts from, each polished."""
        found = Program(problem, self.sizes).solve(self.time_limit_s, self.gap, tell)
        starts = [Petals().spans(problem), Swarm().spans(problem), *([found] if found else [])]
        ends = [polish(problem, spans, self.polish_steps, tell) for spans in starts]
        return max(ends, key=lambda spans: max_flow(problem, spans).value)


def classes(problem: SpanProblem) -> list[list[int]]:
    """Nodes in groups of interchangeable ones: equal rates, and equal links to and from everybody else."""
    out: list[list[int]] = []
    for i in range(len(problem.nodes)):
        for group in out:
            if _alike(problem, group[0], i):
                group.append(i)
                break
        else:
            out.append([i])
    return out


def _alike(problem: SpanProblem, i: int, j: int) -> bool:
    if problem.nodes[i].rates != problem.nodes[j].rates:
        return False
    rest = [k for k in range(len(problem.nodes) + 1) if k not in (i, j)]
    link = problem.link
    alike = np.array_equal(link[i, rest], link[j, rest]) and np.array_equal(link[rest, i], link[rest, j])
    return alike and bool(link[i, j] == link[j, i])


class _Rows:
    """Constraints low <= a x <= high, collected entry by entry."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, int, float]] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def add(self, terms: list[tuple[int, float]], low: float = -np.inf, high: float = 0.0) -> None:
        row = len(self.low)
        self.entries += [(row, column, value) for column, value in terms]
        self.low.append(low)
        self.high.append(high)


class Program:
    """The mixed-integer program of one problem. Columns: x[c, s, k], g[c, s, k] (its flow), f[a, b, p] (flow from class a to
    class b at layer boundary p)."""

    def __init__(self, problem: SpanProblem, sizes: int) -> None:
        self.problem = problem
        self.groups = [g for g in classes(problem) if problem.nodes[g[0]].most]
        self.spots = list(self._spots(sizes))
        self.hops = self._hops()
        self._first_f = 2 * len(self.spots)

    def _spots(self, sizes: int) -> Iterator[tuple[int, int, int]]:
        """(class, first layer, size). Rests at the end of the model allow any smaller size."""
        layers = self.problem.layers
        for c, group in enumerate(self.groups):
            most = min(layers, self.problem.nodes[group[0]].most)
            for k in range(max(1, most - sizes + 1), most + 1):
                yield from ((c, s, k) for s in range(layers - k + 1))

    def _hops(self) -> list[tuple[int, int, int]]:
        ends = {(c, s + k) for c, s, k in self.spots}
        starts = {(c, s) for c, s, _ in self.spots}
        inner = range(1, self.problem.layers)
        return [(a, b, p) for p in inner for a, b in product(range(len(self.groups)), repeat=2) if (a, p) in ends and (b, p) in starts]

    @property
    def columns(self) -> int:
        return 2 * len(self.spots) + len(self.hops)

    def solve(self, time_limit_s: float, gap: float, tell: Tell = silent) -> Spans | None:
        """The best spans found; None where the time was too short for any."""
        from scipy import optimize, sparse

        rows = self._rows()
        at = np.array([(r, c) for r, c, _ in rows.entries]).T
        matrix = sparse.csr_array(([v for _, _, v in rows.entries], (at[0], at[1])), shape=(len(rows.low), self.columns))
        cost = np.zeros(self.columns)
        cost[[self._g(i) for i, (_, s, _) in enumerate(self.spots) if s == 0]] = -1.0
        upper = np.full(self.columns, np.inf)
        upper[: len(self.spots)] = [len(self.groups[c]) for c, _, _ in self.spots]
        whole = np.zeros(self.columns)
        whole[: len(self.spots)] = 1
        tell(f"max-flow: {len(self.spots)} spans of {len(self.groups)} classes, {len(rows.low)} constraints, at most {time_limit_s:g} s")
        limits = optimize.LinearConstraint(matrix, rows.low, rows.high)
        options = {"time_limit": time_limit_s, "mip_rel_gap": gap}
        found = _told(
            lambda: optimize.milp(cost, integrality=whole, bounds=optimize.Bounds(0, upper), constraints=limits, options=options),
            time_limit_s, tell,
        )  # fmt: skip
        if found.x is None:
            tell(f"max-flow: nothing found in {time_limit_s:g} s ({found.message})")
            return None
        bound = -found.mip_dual_bound if found.mip_dual_bound is not None else np.inf
        tell(f"max-flow: {-found.fun:.4g} tokens/s, at most {bound:.4g} by whole spans")
        return self._spans(found.x)

    def _g(self, spot: int) -> int:
        return len(self.spots) + spot

    def _rows(self) -> _Rows:
        rows = _Rows()
        problem = self.problem
        for c, group in enumerate(self.groups):
            rows.add([(i, 1.0) for i, spot in enumerate(self.spots) if spot[0] == c], high=len(group))
        coordinator = len(problem.nodes)
        into: dict[tuple[int, int], list[int]] = {}
        out_of: dict[tuple[int, int], list[int]] = {}
        for i, (c, s, k) in enumerate(self.spots):
            node = self.groups[c][0]
            limit = problem.nodes[node].rate(k)
            limit = min(limit, problem.link[coordinator, node]) if s == 0 else limit
            limit = min(limit, problem.link[node, coordinator]) if s + k == problem.layers else limit
            rows.add([(self._g(i), 1.0), (i, -limit)])
            into.setdefault((c, s), []).append(i)
            out_of.setdefault((c, s + k), []).append(i)
        self._conserve(rows, into, out_of)
        return rows

    def _conserve(self, rows: _Rows, into: dict[tuple[int, int], list[int]], out_of: dict[tuple[int, int], list[int]]) -> None:
        """What leaves a class at a boundary goes over hops, what comes over hops enters a class there; hops keep to their links."""
        leaving: dict[tuple[int, int], list[int]] = {}
        coming: dict[tuple[int, int], list[int]] = {}
        for h, (a, b, p) in enumerate(self.hops):
            leaving.setdefault((a, p), []).append(self._first_f + h)
            coming.setdefault((b, p), []).append(self._first_f + h)
        for spots, hops in ((out_of, leaving), (into, coming)):
            for key, members in spots.items():
                if 0 < key[1] < self.problem.layers:
                    terms = [(self._g(i), 1.0) for i in members] + [(h, -1.0) for h in hops.get(key, ())]
                    rows.add(terms, low=0.0)
        for h, (a, b, p) in enumerate(self.hops):
            link = self._link(a, b)
            for members, others in ((out_of[a, p], len(self.groups[b])), (into[b, p], len(self.groups[a]))):
                rows.add([(self._first_f + h, 1.0)] + [(i, -link * others) for i in members])

    def _link(self, a: int, b: int) -> float:
        first, second = self.groups[a], self.groups[b]
        i, j = first[0], second[0] if a != b else first[-1]
        return float(self.problem.link[i, j])

    def _spans(self, x: Any) -> Spans:
        """Nodes of each class get its spans, in order; nodes without one stay unused."""
        out: list[Span | None] = [None] * len(self.problem.nodes)
        free = [list(group) for group in self.groups]
        for (c, s, k), count in zip(self.spots, np.rint(x[: len(self.spots)]).astype(int).tolist(), strict=True):
            for _ in range(count):
                out[free[c].pop(0)] = (s, s + k)
        return tuple(out)


@contextmanager
def _solver_on_stderr() -> Iterator[None]:
    """HiGHS prints remarks to the process's stdout whatever it is told; what is piped there must stay one JSON object."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _told(work: Callable[[], Any], limit_s: float, tell: Tell) -> Any:
    """Run `work` in a thread and tell every ten seconds how far its time is; its exception is raised here."""
    found: list[Any] = []

    def run() -> None:
        try:
            with _solver_on_stderr():
                found.append(work())
        except BaseException as e:
            found.append(e)

    began = time.monotonic()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(10.0)
        if thread.is_alive():
            tell(f"max-flow: {time.monotonic() - began:.0f} of {limit_s:g} s")
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]

