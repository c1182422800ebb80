"""A step of a group as tasks: stretches of layers that stay in the home's region, and one visit for each (layer, other region)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.plan import Plan, PlanBuilder
from sim.swarm.dice import uniform
from sim.swarm.jobs import Job, Step, Tally
from sim.swarm.meter import Charge
from sim.swarm.plant import Plant, serve_lane
from sim.swarm.routes import Counts
from sim.tasks import Command, Task, Time, Work

KERNEL_S = 5e-5
"""Of a visit on a node: launches of its grouped products, as `plant.KERNELS` at `plant.LAUNCH_S` (guessed)."""
RESEND_S = 0.2
"""A transport's shortest wait until it says a lost packet again (Linux's TCP_RTO_MIN; RFC 6298 has 1 s)."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Parts:
    """Of one step at a home: tokens, seconds of the dense part of a layer, seconds of the experts by [layers, gpus], the local
    part of each layer [layers], nodes of the home's region that take part, and regions that each layer visits."""

    home: int
    rtt_s: Floats
    counts: Counts
    tokens: int
    sequences: int
    dense_s: float
    expert_s: Floats
    local_s: Floats
    nodes: list[int]
    far: dict[int, list[int]]


class StepTasks:
    """Makes the tasks of steps, and accounts for what they use. loss: share of packets lost, on top of what links lose."""

    def __init__(self, plant: Plant, tally: Tally, numbers: Iterator[int], loss: float = 0.0, seed: int = 0) -> None:
        self.plant, self.tally, self.numbers, self.loss, self.seed = plant, tally, numbers, loss, seed

    def emit(
        self, now: Time, home: int, rtt_s: Floats, jobs: Sequence[Job], counts: Counts, steps: int
    ) -> tuple[list[Command], Step, bool]:  # fmt: skip
        """Tasks, the step that they are, and whether it crosses regions; then it is one step, however many were wanted."""
        parts = self._parts(home, rtt_s, jobs, counts)
        gpu_s = parts.expert_s.sum(axis=0)
        if parts.far:
            plan, floor_s, worked = self._spread(parts)
            self.tally.tasks += len(plan)
            charge = self._charged(Charge(now, worked, gpu_s))
            return [plan], Step(range(plan.first, plan.first + len(plan)), 1, tuple(jobs), 0.0, charge, floor_s), True
        total = self.plant.model.layers * parts.dense_s + float(parts.local_s.sum()) + self.plant.head_s(home, len(jobs))
        task = self._stretch(home, parts.nodes, total * steps, parts.tokens)
        charge = self._charged(Charge(now, {task.number: self._each(parts.nodes, total * steps)}, gpu_s * steps))
        return [task], Step(range(task.number, task.number + 1), steps, tuple(jobs), total * steps, charge), False

    def rest(self, now: Time, home: int, step: Step, seconds: float, jobs: Sequence[Job]) -> tuple[Task, Step]:
        """The step of a stretch that was under way when it was cut: the same nodes finish it."""
        task = self._stretch(home, np.flatnonzero(step.charge.busy_s).tolist(), seconds, len(jobs))
        charge = self._charged(step.charge.share(now, task.number, seconds / step.seconds))
        return task, Step(range(task.number, task.number + 1), 1, tuple(jobs), seconds, charge, cut=True)

    def _charged(self, charge: Charge) -> Charge:
        self.tally.meter.begin(charge)
        return charge

    def _each(self, nodes: list[int], seconds: float) -> Floats:
        """So many seconds of each of these nodes [nodes]."""
        out = np.zeros(len(self.plant.nodes))
        out[nodes] = seconds
        return out

    def _stretch(self, home: int, nodes: list[int], seconds: float, tokens: int) -> Task:
        """Steps that stay at home, as one task."""
        self.tally.tasks += 1
        return Task(next(self.numbers), self._serve(nodes, seconds, tokens), self.plant.lane_of(home), notify=True)

    def _parts(self, home: int, rtt_s: Floats, jobs: Sequence[Job], counts: Counts) -> Parts:
        plant = self.plant
        tokens = sum(j.tokens - j.resident for j in jobs)
        entries = float(sum(j.resident for j in jobs))
        pairs = sum((j.tokens - j.resident) * (j.tokens + j.resident + 1) / 2 for j in jobs)
        dense_s = plant.dense_s(home, tokens, entries, pairs)
        expert_s = plant.expert_s(counts.rows, counts.touched)
        local_s = self._local(home, rtt_s, counts, expert_s)
        nodes, far = self._near_nodes(home, counts), self._far(home, counts)
        return Parts(home, rtt_s, counts, tokens, len(jobs), dense_s, expert_s, local_s, nodes, far)

    def _far(self, home: int, counts: Counts) -> dict[int, list[int]]:
        """Layer -> regions other than the home's that it visits."""
        region = self.plant.region_of
        out: dict[int, list[int]] = {}
        for layer, node in zip(*np.nonzero(counts.sent), strict=True):
            r = int(region[node])
            if r != region[home] and r not in out.setdefault(int(layer), []):
                out[int(layer)].append(r)
        return {layer: found for layer, found in out.items() if found}

    def _near_nodes(self, home: int, counts: Counts) -> list[int]:
        near = np.flatnonzero(counts.sent.any(axis=0) & (self.plant.region_of == self.plant.region_of[home]))
        return sorted({home, *near.tolist()})

    def _local(self, home: int, rtt_s: Floats, counts: Counts, expert_s: Floats) -> Floats:
        """Seconds of each layer's experts in the home's region: the slowest GPU, and rows there and back over the busiest NIC."""
        plant = self.plant
        near_node = plant.region_of == plant.region_of[home]
        compute = np.where(near_node[plant.node_of], expert_s, 0.0).max(axis=1)
        others = near_node & (np.arange(len(plant.nodes)) != home)
        rows = counts.sent * others
        group = plant.cluster.node[plant.nodes[home]].group
        wire = 2 * rows.sum(axis=1) * plant.row_bytes / min(group.nic_out_bytes_per_s, group.nic_in_bytes_per_s)
        rtt = np.where(rows > 0, rtt_s, 0.0).max(axis=1)
        self.tally.wire_bytes["region"] = self.tally.wire_bytes.get("region", 0.0) + float(2 * rows.sum() * plant.row_bytes)
        return np.asarray(compute + wire + rtt)

    def _serve(self, nodes: list[int], seconds: float, tokens: int) -> Work:
        """All nodes of the region step together: each is taken for the whole time, the slowest sets the pace."""
        return self.plant.work("serve", 0.0, {f"node.{self.plant.nodes[n]}": seconds * 1e9 for n in nodes}, tokens=tokens)

    # Across regions -----------------------------------------------------------------------------

    def _spread(self, p: Parts) -> tuple[Plan, float, dict[int, Floats]]:
        """The step as a Plan; its floor: the longest round trip of each layer that leaves the region; and by task the seconds that
        every node works [nodes]."""
        plant = self.plant
        builder, lane = PlanBuilder(next(self.numbers)), plant.lane_of(p.home)
        acc, before, floor = plant.model.dense_layers * p.dense_s, list[int](), 0.0
        worked: dict[int, Floats] = {}
        for layer in range(plant.model.moe_layers):
            acc += p.dense_s
            local_s = float(p.local_s[layer])
            if layer not in p.far:
                acc += local_s
                continue
            here = builder.add(self._serve(p.nodes, acc, p.tokens), lane, before, layer=layer)
            worked[here] = self._each(p.nodes, acc)
            visits = [self._visit(p, layer, r) for r in p.far[layer]]
            lanes = [serve_lane(plant.regions[r]) for r in p.far[layer]]
            before = [builder.add(work, there, [here], layer=layer) for (work, _, _), there in zip(visits, lanes, strict=True)]
            worked |= {i: busy for i, (_, _, busy) in zip(before, visits, strict=True)}
            if local_s > 0:
                before.append(builder.add(self._serve(p.nodes, local_s, p.tokens), lane, [here], layer=layer))
                worked[before[-1]] = self._each(p.nodes, local_s)
            floor += max(rtt for _, rtt, _ in visits)
            acc = 0.0
        acc += plant.head_s(p.home, p.sequences)
        worked[builder.add(self._serve(p.nodes, acc, p.tokens), lane, before, notify=True)] = self._each(p.nodes, acc)
        plan = builder.build()
        for _ in range(len(plan) - 1):
            next(self.numbers)
        return plan, floor, worked

    def _visit(self, p: Parts, layer: int, region: int) -> tuple[Work, float, Floats]:
        """Rows go to a region's nodes, through their experts, and back: one task, its round trip, and what nodes work. Its
        latency is the round trip and all phases but the longest, which is its demand, so that alone it takes the sum, and under
        contention the busy resource counts."""
        plant, here = self.plant, self.plant.nodes[p.home]
        loads: dict[str, float] = {}
        phases, worked = np.zeros(3), np.zeros(len(plant.nodes))
        rtt = wire = 0.0
        for n in np.flatnonzero((p.counts.sent[layer] > 0) & (plant.region_of == region)).tolist():
            there = plant.nodes[n]
            size = float(p.counts.sent[layer, n]) * plant.row_bytes
            for phase, path in ((0, plant.network.path(here, there)), (2, plant.network.path(there, here))):
                for name, factor in path.resources:
                    loads[name] = loads.get(name, 0.0) + size * factor
                    phases[phase] = max(phases[phase], loads[name] / plant.resources[name])
                rtt = max(rtt, p.rtt_s[n])
                wire += size * path.resources[0][1]
                self.tally.carry(path, size, "activations")
            busy = float(p.expert_s[layer, plant.node_of == n].max()) + KERNEL_S
            loads[f"node.{there}"] = busy * 1e9
            phases[1] = max(phases[1], busy)
            worked[n] = busy
        self.tally.visits += 1
        again_s = RESEND_S * self._resent(region, p.home)
        return plant.work("visit", rtt + again_s + float(phases.sum() - phases.max()), loads, moved=round(wire)), rtt, worked

    def _resent(self, region: int, home: int) -> int:
        """How often a visit's rows or its answer are lost and said again, drawn by the visit's number."""
        there = self.plant.nodes[int(np.flatnonzero(self.plant.region_of == region)[0])]
        keep = ((1.0 - self.loss) * (1.0 - self.plant.network.path(self.plant.nodes[home], there).loss)) ** 2
        times = 0
        while keep < 1.0 and uniform(self.seed, self.tally.visits, times, 11) >= keep:
            times += 1
        return times
