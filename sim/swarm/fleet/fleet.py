"""The fleet: at the coordinator, looks at the swarm, orders nodes, empties others and gives them back.

A node that is ordered starts, and is then heard of by gossip like one that comes back from a crash: its group asks the control plane
for a placement, which is loaded over the links that traffic uses. A node that shall go is drained: its group takes no newcomers and
finishes what it has, or, where its group lives on elsewhere, its experts are moved away while it serves on. What is not rented
counts as dead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sim.events import Result
from sim.swarm.faults import Faults
from sim.swarm.fleet.arbitrage import Arbitrage
from sim.swarm.fleet.gauge import Gauge
from sim.swarm.fleet.moves import Moves
from sim.swarm.fleet.policy import Autoscaler, Seen
from sim.swarm.fleet.pool import Pool
from sim.swarm.fleet.sizes import Sizes
from sim.swarm.group import Group
from sim.tasks import PS_PER_S, Command, Task, Time

MARKET = "market"
"""Op of a look: the world tells what nodes cost and which are to be had."""
EPSILON = 1e-9


class Fleet:
    """policy: how much capacity is wanted; pool: which nodes are rented; past: all looks so far."""

    def __init__(self, policy: Autoscaler, arbitrage: Arbitrage | None, pool: Pool, sizes: Sizes, faults: Faults) -> None:
        self.policy, self.limits, self.pool, self.sizes, self.faults = policy, policy.limits, pool, sizes, faults
        self.placer, self.desk, self.views, self.groups = faults.placer, faults.desk, faults.views, faults.groups
        self.changes, self.requests = faults.changes, faults.requests
        self.gauge = Gauge(sizes, pool, self.views, self.desk.tally, self.groups, self.limits.startup_s)
        self.moves = Moves(arbitrage, sizes, pool, self.changes.shelves, self.desk.tally, self.limits) if arbitrage else None
        self.past: list[Seen] = []
        self.ups = self.downs = 0
        self._offered = frozenset(range(len(self.placer.plant.nodes)))
        self._again: set[int] = set()
        """Nodes that were taken up again, and that no placement counts on yet."""

    def begin(self) -> Task:
        return self.desk.timer(self.limits.look_s, self._look, MARKET)

    def runs(self, node: int) -> bool:
        """Whether the node is rented and has started."""
        return self.pool.state[node] in ("up", "draining")

    # Looks --------------------------------------------------------------------------------------

    def _look(self, now: Time, result: Result) -> Sequence[Command]:
        self._hear(result)
        commands = [*self._lost(now), *self._emptied(now)]
        seen = self.gauge.look(now, self._alive(), self._coming(now))
        for node in self.gauge.serving(self._alive()):
            self.pool.serves(now, node)
        self.past.append(seen)
        commands += self._move(now, self.moves) if self.moves is not None else []
        commands += self._grow(now, wanted := self.policy.desired(self.past))
        self._shrink(wanted)
        return [*commands, *self._settle(now), self.begin()]

    def _hear(self, result: Result) -> None:
        """Prices and offers of now, and nodes that will be taken away: they drain, where they are not kept. One that drains is not to be
        used either when it has started anew since."""
        self.sizes.usd = list(result.facts["usd"])
        self._offered = frozenset(n for n, up in enumerate(result.facts["up"]) if up)
        for node in (self.pool.nodes("up") & self.placer.leaving) - self.pool.kept:
            self.pool.drain(node)
        self.placer.leaving |= self.pool.nodes("draining")

    def _alive(self) -> frozenset[int]:
        return self.pool.rented - self.placer.dead

    def _young(self, now: Time) -> frozenset[int]:
        """Nodes that run, but may not have been heard of yet."""
        return frozenset(n for n in self.pool.nodes("up") if now - self.pool.since_up(n) <= self.faults.settings.suspect_s * PS_PER_S)

    def _coming(self, now: Time) -> frozenset[int]:
        """Nodes that are counted on: those that serve, load or start, but for those that others leave for."""
        coming = self.pool.nodes("starting") | self._young(now) | (self.pool.nodes("up") & self._alive())
        return coming - self.moves.coming if self.moves is not None else coming

    # More ---------------------------------------------------------------------------------------

    def _grow(self, now: Time, wanted: float) -> list[Command]:
        """Take up nodes that are drained, then order others, until there is as much as is wanted."""
        commands: list[Command] = []
        while self._short(now, wanted) and (again := self._to_take_up()):
            commands += self._take_up(now, min(again, key=lambda n: self.sizes.worth([n])))
        while self._short(now, wanted):
            found = [g for g in self.sizes.growths(self._coming(now), self._free()) if len(g) <= self.pool.room]
            if not found:
                break
            self.ups += 1
            commands += [self._order(now, n) for n in min(found, key=self.sizes.worth)]
        return commands

    def _short(self, now: Time, wanted: float) -> bool:
        coming = self._coming(now)
        return self.sizes.capacity(coming) < wanted - EPSILON or len(coming) < self.limits.min

    def _free(self) -> frozenset[int]:
        return self.pool.nodes("free") & self._offered

    def _order(self, now: Time, node: int) -> Task:
        self.pool.order(now, node)
        return self.desk.timer(self.limits.startup_s, lambda at, result: self._came(at, node, result), MARKET)

    def _came(self, now: Time, node: int, result: Result) -> Sequence[Command]:
        """A node has started, or there is none to be had after all."""
        if not result.facts["up"][node]:
            self.pool.give_back(now, node)
            return []
        self.pool.came(now, node)
        self.placer.absent.discard(node)
        self.faults.comes(now, node)
        return self.views.join(now, node)

    def _to_take_up(self) -> frozenset[int]:
        """Nodes that are drained because we wish it, not because they will be taken away."""
        entries = {n: self.views.entry(self.views.here, n) for n in self.pool.nodes("draining") & self._alive()}
        return frozenset(n for n, e in entries.items() if e is None or not e.value.leaving)

    def _take_up(self, now: Time, node: int) -> list[Command]:
        self.ups += 1
        self.pool.take_up(node)
        self.placer.leaving.discard(node)
        self._again.add(node)
        return self.requests.unpark(now)

    # Less ---------------------------------------------------------------------------------------

    def _shrink(self, wanted: float) -> None:
        """Drain the dearest nodes that are not wanted, as long as those that serve are enough without them."""
        while spare := self._spare(wanted):
            self.downs += 1
            self._drain(max(spare, key=self.sizes.worth))

    def _spare(self, wanted: float) -> list[tuple[int, ...]]:
        serving = self.gauge.serving(self._alive())
        found = self.sizes.shrinks(serving, self.groups)
        fixed = self.pool.kept | (self.moves.nodes if self.moves is not None else frozenset())
        return [u for u in found if not fixed & set(u) and self._enough(serving - set(u), wanted)]

    def _enough(self, nodes: frozenset[int], wanted: float) -> bool:
        return len(nodes) >= self.limits.min and self.sizes.capacity(nodes) >= wanted - EPSILON

    def _drain(self, unit: Sequence[int]) -> None:
        for node in unit:
            self.pool.drain(node)
            self.placer.leaving.add(node)

    def _settle(self, now: Time) -> Iterator[Command]:
        """Groups that live on elsewhere ask for a placement without the nodes that are drained, or with those taken up again, on
        which one that is down may come up."""
        drained = self.pool.nodes("draining") & self._alive()
        for group in self.groups:
            reach = self.sizes.reach[group.name]
            again = self._again & reach
            if self.requests.dispatcher.closed(group) or group.name in self.changes.migrations or group.name in self.changes.wanted:
                continue
            self._again -= reach
            if not group.up and again:
                yield from self.changes.replace(now, group, lost_home=True)
            elif group.up and (again or any(group.holds(n) for n in drained & reach)):
                yield from self.changes.leave(now, group)

    # Elsewhere ----------------------------------------------------------------------------------

    def _move(self, now: Time, moves: Moves) -> list[Command]:
        """Drain what others stand for now, and begin the next move if one pays."""
        serving = self.gauge.serving(self._alive())
        moves.watch()
        self._drain(moves.arrived(now, serving))
        alone = frozenset(u[0] for u in self.sizes.shrinks(serving, self.groups) if len(u) == 1)
        fresh = frozenset(g[0] for g in self.sizes.growths(self._coming(now), self._free()) if len(g) == 1)
        sources = (alone & self.pool.nodes("up")) - self.pool.kept - moves.nodes
        offer = moves.wanted(now, sources, fresh, self._alive()) if self.pool.room else None
        if offer is None:
            return []
        task = self._order(now, offer.target)
        moves.begun(offer.source, offer.target)
        return [task]

    # Away ---------------------------------------------------------------------------------------

    def _emptied(self, now: Time) -> list[Command]:
        """Drained nodes on which nothing is left."""
        ready = [n for n in sorted(self.pool.nodes("draining") & self._alive()) if self._is_empty(n)]
        return [c for n in ready for c in self._retire(now, n)]

    def _retire(self, now: Time, node: int) -> list[Command]:
        """Groups that used an empty node have nothing to do: they stop, and begin again where the rest of their nodes holds the model."""
        users = [g for g in self.groups if self.faults.uses(g, node)]
        commands = [c for g in users for c in self._shut(g)] + self._give_back(now, node)
        for group in users:
            if self.placer.fits(self.sizes.reach[group.name] - self.placer.dead - self.placer.leaving):
                commands += self.changes.replace(now, group, lost_home=True)
        return commands

    def _is_empty(self, node: int) -> bool:
        return all(self._is_idle(g) for g in self.groups if self.faults.uses(g, node)) and not self.requests.touches(node)

    def _is_idle(self, group: Group) -> bool:
        """It takes no newcomers and has nothing to do."""
        idle = self.requests.dispatcher.closed(group) and not (group.active or group.waiting or group.running)
        return idle and not self.requests.touches(group.home)

    def _lost(self, now: Time) -> list[Command]:
        """Nodes that have been given up, and those of which nothing was heard since they started, are paid for no longer."""
        gone = self.pool.nodes("up", "draining") - self._alive() - self._young(now) - self.pool.kept
        return [c for n in sorted(gone) for c in self._give_back(now, n)]

    def _give_back(self, now: Time, node: int) -> list[Command]:
        """It is empty, or lost: nothing is fetched from it, sent to it or heard of it any more."""
        self.pool.give_back(now, node)
        self.placer.dead.add(node)
        self.placer.absent.add(node)
        self.placer.leaving.discard(node)
        commands: list[Command] = []
        for group in self.groups:
            commands += self.changes.lose(group, node)
        self.changes.shelves.replaced(node, 0.0, 0)
        self.faults.given_back(node)
        self.views.leave(node)
        return [*commands, *self.requests.rescue(now, node)]

    def _shut(self, group: Group) -> list[Command]:
        assert not group.active and group.running is None, f"{group.name} has {len(group.active)} requests"
        commands = self.changes.stop(group)
        self.changes.withdraw(group)
        group.up = False
        group.move(group.home, np.zeros_like(group.held))
        return commands
