"""A serving group: sequences that live on one node, its experts wherever the placement has them, iteration-level batching.

Each step every sequence gets one token; prompts that come in are prefilled in the next step (Orca, OSDI'22). A step is a few
tasks: stretches of layers that stay in the home's region, and one visit for each (layer, other region). Steps that stay
at home and change nothing about the batch go together as one task; a newcomer cuts it short at the end of the running step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sim.plan import Plan, PlanBuilder
from sim.swarm.choice import View, lp_shares
from sim.swarm.plant import Plant, serve_lane
from sim.swarm.routes import Counts, Routes
from sim.tasks import Cancel, Command, Task, Time, Work

MOST_BATCH = 1024
"""Sequences of a group at once, where their KV entries fit (guessed)."""
PREFILL_TOKENS = 8192
"""Prompt tokens taken into one step (a common chunk size); one prompt goes in whatever its length."""
PREFILL_FAR = 8
"""Times as many where steps cross regions: they take seconds anyway, and a queue would never end."""
STRETCH = 64
"""Steps that go together at most."""
OWNERS_EVERY_S = 1.0
"""How often lots are drawn again among copies."""

Choose = Callable[[View], NDArray[np.int64]]


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way. produced: tokens that it has; resident: tokens in the KV cache, 0 where it must be prefilled."""

    number: int
    origin: str
    arrival: Time
    prompt: int
    output: int
    produced: int = 0
    resident: int = 0
    first: Time = -1
    answered: Time = -1
    group: str = ""
    moves: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt + self.produced

    @property
    def done(self) -> bool:
        return self.produced >= self.output


@dataclass(eq=False, slots=True)
class Step:
    """What runs: numbers of its tasks, the last one, and how many steps it stands for. left: part of one step that a cut one still
    needs; floor_s: round trips that it cannot do without."""

    numbers: range
    steps: int
    jobs: tuple[Job, ...]
    seconds: float
    floor_s: float = 0.0
    cut: bool = False

    @property
    def last(self) -> int:
        return self.numbers[-1]


@dataclass(eq=False, slots=True)
class Tally:
    """What was simulated and what it took. wire_bytes: by link class; busy_s [nodes]."""

    steps: int = 0
    tasks: int = 0
    tokens: int = 0
    floor_token_s: float = 0.0
    token_s: float = 0.0
    visits: int = 0
    wire_bytes: dict[str, float] = field(default_factory=dict)
    egress_usd: float = 0.0
    busy_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def carried(self, link_class: str, size: float, usd: float = 0.0) -> None:
        self.wire_bytes[link_class] = self.wire_bytes.get(link_class, 0.0) + size
        self.egress_usd += usd


class Group:
    """One group.

    held [layers, experts, gpus] bool: live copies that it may use, over all GPUs of the plant. ready: every expert has one.
    """

    def __init__(
        self, name: str, plant: Plant, routes: Routes, home: int, held: NDArray[np.bool_], choose: Choose, numbers: Iterator[int],
        tally: Tally, seed: int = 0,
    ) -> None:  # fmt: skip
        self.name, self.plant, self.routes, self.home, self.choose = name, plant, routes, home, choose
        self.numbers, self.tally, self.seed = numbers, tally, seed
        self.waiting: deque[Job] = deque()
        self.active: list[Job] = []
        self.running: Step | None = None
        self.busy = np.zeros(len(plant.node_of))
        self.observed = np.zeros((plant.model.moe_layers, plant.model.experts))
        self.up = True
        self._crosses = False
        self.move(home, held)

    def move(self, home: int, held: NDArray[np.bool_]) -> None:
        """Another home or other copies; takes effect with the next step."""
        self.home, self.held = home, held
        self.ready = bool(held.any(axis=2).all())
        self._owner_until: Time = -1
        self._shares: NDArray[np.float64] | None = None
        here = self.plant.nodes[home]
        self.rtt_s = np.array([self.plant.network.rtt_s(here, n) for n in self.plant.nodes])

    # Load ---------------------------------------------------------------------------------------

    @property
    def backlog_tokens(self) -> int:
        """What is still to be done, in tokens: prompts that wait and outputs that are open."""
        open_ = sum(j.output - j.produced for j in self.active)
        return open_ + sum(j.tokens - j.resident + j.output - j.produced for j in self.waiting)

    def nodes_used(self) -> set[int]:
        return {self.home, *self.plant.node_of[np.flatnonzero(self.held.any(axis=(0, 1)))].tolist()}

    # Stepping -----------------------------------------------------------------------------------

    def add(self, now: Time, jobs: Iterable[Job]) -> list[Command]:
        """Newcomers. A long stretch is cut, so that they come in after the running step."""
        new = list(jobs)
        for job in new:
            job.group = self.name
        self.waiting.extend(new)
        if self.running is None:
            return self.start(now)
        if new and self.running.steps > 1 and not self.running.cut and self._room():
            self.running.cut = True
            return [Cancel(self.running.last, "newcomers")]
        return []

    def _room(self) -> bool:
        first = self.waiting[0]
        fits = self._kv_used() + first.prompt + first.output <= self.plant.kv_tokens(self.home)
        return fits and len(self.active) < MOST_BATCH

    def _kv_used(self) -> int:
        return sum(j.prompt + j.output for j in self.active)

    def start(self, now: Time) -> list[Command]:
        """The next step, if there is something to do and every expert is somewhere."""
        if self.running is not None or not (self.up and self.ready):
            return []
        prompts = self._admit()
        if not self.active:
            return []
        steps = 1 if prompts else min(min(j.output - j.produced for j in self.active), STRETCH)
        counts = self._counts(now, steps)
        return self._emit(counts, steps)

    def _admit(self) -> list[Job]:
        new: list[Job] = []
        used, budget = self._kv_used(), self.plant.kv_tokens(self.home)
        rows, most = 0, PREFILL_TOKENS * (PREFILL_FAR if self._crosses else 1)
        while self.waiting and len(self.active) < MOST_BATCH:
            job = self.waiting[0]
            fits = used + job.prompt + job.output <= budget and rows + job.tokens <= most
            if not fits and (new or self.active):
                break
            self.waiting.popleft()
            used, rows = used + job.prompt + job.output, rows + job.tokens
            self.active.append(job)
            new.append(job)
        return new

    def _counts(self, now: Time, steps: int) -> Counts:
        at, weight = [], []
        for j in self.active:
            count = j.tokens - j.resident
            rows = self.routes.rows_of(j.number, j.resident, count)
            at.append(rows)
            weight.append(np.full(len(rows), count / len(rows)))
        found = self.routes.count(np.concatenate(at), np.concatenate(weight), self._owner(now), self.plant.node_of)
        self.observed += found.load * steps
        return found

    def _owner(self, now: Time) -> NDArray[np.int64]:
        if now >= self._owner_until:
            self._owner_until = now + round(OWNERS_EVERY_S * 1e12)
            draw = now // round(OWNERS_EVERY_S * 1e12)
            rtt = self.rtt_s[self.plant.node_of]
            self._owners = self.choose(View(self.held, rtt, self.busy, self.shares, self.seed, draw))
        return self._owners

    def shares(self) -> NDArray[np.float64]:
        """The split by linear programming for the load seen so far; made once for each placement."""
        if self._shares is None:
            counts = self.observed if self.observed.any() else self.routes.counts
            self._shares = lp_shares(self.held, counts, self.plant.bytes_per_s)
        return self._shares

    # Tasks of a step ----------------------------------------------------------------------------

    def _emit(self, counts: Counts, steps: int) -> list[Command]:
        plant = self.plant
        tokens = sum(j.tokens - j.resident for j in self.active)
        entries = float(sum(j.resident for j in self.active))
        pairs = sum((j.tokens - j.resident) * (j.tokens + j.resident + 1) / 2 for j in self.active)
        dense_s = plant.dense_s(self.home, tokens, entries, pairs)
        seconds = plant.expert_s(counts.rows, counts.touched)
        far = self._far(counts)
        self._crosses = bool(far)
        local_s = self._local(counts, seconds)
        nodes = self._near_nodes(counts)
        if not far:
            total = plant.model.layers * dense_s + float(local_s.sum()) + plant.head_s(self.home, len(self.active))
            self._account(nodes, total * steps)
            number = next(self.numbers)
            work = self._serve(nodes, total * steps, tokens)
            self.running = Step(range(number, number + 1), steps, tuple(self.active), total * steps)
            self.tally.tasks += 1
            return [Task(number, work, plant.lane_of(self.home), notify=True)]
        plan, floor_s = self._spread(counts, seconds, far, dense_s, local_s, nodes, tokens)
        self.running = Step(range(plan.first, plan.first + len(plan)), 1, tuple(self.active), 0.0, floor_s)
        self.tally.tasks += len(plan)
        return [plan]

    def _far(self, counts: Counts) -> dict[int, list[int]]:
        """Layer -> regions other than the home's that it visits."""
        region = self.plant.region_of
        out: dict[int, list[int]] = {}
        for layer, node in zip(*np.nonzero(counts.sent), strict=True):
            r = int(region[node])
            if r != region[self.home] and r not in out.setdefault(int(layer), []):
                out[int(layer)].append(r)
        return {layer: found for layer, found in out.items() if found}

    def _near_nodes(self, counts: Counts) -> list[int]:
        near = np.flatnonzero(counts.sent.any(axis=0) & (self.plant.region_of == self.plant.region_of[self.home]))
        return sorted({self.home, *near.tolist()})

    def _local(self, counts: Counts, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds of each layer's experts in the home's region: the slowest GPU, and rows there and back over the busiest NIC."""
        plant = self.plant
        near_node = plant.region_of == plant.region_of[self.home]
        compute = np.where(near_node[plant.node_of], seconds, 0.0).max(axis=1)
        others = near_node & (np.arange(len(plant.nodes)) != self.home)
        rows = counts.sent * others
        group = plant.cluster.node[plant.nodes[self.home]].group
        wire = 2 * rows.sum(axis=1) * plant.row_bytes / min(group.nic_out_bytes_per_s, group.nic_in_bytes_per_s)
        rtt = np.where(rows > 0, self.rtt_s, 0.0).max(axis=1)
        self.tally.carried("region", float(2 * rows.sum() * plant.row_bytes))
        return np.asarray(compute + wire + rtt)

    def _serve(self, nodes: list[int], seconds: float, tokens: int) -> Work:
        """All nodes of the region step together: each is taken for the whole time, the slowest sets the pace."""
        return self.plant.work("serve", 0.0, {f"node.{self.plant.nodes[n]}": seconds * 1e9 for n in nodes}, tokens=tokens)

    def _account(self, nodes: list[int], seconds: float) -> None:
        self.tally.busy_s[nodes] += seconds

    def _spread(
        self, counts: Counts, seconds: NDArray[np.float64], far: dict[int, list[int]], dense_s: float, local_s: NDArray[np.float64],
        nodes: list[int], tokens: int,
    ) -> tuple[Plan, float]:  # fmt: skip
        """The step as a Plan, and its floor: the longest round trip of each layer that leaves the region."""
        plant = self.plant
        builder, lane = PlanBuilder(next(self.numbers)), plant.lane_of(self.home)
        acc, before, floor = plant.model.dense_layers * dense_s, list[int](), 0.0
        for layer in range(plant.model.moe_layers):
            acc += dense_s
            if layer not in far:
                acc += float(local_s[layer])
                continue
            self._account(nodes, acc + float(local_s[layer]))
            here = builder.add(self._serve(nodes, acc, tokens), lane, before, layer=layer)
            visits = [self._visit(counts, seconds, layer, r) for r in far[layer]]
            lanes = [serve_lane(plant.regions[r]) for r in far[layer]]
            before = [builder.add(work, there, [here], layer=layer) for (work, _), there in zip(visits, lanes, strict=True)]
            if local_s[layer] > 0:
                before.append(builder.add(self._serve(nodes, float(local_s[layer]), tokens), lane, [here], layer=layer))
            floor += max(rtt for _, rtt in visits)
            acc = 0.0
        acc += plant.head_s(self.home, len(self.active))
        self._account(nodes, acc)
        builder.add(self._serve(nodes, acc, tokens), lane, before, notify=True)
        plan = builder.build()
        for _ in range(len(plan) - 1):
            next(self.numbers)
        return plan, floor

    def _visit(self, counts: Counts, seconds: NDArray[np.float64], layer: int, region: int) -> tuple[Work, float]:
        """Rows go to a region's nodes, through their experts, and back: one task. Its latency is the round trip and all phases but
        the longest, which is its demand, so that alone it takes the sum, and under contention the busy resource counts."""
        plant, here = self.plant, self.plant.nodes[self.home]
        loads: dict[str, float] = {}
        phases = np.zeros(3)
        rtt = 0.0
        wire = 0.0
        for n in np.flatnonzero((counts.sent[layer] > 0) & (plant.region_of == region)).tolist():
            there = plant.nodes[n]
            size = float(counts.sent[layer, n]) * plant.row_bytes
            for phase, path in ((0, plant.network.path(here, there)), (2, plant.network.path(there, here))):
                for name, factor in path.resources:
                    loads[name] = loads.get(name, 0.0) + size * factor
                    phases[phase] = max(phases[phase], loads[name] / plant.resources[name])
                rtt = max(rtt, self.rtt_s[n])
                wire += size * path.resources[0][1]
                self.tally.carried("wan", size * path.resources[0][1], size * path.usd_per_byte)
            busy = float(seconds[layer, plant.node_of == n].max()) + KERNEL_S
            loads[f"node.{there}"] = busy * 1e9
            phases[1] = max(phases[1], busy)
            self.tally.busy_s[n] += busy
        self.tally.visits += 1
        return plant.work("visit", rtt + float(phases.sum() - phases.max()), loads, moved=round(wire)), rtt

    # Ends ---------------------------------------------------------------------------------------

    def ended(self, now: Time) -> list[Job]:
        """The running step is done; jobs that have all their tokens leave."""
        step = self.running
        assert step is not None
        self.running = None
        return self._advance(now, step, step.steps)

    def cut_short(self, now: Time, fraction: float) -> tuple[list[Job], list[Command]]:
        """The running stretch was cancelled for newcomers: whole steps count, the one that is under way is finished first."""
        step = self.running
        assert step is not None and step.cut
        passed = fraction * step.steps
        whole = min(int(passed), step.steps - 1)
        left = step.seconds / step.steps * (1.0 - min(passed - whole, 1.0))
        self.tally.busy_s[self.home] -= step.seconds / step.steps * (step.steps - whole - 1)
        done = self._advance(now, step, whole) if whole else []
        number = next(self.numbers)
        self.running = Step(range(number, number + 1), 1, tuple(self.active), left, cut=True)
        self.tally.tasks += 1
        return done, [Task(number, self._serve([self.home], left, len(self.active)), self.plant.lane_of(self.home), notify=True)]

    def _advance(self, now: Time, step: Step, steps: int) -> list[Job]:
        self.tally.steps += steps
        self.tally.tokens += steps * len(step.jobs)
        self.tally.floor_token_s += step.floor_s * len(step.jobs)
        for job in step.jobs:
            job.resident = job.tokens + steps - 1
            job.produced += steps
            if job.first < 0:
                job.first = now
        done = [j for j in self.active if j.done]
        self.active = [j for j in self.active if not j.done]
        return done

    def abandon(self) -> list[Command]:
        """Cancel what runs; its step counts for nothing."""
        step, self.running = self.running, None
        return [Cancel(n, "abandoned") for n in step.numbers] if step is not None else []

    def forget(self) -> None:
        """The home's memory is void: sequences keep their tokens and must be prefilled again."""
        for job in self.active:
            job.resident = 0
        self.waiting.extendleft(reversed(self.active))
        self.active = []

    def hand_over(self) -> list[Job]:
        """All jobs leave for elsewhere."""
        self.forget()
        jobs = list(self.waiting)
        self.waiting.clear()
        return jobs


KERNEL_S = 5e-5
"""Of a visit on a node: launches of its grouped products, as `plant.KERNELS` at `plant.LAUNCH_S` (guessed)."""
