"""What the ops of a cluster of processes cost on the computer that runs them, and the simulator's twin of a run.

Ranks on one computer share its cores: an op's measured solo seconds are seconds of the cores that its rank's threads
keep busy. So is what passing on takes, because whoever waits for a core meanwhile computes later: a thread that is woken for
a task; a word of one rank to another that a task has ended, which a put, a barrier, or whatever waits for it pays for; a put, at
both its ends and in the kernel. Puts between hosts also take bytes on their links.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from exec.cluster.job import Order
from exec.cluster.outputs import Outputs
from exec.cluster.split import Split
from sim.costs import PricedPlan
from sim.demands import Demand, Row, curve_at, ratio_at
from sim.engines.run import Run
from sim.ep.costs import EpCosts
from sim.ep.layer import MoELayer
from sim.ep.prices import Kernels, Price
from sim.machines.op_table import OpTable
from sim.machines.parts import Lane, OpRate
from sim.machines.schema import Machine
from sim.models.spec import ModelSpec
from sim.ops import components
from sim.plan import Plan
from sim.tasks import PS_PER_S, Work

RowsByPart = Mapping[tuple[int, int, int], np.ndarray]
"""(step, layer, chunk) -> rows [ranks, experts] that each rank has for each expert."""


GATHERED = "gathered"
"""Variant of `experts` over rows of several ranks: those of each expert are brought together, and taken apart again."""

SPREAD = "spread"
"""Row of the op table: ratio is the standard deviation of the logarithm of what an experts task takes, from run to run."""

HANDED = "handed"
"""Row of the op table: seconds of the cores that a rank's threads take for each task that is handed out while others compute, beyond what
the same takes alone. Each task has a launch, which is charged for it."""

DRAWS = 15
"""Simulated runs with times drawn around what the op table says, of which the median counts."""


def parts_of(model: ModelSpec, work: Work) -> list[tuple[str, float, float]]:
    """(component, rows, units) of one op, as `sim.ops.Component` has them."""
    n, h = work.tokens, model.hidden
    if work.op == "gate":
        return [("rms_norm", n, h), ("router", n, h * model.experts)]
    if work.op == "permute":
        return [("dispatch", n, model.top_k * h)]
    if work.op == "unpermute":
        return [("combine", n, model.top_k * h)]
    if work.op == "experts":
        copied = [("dispatch", n / model.top_k, 2 * model.top_k * h)] if work.variant == GATHERED and n else []
        each = (("expert_ffn", rows, 3 * h * model.ffn) for rows in work.expert_tokens if rows)
        return [*each, ("expert_columns", n, n * model.ffn), *copied]
    if work.op == "o_proj":
        return [("o_proj", n, h * model.attention_out_dim)]
    return [(c.op, c.rows, c.units) for c in components(model, work)]


def size_of(work: Work) -> float:
    """What the ratio of an op is read at: bytes of a put, mean rows of an expert, cache entries of decode, else tokens."""
    if work.op == "put":
        return float(work.bytes)
    if work.op == "experts":
        touched = [rows for rows in work.expert_tokens if rows]
        return sum(touched) / max(1, len(touched))
    return float(work.context if work.op == "attn_decode" else work.tokens)


class HostPrices:
    """Prices one (lane, exact work) by the profile of a computer's ranks. `messages` of a work: words that it waits for, or says."""

    def __init__(self, machine: Machine, model: ModelSpec) -> None:
        self.machine, self.model = machine, model
        self.table = OpTable(machine, model.dtype)
        self._handed = [row for row in machine.ops if row.op == HANDED]

    def price(self, lane: str, work: Work) -> Price:
        """Raises UserError where the profile has no row for it."""
        where = self.machine.lane[lane]
        if work.op == "put":
            return self._put(where, work)
        if work.op == "load":
            return self._passed(where, [(self.table.row(where, work), float(work.bytes), 1.0)])
        if work.op in ("launch", "enter"):
            row = self.table.row(where, work)
            return self._passed(where, [(row, 1.0, 1.0), *((handed, 1.0, 1.0) for handed in self._handed), *self._words(where, work)])
        whole = self.table.row(where, Work(f"task.{work.op}"))
        busy_s = sum(units * curve_at(self.table.row(where, Work(op)).curve, rows) for op, rows, units in parts_of(self.model, work))
        busy_s *= ratio_at(whole.ratio, size_of(work))
        assert where.cores is not None, where
        threads = float(where.threads)
        told_s = sum(n * curve_at(row.curve, size) * ratio_at(row.ratio, size) for row, size, n in self._words(where, work))
        return 0.0, [(where.cores, (whole.latency_s + busy_s) * threads + told_s, threads, threads)]

    def _put(self, lane: Lane, work: Work) -> Price:
        links: list[Demand] = [(name, float(work.bytes), self.machine.resources[name].capacity, 1.0) for name in lane.path]
        latency_s, cores = self._passed(lane, [(self.table.row(lane, work), float(work.bytes), 1.0), *self._words(lane, work)])
        return latency_s + lane.latency_s, [*links, *cores]

    def _words(self, lane: Lane, work: Work) -> list[tuple[OpRate, float, float]]:
        return [(self.table.row(lane, Work("word")), 1.0, float(work.messages))] if work.messages else []

    def _passed(self, lane: Lane, parts: Sequence[tuple[OpRate, float, float]]) -> Price:
        """Latency and demand of what is passed on, one after another: (row, size, how many)."""
        assert lane.cores is not None, lane
        seconds = [count * curve_at(row.curve, size) for row, size, count in parts]
        core_s = sum(s * ratio_at(row.ratio, size) for s, (row, size, _) in zip(seconds, parts, strict=True))
        busy = core_s / sum(seconds)
        return sum(row.latency_s for row, _, _ in parts), [(lane.cores, core_s, busy, busy)]

    def barrier(self, words: int) -> Price:
        """All ranks tell all others, each one after another."""
        ranks = [lane for lane in self.machine.lanes if lane.name.startswith("comm.")]
        demands: dict[str, Demand] = {}
        latency_s = 0.0
        for lane in ranks:
            row = self.table.row(lane, Work("barrier"))
            latency_s, [(cores, core_s, busy, _)] = self._passed(lane, [(row, 1.0, words / len(ranks))])
            _, before_s, others, _ = demands.get(cores, (cores, 0.0, 0.0, 0.0))
            demands[cores] = cores, before_s + core_s, others + busy, others + busy
        return latency_s, list(demands.values())


class ClusterCosts(EpCosts):
    """`EpCosts` by host prices, the rows of each expert being those that the routers of a run chose, task by task."""

    def __init__(self, machine: Machine, order: Order, rows: RowsByPart) -> None:
        model = order.model
        counts = sum(rows.values(), np.zeros((order.ranks, model.experts), np.int64))
        super().__init__(machine, MoELayer.of(model), counts, Kernels({}), chunks=order.chunks)
        self.prices = HostPrices(machine, model)  # type: ignore[assignment]
        self._parts = rows

    def _price(self, lane: str | None, work: Work) -> Row:
        """A barrier ends when the last rank that waits has been told."""
        if work.op != "barrier" or not work.messages:
            return super()._price(lane, work)
        latency_s, demands = self.prices.barrier(work.messages)
        return round(latency_s * PS_PER_S), [(self._index[name], *rest) for name, *rest in demands]

    @cached_property
    def digest(self) -> str:
        h = hashlib.sha256(self.machine.digest.encode())
        for key, counts in sorted(self._parts.items()):
            h.update(repr(key).encode() + counts.tobytes())
        return h.hexdigest()

    def routed(self, plan: Plan) -> Plan:
        """The Plan with the rows and bytes of the run, and with the words between ranks that each task waits for."""
        table: dict[Work, int] = {}
        column = np.empty_like(plan.work)
        for i, words in enumerate(words_of(Split(plan))):
            work = plan.works[plan.work[i]]
            if self._is_bound(work):
                part = self._parts[max(0, int(plan.step[i])), int(plan.layer[i]), int(plan.microbatch[i])]
                work = self._exact(work, int(plan.rank[i]), int(plan.page[i]), part)
            column[i] = table.setdefault(work._replace(messages=words) if words else work, len(table))
        return replace(plan, works=tuple(table), work=column)

    def _exact(self, work: Work, rank: int, page: int, part: np.ndarray) -> Work:
        here = self.experts_of(rank)
        if work.op == "experts":
            rows = part[:, here].sum(axis=0) if page < 0 else part[page, here]
            variant = GATHERED if page < 0 else ""
            return work._replace(tokens=int(rows.sum()), expert_tokens=tuple(sorted(rows.tolist(), reverse=True)), variant=variant)
        sent = part[rank, self.experts_of(page)] if work.variant == "dispatch" else part[page, here]
        return work._replace(tokens=int(sent.sum()), bytes=int(sent.sum() + 1) * self.layer.row_bytes)


def words_of(split: Split) -> list[int]:
    """By task, the messages that tell its rank, or of a join all ranks, what they wait for [n]. What two tasks of one rank wait
    for is told once."""
    told: set[tuple[int, int]] = set()
    found = []
    for rank, deps, parts, ranks in zip(split.start, split.deps, split.parts, split.told, strict=True):
        if rank < 0:
            found.append(sum(len(ranks - {r}) for r in parts))
            continue
        new = {(rank, d) for d in deps.tolist() if split.end[d] not in (-1, rank)} - told
        told |= new
        found.append(len(new))
    return found


def rows_of(outputs: Mapping[int, Outputs]) -> RowsByPart:
    """What the routers of a run chose."""
    ranks = len(outputs)
    found: dict[tuple[int, int, int], np.ndarray] = {}
    for rank, out in outputs.items():
        for layer, step, chunk, counts in out.counts:
            key = max(0, step), layer, chunk
            if key not in found:
                found[key] = np.zeros((ranks, len(counts)), np.int64)
            found[key][rank] = counts
    return found


def simulate(machine: Machine, order: Order, plan: Plan, outputs: Mapping[int, Outputs], draws: int = DRAWS) -> Run:
    """The same Plan on the simulated clock, the experts' rows being those of a run.

    Whoever waits for several ranks waits for the slowest, and none takes always as long: with `draws`, each
    experts task's time is drawn so many times (log-normal, by the profile's spread), and the run of median
    length is returned; with 0, the run without any spread. Raises UserError for a profile without what it needs.
    """
    from sim.engines.compiled import run_compiled  # numba

    priced = ClusterCosts(machine, order, rows_of(outputs)).bind(plan)
    spread = next((row.ratio[0][1] for row in machine.ops if row.op == SPREAD), 0.0)
    if not draws or not spread:
        return run_compiled(priced, machine.lanes, machine.pools)
    runs = [run_compiled(_drawn(priced, spread, k), machine.lanes, machine.pools) for k in range(draws)]
    return sorted(runs, key=lambda run: run.makespan_ps)[draws // 2]


def _drawn(priced: PricedPlan, spread: float, draw: int) -> PricedPlan:
    """The priced Plan with the amounts of each experts task multiplied by a factor of its own."""
    plan, prices = priced.plan, priced.prices
    at = np.flatnonzero(np.array([work.op == "experts" for work in plan.works])[plan.work])
    factors = np.exp(np.random.default_rng((draw, 0)).normal(0.0, spread, len(at)))
    cls, ptr, pieces = priced.cls.copy(), prices.ptr.tolist(), []
    for i, factor in zip(at.tolist(), factors.tolist(), strict=True):
        mine = slice(prices.ptr[cls[i]], prices.ptr[cls[i] + 1])
        pieces.append((prices.resource[mine], prices.amount[mine] * factor, prices.cap[mine], prices.weight[mine]))
        ptr.append(ptr[-1] + mine.stop - mine.start)
    latency = np.concatenate([prices.latency_ps, prices.latency_ps[cls[at]]])
    cls[at] = len(prices.latency_ps) + np.arange(len(at), dtype=np.int32)
    columns = zip((prices.resource, prices.amount, prices.cap, prices.weight), zip(*pieces, strict=True), strict=True)
    resource, amount, cap, weight = (np.concatenate([old, *new]) for old, new in columns)
    drawn = replace(
        prices, latency_ps=latency, ptr=np.array(ptr, np.int32), resource=resource, amount=amount, cap=cap, weight=weight
    )
    return replace(priced, cls=cls, prices=drawn)
