"""The control plane of a swarm: placement changes are proposed at the coordinator and take effect once its replica has decided them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sim.errors import UserError
from sim.events import Event
from sim.swarm.agreement import Replica
from sim.swarm.ballots import Committee, Keys, Value
from sim.swarm.jobs import Tally
from sim.swarm.mail import Mail, Member
from sim.swarm.plant import Plant
from sim.tasks import PS_PER_S, Command, Time


@dataclass(frozen=True, eq=False, slots=True)
class Change:
    """A placement for a group: its home, copies [layers, experts, gpus], and whether the home must load the dense weights first."""

    request: str
    group: str
    home: int
    target: NDArray[np.bool_]
    fresh_home: bool

    def value(self) -> Value:
        """What is voted on: the placement's digest; its description is a bit for every (layer, expert, GPU)."""
        bits = np.packbits(self.target).tobytes()
        digest = hashlib.sha256(f"{self.group} {self.home} {self.target.shape}".encode() + bits).hexdigest()
        return Value(self.request, digest, len(bits))


def seats(plant: Plant, tolerate: int, kept: Collection[int] | None = None) -> tuple[str, ...]:
    """Where the replicas are: the coordinator first, then a node of each region, the nearest first, and again; 3f + 1 of them, with the
    greatest f that is wanted and that the cluster has nodes for. kept: only these nodes, as others may be given back."""
    here = plant.cluster.coordinator
    able = [n for i, n in enumerate(plant.nodes) if n != here and (kept is None or i in kept)]
    near = sorted(able, key=lambda n: (plant.network.rtt_s(here, n), n))
    turn = {n: sum(plant.cluster.node[m].region == plant.cluster.node[n].region for m in near[:i]) for i, n in enumerate(near)}
    names = (here, *sorted(near, key=lambda n: turn[n]))
    return names[: 3 * min(tolerate, (len(names) - 1) // 3) + 1]


@dataclass(eq=False)
class ControlPlane:
    """propose -> `on` tells each change that is decided. waits_s: from the proposal to the decision at the coordinator.

    Raises UserError where the coordinator's member would be silent: nobody could ask for anything.
    """

    plant: Plant
    numbers: Iterator[int]
    tally: Tally
    tolerate: int = 1
    silent: int = 0
    seed: int = 0
    kept: Collection[int] | None = None
    waits_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = seats(self.plant, self.tolerate, self.kept)
        if self.silent >= len(self.names):
            most = f"must be {len(self.names) - 1} or less, the members of the control plane beside the coordinator's"
            raise UserError(f"--silent: is {self.silent}; {most}")
        self.committee = Committee(self.names, Keys.of(self.names, self.seed))
        self._proposed: dict[Value, tuple[Time, Change]] = {}
        members: dict[str, Member] = {n: Replica(n, self.committee, acceptable=self._acceptable) for n in self.names}
        self.mail = Mail(members, self.numbers, self._carried)
        self.mute = set(self.names[len(self.names) - self.silent :]) if self.silent else set()
        self.mail.down |= self.mute
        self._told = 0

    def _carried(self, a: str, b: str, size: int) -> None:
        self.tally.carry(self.plant.network.path(a, b), size, "control")

    @property
    def replicas(self) -> list[Replica]:
        """Those that are no liars' and not silent."""
        return [m for n, m in self.mail.members.items() if isinstance(m, Replica) and n not in self.mute]

    def _acceptable(self, value: Value) -> bool:
        """A correct member votes only for a placement that it has been shown and that fits into every GPU's memory."""
        if value not in self._proposed:
            return False
        change = self._proposed[value][1]
        room = self.plant.slots([change.home], np.arange(len(self.plant.node_of)))
        return bool((change.target.sum(axis=1) <= room).all())

    def propose(self, now: Time, change: Change) -> list[Command]:
        value, here = change.value(), self.plant.cluster.coordinator
        self._proposed[value] = (now, change)
        replica = self.mail.members[here]
        assert isinstance(replica, Replica), f"{here}: the coordinator's seat must not be a liar's"
        return self.mail.act(now, here, replica.propose(now, value))

    def changed(self, now: Time, node: str, up: bool) -> list[Command]:
        return [] if node in self.mute else self.mail.changed(now, node, up)

    def on(self, now: Time, event: Event, apply: Callable[[Time, Change], Sequence[Command]]) -> Sequence[Command] | None:
        """What follows from a message of its own; None: the event is somebody else's. `apply` hears what is decided, in order."""
        commands = self.mail.on(now, event)
        return None if commands is None else [*commands, *self.decided(now, apply)]

    def decided(self, now: Time, apply: Callable[[Time, Change], Sequence[Command]]) -> list[Command]:
        """Changes that the coordinator's replica has decided since it was last asked."""
        replica = self.mail.members[self.plant.cluster.coordinator]
        assert isinstance(replica, Replica)
        commands: list[Command] = []
        while self._told < len(replica.decisions):
            asked, change = self._proposed[replica.decisions[self._told].value]
            self._told += 1
            self.waits_s.append((now - asked) / PS_PER_S)
            commands += apply(now, change)
        return commands
