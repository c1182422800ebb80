"""A swarm's bookkeeping: requests on their way, running steps, and what was simulated."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sim.clusters.network import Path
from sim.swarm.meter import Charge, Meter
from sim.tasks import PS_PER_S, Time


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way. produced: tokens that it has; resident: tokens in the KV cache, 0 where it must be prefilled; first_home:
    where it had its first token; taken: a group has it; deliveries: answers that its user was given."""

    number: int
    origin: str
    arrival: Time
    prompt: int
    output: int
    produced: int = 0
    resident: int = 0
    first: Time = -1
    first_home: int = -1
    answered: Time = -1
    group: str = ""
    moves: int = 0
    taken: bool = False
    deliveries: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt + self.produced

    @property
    def kv_tokens(self) -> int:
        """Whose KV entries are kept at its end."""
        return self.prompt + self.output

    @property
    def done(self) -> bool:
        return self.produced >= self.output


class Waiting(deque[Job]):
    """Jobs that wait for a group, first come first. tokens: what they still want, prompts included; a job that waits does not change."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0

    def add(self, jobs: Sequence[Job]) -> None:
        self.extend(jobs)
        self.tokens += sum(map(_wanted, jobs))

    def put_back(self, jobs: Sequence[Job]) -> None:
        """Before all others, in their order."""
        self.extendleft(reversed(jobs))
        self.tokens += sum(map(_wanted, jobs))

    def take(self) -> Job:
        job = self.popleft()
        self.tokens -= _wanted(job)
        return job

    def drain(self) -> list[Job]:
        jobs = list(self)
        self.clear()
        self.tokens = 0
        return jobs


def _wanted(job: Job) -> int:
    return job.tokens - job.resident + job.output - job.produced


@dataclass(slots=True)
class Served:
    """Counts of a group: first tokens and the sum of their times; requests that are done, and their tokens."""

    firsts: int = 0
    ttft_s: float = 0.0
    done: int = 0
    prompt: int = 0
    output: int = 0

    def first(self, waited: Time) -> None:
        self.firsts += 1
        self.ttft_s += waited / PS_PER_S

    def ended(self, job: Job) -> None:
        self.done += 1
        self.prompt += job.prompt
        self.output += job.output


@dataclass(eq=False, slots=True)
class Step:
    """What runs: numbers of its tasks, the last one, and how many steps it stands for. charge: what its nodes work for it; floor_s:
    round trips that it cannot do without."""

    numbers: range
    steps: int
    jobs: tuple[Job, ...]
    seconds: float
    charge: Charge
    floor_s: float = 0.0
    cut: bool = False

    @property
    def last(self) -> int:
        return self.numbers[-1]


@dataclass(eq=False, slots=True)
class Tally:
    """What was simulated and what it took. wire_bytes: by link class; flows: by kind of traffic and link between regions;
    entered: requests by the node where they came in; loaded_usd: egress of weights by the node that they
    went to."""

    steps: int = 0
    tasks: int = 0
    tokens: int = 0
    floor_token_s: float = 0.0
    visits: int = 0
    wire_bytes: dict[str, float] = field(default_factory=dict)
    flows: dict[tuple[str, str], float] = field(default_factory=dict)
    egress_usd: float = 0.0
    entered: dict[str, int] = field(default_factory=dict)
    loaded_usd: dict[str, float] = field(default_factory=dict)
    meter: Meter = field(default_factory=lambda: Meter(np.zeros(0, np.int64)))

    def load(self, path: Path, size: float, node: str) -> None:
        """Weights on their way to a node."""
        self.carry(path, size, "experts")
        self.loaded_usd[node] = self.loaded_usd.get(node, 0.0) + size * path.usd_per_byte

    def carry(self, path: Path, size: float, kind: str) -> None:
        """Bytes of payload over a path, with what its tunnel adds."""
        if not path.resources:
            return
        wire = size * path.resources[0][1]
        self.wire_bytes[path.link_class] = self.wire_bytes.get(path.link_class, 0.0) + wire
        self.egress_usd += size * path.usd_per_byte
        for name, _ in path.resources:
            if name.startswith("wan."):
                self.flows[kind, name] = self.flows.get((kind, name), 0.0) + wire
