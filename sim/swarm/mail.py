"""Mail: state machines on nodes that talk by messages, as one scheduler whose messages are tasks on links.

A member hears `Message`s and its own `Alarm`s and answers with `Send`s and `Alarm`s. Each `Send` becomes a task on the wires, so
that its latency, its bytes on shared links and its loss are the network's; a message that is lost ends like any other
task, and its result says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf
from typing import Any, Protocol, TypeAlias

from sim.clusters.network import Network
from sim.demands import Demand
from sim.events import Event, Failed, Finished, Result
from sim.swarm.costs import Queue
from sim.swarm.dice import uniform
from sim.tasks import Cancel, Command, Task, Time, Work

WIRES = "wires"
LANE = Queue(WIRES, servers=1 << 20)
OP = "message"


@dataclass(frozen=True, slots=True)
class Send:
    """`payload` reaches `to` unless it is lost; bytes travel."""

    to: str
    payload: Any
    bytes: int


@dataclass(frozen=True, slots=True)
class Alarm:
    """Wakes its member after a while, with the same token."""

    after_ps: Time
    token: Any


@dataclass(frozen=True, slots=True)
class Message:
    sender: str
    payload: Any
    sent_at: Time


Heard: TypeAlias = Message | Alarm
Act: TypeAlias = Send | Alarm


class Member(Protocol):
    """A pure state machine on one node."""

    def start(self, now: Time) -> Sequence[Act]: ...
    def recover(self, now: Time) -> Sequence[Act]: ...
    def on(self, now: Time, heard: Heard) -> Sequence[Act]: ...


class Mail:
    """Runs members as part of a scheduler.

    numbers: where task numbers come from, shared with what else the scheduler hands out. carried: hears (from, to, bytes) of each.
    Members that are down neither hear nor act; alarms that ring meanwhile are lost with what they knew. told: what the world told
    of a node when an alarm of its rang last (`sim.events.Result.facts`).
    """

    def __init__(
        self, members: Mapping[str, Member], numbers: Iterator[int] | None = None, carried: Callable[[str, str, int], None] | None = None
    ) -> None:
        self.members = dict(members)
        self.down: set[str] = set()
        self.told: dict[str, Mapping[str, Any]] = {}
        self.sent = self.lost = self.bytes = 0
        self.numbers = numbers or count()
        self._carried = carried or (lambda a, b, size: None)
        self._open: dict[int, tuple[str, Heard]] = {}

    def start(self, now: Time) -> list[Command]:
        return [task for name, member in self.members.items() for task in self._tasks(now, name, member.start(now))]

    def on(self, now: Time, event: Event) -> Sequence[Command] | None:
        """What follows from a task of the mail's; None: the event is somebody else's."""
        if not isinstance(event, Finished | Failed) or event.task not in self._open:
            return None
        name, heard = self._open.pop(event.task)
        if isinstance(event, Failed) or event.result.facts.get("lost"):
            self.lost += 1
            return []
        if isinstance(heard, Alarm):
            self.told[name] = event.result.facts
        return self.hear(now, name, heard)

    def changed(self, now: Time, name: str, up: bool) -> list[Command]:
        """A node's machine has stopped or is back: its member with it."""
        if not up:
            self.down.add(name)
        elif name in self.down and name in self.members:
            self.down.discard(name)
            return self._tasks(now, name, self.members[name].recover(now))
        return []

    def expire(self, now: Time, after_ps: Time) -> list[Cancel]:
        """Give up messages that have been under way for so long (their receiver is cut off): they count as lost."""
        late = [n for n, (_, h) in self._open.items() if isinstance(h, Message) and now - h.sent_at > after_ps]
        return [Cancel(n, "message expired") for n in late]

    @property
    def open(self) -> set[int]:
        """Messages and alarms under way."""
        return set(self._open)

    def hear(self, now: Time, name: str, heard: Heard) -> list[Command]:
        """Tell a member something, and hand out what it answers."""
        if name in self.down:
            return []
        return self._tasks(now, name, self.members[name].on(now, heard))

    def act(self, now: Time, name: str, acts: Sequence[Act]) -> list[Command]:
        """Hand out what a member was made to say from outside (a request to it)."""
        return self._tasks(now, name, acts)

    def _tasks(self, now: Time, name: str, acts: Sequence[Act]) -> list[Command]:
        return [self._task(now, name, act) for act in acts]

    def _task(self, now: Time, name: str, act: Act) -> Task:
        number = next(self.numbers)
        if isinstance(act, Alarm):
            self._open[number] = (name, act)
            return Task(number, Work("timer", latency_ps=max(1, act.after_ps), variant=name), notify=True)
        self.sent += 1
        self.bytes += act.bytes
        self._carried(name, act.to, act.bytes)
        self._open[number] = (act.to, Message(name, act.payload, now))
        return Task(number, Work(OP, bytes=act.bytes, variant=f"{name} {act.to}"), WIRES, notify=True)


def wire_price(network: Network, work: Work) -> tuple[float, list[Demand]]:
    """Latency and demands of a transfer `variant` = "FROM TO": bytes on every link of its path, core-seconds of its tunnel."""
    a, _, b = work.variant.partition(" ")
    path = network.path(a, b)
    return path.latency_s, [(name, work.bytes * factor, inf, 1.0) for name, factor in path.resources]


def losses(network: Network, seed: int, extra: float = 0.0, ops: Collection[str] = (OP,)) -> Callable[[Task], Result]:
    """Outcome of messages of these ops: `lost` with the path's loss and `extra` on top, drawn by the task's number; `unacked`: it
    came, but its acknowledgement was lost the same way. Links that are cut are the engine's matter (capacity 0)."""

    def outcome(task: Task) -> Result:
        if task.work.op not in ops:
            return Result()
        a, _, b = task.work.variant.partition(" ")
        keep = (1.0 - network.path(a, b).loss) * (1.0 - extra)
        if keep == 1.0:
            return Result()
        lost, unacked = (uniform(seed, task.number, i) >= keep for i in range(2))
        return Result(facts={"lost": True} if lost else {"unacked": True}) if lost or unacked else Result()

    return outcome
