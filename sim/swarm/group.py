"""A serving group: sequences that live on one node, its experts wherever the placement has them, iteration-level batching.

Each step every sequence gets one token; prompts that come in are prefilled in the next step (Orca, OSDI'22). Steps that stay at
home and change nothing about the batch go together as one task; a newcomer cuts it short at the end of the running step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np
from numpy.typing import NDArray

from sim.swarm.choice import View, lp_shares
from sim.swarm.jobs import Job, Served, Step, Waiting
from sim.swarm.plant import Plant
from sim.swarm.routes import Counts, Routes
from sim.swarm.steps import StepTasks
from sim.tasks import Cancel, Command, Time

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
Loads = Callable[[Time, int], NDArray[np.float64]]
"""(now, node) -> load of every GPU [gpus], as that node knows it."""


class Group:
    """One group.

    held [layers, experts, gpus] bool: live copies that it may use, over all GPUs of the plant. ready: every expert has one. loads: what
    a home knows of the GPUs' load. void: nodes that have lost their memory.
    kv_used: tokens for which the home keeps room, those of `active`.
    """

    def __init__(
        self, name: str, plant: Plant, routes: Routes, home: int, held: NDArray[np.bool_], choose: Choose, tasks: StepTasks, loads: Loads,
        void: Collection[int] = frozenset(), seed: int = 0,
    ) -> None:  # fmt: skip
        self.name, self.plant, self.routes, self.home, self.choose = name, plant, routes, home, choose
        self.tasks, self.tally, self.loads, self.void, self.seed = tasks, tasks.tally, loads, void, seed
        self.waiting = Waiting()
        self.active: list[Job] = []
        self.kv_used = 0
        self.running: Step | None = None
        self.observed = np.zeros((plant.model.moe_layers, plant.model.experts))
        self.served = Served()
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
        return sum(j.output - j.produced for j in self.active) + self.waiting.tokens

    def nodes_used(self) -> set[int]:
        return {self.home, *self.plant.node_of[np.flatnonzero(self.held.any(axis=(0, 1)))].tolist()}

    def holds(self, node: int) -> bool:
        """Whether it has copies on the node."""
        return bool(self.held[:, :, self.plant.node_of == node].any())

    # Stepping -----------------------------------------------------------------------------------

    def add(self, now: Time, jobs: Iterable[Job]) -> list[Command]:
        """Newcomers. A long stretch is cut, so that they come in after the running step."""
        new = list(jobs)
        for job in new:
            job.group, job.taken = self.name, True
        self.waiting.add(new)
        if self.running is None:
            return self.start(now)
        if new and self.running.steps > 1 and not self.running.cut and self._room():
            self.running.cut = True
            return [Cancel(self.running.last, "newcomers")]
        return []

    def _room(self) -> bool:
        fits = self.kv_used + self.waiting[0].kv_tokens <= self.plant.kv_tokens(self.home)
        return fits and len(self.active) < MOST_BATCH

    def start(self, now: Time) -> list[Command]:
        """The next step, if there is something to do and every expert is somewhere."""
        if self.running is not None or not (self.up and self.ready) or (self.void and not self.nodes_used().isdisjoint(self.void)):
            return []
        prompts = self._admit()
        if not self.active:
            return []
        steps = 1 if prompts else min(min(j.output - j.produced for j in self.active), STRETCH)
        counts = self._counts(now, steps)
        commands, self.running, self._crosses = self.tasks.emit(now, self.home, self.rtt_s, self.active, counts, steps)
        return commands

    def _admit(self) -> list[Job]:
        new: list[Job] = []
        rows, most = 0, PREFILL_TOKENS * (PREFILL_FAR if self._crosses else 1)
        while self.waiting and len(self.active) < MOST_BATCH:
            job = self.waiting[0]
            if self.kv_used + job.kv_tokens > self.plant.kv_tokens(self.home) or (rows + job.tokens > most and self.active):
                break
            self.waiting.take()
            self.kv_used += job.kv_tokens
            rows += job.tokens
            self.active.append(job)
            new.append(job)
        return new

    def _counts(self, now: Time, steps: int) -> Counts:
        at, weight = self.routes.rows([(j.number, j.resident, j.tokens - j.resident) for j in self.active])
        found = self.routes.count(at, weight, self._owner(now), self.plant.node_of)
        self.observed += found.load * steps
        return found

    def _owner(self, now: Time) -> NDArray[np.int64]:
        if now >= self._owner_until:
            self._owner_until = now + round(OWNERS_EVERY_S * 1e12)
            draw = now // round(OWNERS_EVERY_S * 1e12)
            rtt = self.rtt_s[self.plant.node_of]
            self._owners = self.choose(View(self.held, rtt, self.loads(now, self.home), self.shares, self.seed, draw))
        return self._owners

    def shares(self) -> NDArray[np.float64]:
        """The split by linear programming for the load seen so far; made once for each placement."""
        if self._shares is None:
            counts = self.observed if self.observed.any() else self.routes.counts
            self._shares = lp_shares(self.held, counts, self.plant.bytes_per_s)
        return self._shares

    # Ends ---------------------------------------------------------------------------------------

    def ended(self, now: Time) -> list[Job]:
        """The running step is done; jobs that have all their tokens leave."""
        step = self.running
        assert step is not None
        self.running = None
        self.tally.meter.end(step.charge)
        return self._advance(now, step, step.steps)

    def cut_short(self, now: Time, fraction: float) -> tuple[list[Job], list[Command]]:
        """The running stretch was cancelled for newcomers: whole steps count, the one that is under way is finished first."""
        step = self.running
        assert step is not None and step.cut
        passed = fraction * step.steps
        whole = min(int(passed), step.steps - 1)
        left = step.seconds / step.steps * (1.0 - min(passed - whole, 1.0))
        done = self._advance(now, step, whole) if whole else []
        task, self.running = self.tasks.rest(now, self.home, step, left, self.active)
        return done, [task]

    def _advance(self, now: Time, step: Step, steps: int) -> list[Job]:
        self.tally.steps += steps
        self.tally.tokens += steps * len(step.jobs)
        self.tally.floor_token_s += step.floor_s * len(step.jobs)
        for job in step.jobs:
            job.resident = job.tokens + steps - 1
            job.produced += steps
            if job.first < 0:
                job.first, job.first_home = now, self.home
                self.served.first(now - job.arrival)
        done = [j for j in self.active if j.done]
        self.active = [j for j in self.active if not j.done]
        for job in done:
            self.kv_used -= job.kv_tokens
            self.served.ended(job)
        return done

    def abandon(self) -> list[Command]:
        """Cancel what runs; its step counts for nothing."""
        step, self.running = self.running, None
        if step is None:
            return []
        self.tally.meter.stop(step.charge)
        return [Cancel(n, "abandoned") for n in step.numbers]

    def forget(self) -> None:
        """The home's memory is void: sequences keep their tokens and must be prefilled again."""
        for job in self.active:
            job.resident = 0
        self.waiting.put_back(self.active)
        self.active = []
        self.kv_used = 0

    def hand_over(self, stays: Callable[[Job], bool] = lambda job: False) -> list[Job]:
        """Jobs leave for elsewhere, all but those that stay and wait."""
        self.forget()
        jobs = self.waiting.drain()
        self.waiting.add([j for j in jobs if stays(j)])
        gone = [j for j in jobs if not stays(j)]
        for job in gone:
            job.taken = False
        return gone
