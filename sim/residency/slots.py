"""Slots of one tier and whose each is; who may have one is decided in `sim.residency.table`."""

from __future__ import annotations

from collections.abc import Iterable

from sim.residency.grant import Load


class Slots:
    """of: slot of each key that has one. free: slots that nobody has, the next one last."""

    def __init__(self, count: int) -> None:
        self.of: dict[int, int] = {}
        self.free = list(range(count - 1, -1, -1))
        self._holder = [-1] * count

    def take(self, key: int) -> int:
        """A free slot for `key`; there must be one."""
        slot = self.free.pop()
        self._give(key, slot)
        return slot

    def waves(self, wanted: Iterable[tuple[int, bool]], spent: list[int]) -> list[list[Load]]:
        """Slots for (key, stays), in this order. Those of one wave are distinct: free ones first, then `spent` ones and, of
        the waves before, those of keys that do not stay."""
        todo, made = list(wanted), []
        while todo:
            slots = [self.free.pop() for _ in range(min(len(self.free), len(todo)))]
            if not slots:
                slots, spent = spent[: len(todo)], spent[len(todo) :]
            assert slots, f"no slot for the experts (key, stays) {todo}"
            wave = [Load(k, s, stays) for (k, stays), s in zip(todo, slots, strict=False)]
            del todo[: len(wave)]
            for load in wave:
                self._give(load.key, load.slot)
            spent = spent + [load.slot for load in wave if not load.stays]
            made.append(wave)
        return made

    def leave(self, key: int) -> None:
        """The slot of `key`, if it has one, is free."""
        if key in self.of:
            slot = self.of.pop(key)
            self._holder[slot] = -1
            self.free.append(slot)

    def check(self) -> None:
        """All invariants; for tests."""
        assert sorted([*self.of.values(), *self.free]) == list(range(len(self._holder))), "a slot is lost, or has two owners"
        assert all(self.of[k] == s for s, k in enumerate(self._holder) if k >= 0), "holders and slots differ"

    def _give(self, key: int, slot: int) -> None:
        """The slot is `key`'s from here on, whoever visited it earlier in the same event."""
        if (before := self._holder[slot]) >= 0:
            del self.of[before]
        self.of[key], self._holder[slot] = slot, key
