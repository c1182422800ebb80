"""Residency: which expert is in which slot. The one object that decides it, on both clocks.

The table owns slots, pins and flights; an eviction policy proposes victims and the table checks. An
event (all experts that one step asks of one layer) is taken as a whole: its experts are pinned
together until `release`, and what stays is decided at once, at the event's boundary. Beyond the
capacity there are a few staging slots, for experts on a visit: fetched and not admitted, or fetched
ahead and not yet asked for. Nothing here moves a byte.

All loads into the slots of one table go through one lane, in the order in which they are granted: a
slot that a cancelled flight gives back may be granted again at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from sim.residency.admission import ADMISSIONS
from sim.residency.eviction import Evictor
from sim.residency.grant import Grant, Load, Refusal
from sim.residency.slots import Slots


class Residency:
    """Slots of one tier.

    Parameters
    ----------
    layers, experts: of the model. capacity: experts that stay, of each layer, or of all with `evictor.whole`.
    staging: slots beyond them. admission: a name of `sim.residency.admission.ADMISSIONS`.

    `need` costs O(experts of the event + capacity), all else O(1) or O(what it touches).
    """

    def __init__(self, layers: int, experts: int, capacity: int, staging: int, evictor: Evictor, admission: str = "always") -> None:
        assert layers > 0 and experts > 0 and capacity >= 1 and staging >= 1, (layers, experts, capacity, staging)
        self.experts, self.capacity, self.evictor = experts, capacity, evictor
        self.slots = capacity * (1 if evictor.whole else layers) + staging
        self.refusals: Counter[str] = Counter()
        self._admission = ADMISSIONS[admission](evictor)
        self._slots = Slots(self.slots)
        self._kept: dict[int, dict[int, None]] = {}
        """Keys that stay, by layer (or all under 0)."""
        self._guesses: dict[int, None] = {}
        """Fetched ahead and not asked for yet, the oldest first."""
        self._flying: set[int] = set()
        self._pinned: dict[int, tuple[int, ...]] = {}
        self._held: set[int] = set()

    # What is where ------------------------------------------------------------------------------

    def slot(self, key: int) -> int:
        """Slot of a key that is here or on its way."""
        return self._slots.of[key]

    def here(self, key: int) -> bool:
        return key in self._slots.of and key not in self._flying

    @property
    def occupied(self) -> int:
        """Experts that stay, as it is now."""
        return sum(map(len, self._kept.values()))

    def look(self, layer: int, experts: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """(hits, late, missing) of an event, without any effect."""
        hits: list[int] = []
        late: list[int] = []
        missing: list[int] = []
        base, slot, flying = layer * self.experts, self._slots.of, self._flying
        for e in experts:
            k = base + e
            (missing if k not in slot else late if k in flying else hits).append(k)
        return hits, late, missing

    # Events -------------------------------------------------------------------------------------

    def need(
        self, layer: int, experts: Sequence[int], elsewhere: Collection[int] = (), promotions: int = 0, admit: bool = True
    ) -> Grant | Refusal:
        """An event asks for `experts` of `layer`, each once. All or nothing.

        elsewhere: keys among them, not here, that are computed where their weights are; of those that the policy
        admits, at most `promotions` are fetched all the same. admit: whether anything may enter or leave the cache.
        """
        hits, late, missed = self.look(layer, experts)
        keys = (*hits, *late, *missed)
        fetch = [k for k in missed if k not in elsewhere] if elsewhere else missed
        if layer in self._pinned:
            return self._refuse(f"layer {layer} is pinned by an event that was not released")
        if fetch and (self._pinned or self._held) and not self._fits(layer, keys, len(fetch), admit):
            return self._refuse(f"no slots for {len(fetch)} experts: other events have pinned theirs")
        self.evictor.used(layer, keys)
        self._admission.used(layer, keys)
        grant = Grant(layer, tuple(hits), tuple(late), tuple(missed), {k: self._slots.of[k] for k in (*hits, *late)})
        if self._guesses:
            self._settle_guesses(grant, keys)
        wanted = [k for k in missed if k in elsewhere][:promotions] if elsewhere and admit else []
        entering = self._decide(layer, frozenset(keys), (*hits, *late, *fetch, *wanted)) if admit else frozenset()
        self._pinned[layer] = tuple(k for k in (*hits, *late) if k not in elsewhere)
        for k in late:
            if k in elsewhere and k in self._guesses:
                self._drop_guess(k, grant)
        if fetch:
            self._place(grant, [k for k in fetch if k not in entering], [k for k in fetch if k in entering])
        if wanted:
            self._promote(grant, [k for k in wanted if k in entering])
        return grant

    def release(self, layer: int) -> None:
        """The event of `layer` is over, and with it the visits of its experts."""
        kept = self._kept.get(self._domain(layer), {})
        for k in self._pinned.pop(layer, ()):
            self._flying.discard(k)
            self._guesses.pop(k, None)
            if k in self._held and k not in kept:
                self._guesses[k] = None  # still being read: it goes when its slot is wanted
            elif k not in kept:
                self._slots.leave(k)

    def _domain(self, layer: int) -> int:
        return 0 if self.evictor.whole else layer

    def _refuse(self, reason: str) -> Refusal:
        self.refusals[reason] += 1
        return Refusal(reason)

    def _pins(self, but: int = -1) -> set[int]:
        return self._held.union(*(keys for layer, keys in self._pinned.items() if layer != but))

    def _fits(self, layer: int, asked: Collection[int], fetch: int, admit: bool) -> bool:
        """Whether all that may stay finds a slot at once, and one is left for visitors in turn. Always so while no other
        event holds pins."""
        pins = self._pins()
        available = len(self._slots.free) + sum(k not in pins and k not in asked for k in self._guesses)
        if not admit:
            return available >= 1  # nobody makes room, and all are visitors
        kept = self._kept.get(self._domain(layer), {})
        fixed = sum(k in asked or k in self._flying or k in pins for k in kept)
        return available + len(kept) - fixed >= min(fetch, self.capacity - fixed + 1)

    def _settle_guesses(self, grant: Grant, asked: Collection[int]) -> None:
        """The layer's turn has come: a guess was right, or it goes."""
        for k in [k for k in self._guesses if k // self.experts == grant.layer and k not in self._held]:
            if k in asked:
                grant.guessed += 1
            else:
                self._drop_guess(k, grant)

    def _decide(self, layer: int, asked: frozenset[int], candidates: Sequence[int]) -> frozenset[int]:
        """What of the event's keys enters the cache; those that leave it give their slots back."""
        kept = self._kept.setdefault(self._domain(layer), {})
        new = [k for k in candidates if k not in kept]
        if not new:
            return frozenset()
        over = len(kept) + len(new) - self.capacity
        out: list[int] = []
        if over > 0:
            fixed = self._flying.union(self._pins(but=layer))
            out = self._admission.choose([k for k in kept if k not in fixed] if fixed else list(kept), new, asked, over)
            assert len(set(out)) == over, (layer, over, out)
        for k in out:
            if k in kept:
                del kept[k]
                self.evictor.left(k)
                if k not in asked:
                    self._slots.leave(k)
        entering = frozenset(new).difference(out)
        for k in new:
            if k in entering:
                kept[k] = None
                self._guesses.pop(k, None)
                self.evictor.entered(k)
        return entering

    # Slots --------------------------------------------------------------------------------------

    def _place(self, grant: Grant, visitors: Sequence[int], staying: Sequence[int]) -> None:
        """Slots for the loads of an event, visitors first: theirs serve the next wave."""
        todo = [*((k, False) for k in visitors), *((k, True) for k in staying)]
        self._make_room(len(todo), grant)
        kept = self._kept.get(self._domain(grant.layer), {})
        spent = [self._slots.of[k] for k in self._pinned[grant.layer] if k not in kept]
        grant.waves = self._slots.waves(todo, spent)
        for k in grant.late:
            if k not in self._slots.of:  # a visitor whose slot a wave has after it was read: nothing of it will be here
                self._flying.discard(k)
        for k in [k for k in self._guesses if k not in self._slots.of]:
            del self._guesses[k]
        self._pinned[grant.layer] += tuple(load.key for wave in grant.waves for load in wave)

    def _promote(self, grant: Grant, keys: Sequence[int]) -> None:
        self._make_room(len(keys), grant)
        for k in keys:
            if not self._slots.free:
                self._forget(k)
                self._refuse("no slot for a promotion")
                continue
            self._flying.add(k)
            grant.promotions.append(Load(k, self._slots.take(k), True))

    def _make_room(self, count: int, grant: Grant) -> None:
        """Give up guesses where slots are short: the oldest that are here, then the oldest on their way."""
        if len(self._slots.free) >= count or not self._guesses:
            return
        pins = self._pins()
        for k in sorted((k for k in self._guesses if k not in pins), key=lambda k: k in self._flying):
            if len(self._slots.free) >= count:
                return
            self._drop_guess(k, grant)

    def _drop_guess(self, key: int, grant: Grant) -> None:
        del self._guesses[key]
        if key in self._flying:
            self._flying.discard(key)
            grant.cancelled.append(key)
        self._slots.leave(key)

    def _forget(self, key: int) -> None:
        kept = self._kept.get(self._domain(key // self.experts), {})
        if key in kept:
            del kept[key]
            self.evictor.left(key)

    # Loads that nobody waits for ----------------------------------------------------------------

    def ahead(self, key: int) -> Load | Refusal:
        """A slot for an expert that may be asked for soon. A guess displaces nobody."""
        if key in self._slots.of:
            return self._refuse("already on its way" if key in self._flying else "already here")
        if not self._slots.free:
            return self._refuse("no slot for a guess")
        self._flying.add(key)
        self._guesses[key] = None
        return Load(key, self._slots.take(key), False)

    def landed(self, key: int) -> None:
        """A guess or a promotion has arrived."""
        self._flying.discard(key)

    def hold(self, key: int) -> None:
        """Somebody reads the expert: it stays until `let_go`."""
        assert key in self._slots.of and key not in self._held, key
        self._held.add(key)

    def let_go(self, key: int) -> None:
        self._held.discard(key)

    def lost(self, key: int) -> None:
        """A guess or a promotion failed or was given up: nothing of it is here. A load of an event that failed: likewise."""
        self._flying.discard(key)
        self._guesses.pop(key, None)
        self._forget(key)
        self._slots.leave(key)

    def check(self) -> None:
        """All invariants; for tests."""
        self._slots.check()
        there = self._slots.of.keys()
        for kept in self._kept.values():
            assert len(kept) <= self.capacity and kept.keys() <= there, (kept, self.capacity)
        stay = {k for kept in self._kept.values() for k in kept}
        assert self._guesses.keys() <= there - stay and self._flying <= there
        visitors = there - stay - self._guesses.keys()
        assert visitors <= self._pins(), f"visitors {visitors} of no event"
