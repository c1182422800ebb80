"""Tiers: what a slot holds is what was put there, whole, until it goes; nobody's memory moves under a reader."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from exec.arena import Arena
from exec.pool.tiers import InUse, Tier
from exec.runtime import Interrupted
from sim.errors import UserError

FLOATS = 1024


def tier(floats: int = FLOATS) -> Tier:
    return Tier("--device-budget", Arena("gpu", floats * 4, poison=True).take("experts", floats))


def put(t: Tier, slot: int, expert: tuple[int, int], floats: int) -> None:
    with t.filling(slot, expert, floats) as filling:
        filling.room[:] = contents(expert, floats)


def contents(expert: tuple[int, int], floats: int) -> np.ndarray:
    return np.arange(floats, dtype=np.float32) + 1000 * expert[0] + 10_000 * expert[1]


class Tiers(RuleBasedStateMachine):
    """A tier against a dictionary. Sizes differ, so gaps appear and what is there moves together."""

    def __init__(self) -> None:
        super().__init__()
        self.tier = tier()
        self.model: dict[int, tuple[tuple[int, int], int]] = {}

    def free(self) -> int:
        return FLOATS - sum(-(-n // 16) * 16 for _, n in self.model.values())

    @rule(slot=st.integers(0, 7), expert=st.tuples(st.integers(0, 3), st.integers(0, 7)), floats=st.integers(1, 400))
    def fill(self, slot: int, expert: tuple[int, int], floats: int) -> None:
        old = self.model.pop(slot, None)
        if -(-floats // 16) * 16 <= self.free():
            put(self.tier, slot, expert, floats)
            self.model[slot] = expert, floats
            return
        if old is not None:
            self.model[slot] = old
        with pytest.raises(UserError, match="no room for expert"):
            put(self.tier, slot, expert, floats)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def fill_that_fails(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.model)))
        with pytest.raises(OSError), self.tier.filling(slot, (9, 9), 16) as filling:
            filling.room[:] = 7
            raise OSError("the disk is gone")
        del self.model[slot]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.model)))
        self.tier.evict(slot)
        del self.model[slot]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def evict_in_use(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.model)))
        with self.tier.using([(slot, self.model[slot][0])]):
            with pytest.raises(InUse, match=r"cannot go, it is in use \(1 readers\)"):
                self.tier.evict(slot)
            with pytest.raises(InUse):
                put(self.tier, slot, (5, 5), 16)

    @invariant()
    def holds_the_same(self) -> None:
        assert self.tier.held() == {slot: expert for slot, (expert, _) in self.model.items()}
        with self.tier.using([(slot, expert) for slot, (expert, _) in self.model.items()]) as views:
            for view, (expert, floats) in zip(views, self.model.values(), strict=True):
                assert (view == contents(expert, floats)).all()


TestTiers = Tiers.TestCase
TestTiers.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_fragmented_tier_moves_together() -> None:
    t = tier()
    for slot in range(4):
        put(t, slot, (0, slot), 256)
    t.evict(0)
    t.evict(2)
    put(t, 5, (1, 5), 512)  # two gaps of 256
    assert t.compactions == 1 and t.evictions == 2 and t.peak_bytes == t.budget_bytes
    with t.using([(1, (0, 1)), (3, (0, 3)), (5, (1, 5))]) as views:
        assert [int(v[3]) for v in views] == [int(contents(e, 4)[3]) for e in ((0, 1), (0, 3), (1, 5))]


def test_nothing_moves_under_a_reader() -> None:
    t = tier()
    for slot in range(4):
        put(t, slot, (0, slot), 256)
    t.evict(0)
    t.evict(2)
    filler = threading.Thread(target=put, args=(t, 5, (1, 5), 512))
    with t.using([(1, (0, 1))]) as (view,):
        filler.start()
        filler.join(0.2)
        assert filler.is_alive() and t.compactions == 0
        assert (view == contents((0, 1), 256)).all()
    filler.join(10)
    assert not filler.is_alive() and t.compactions == 1 and t.held()[5] == (1, 5)


def test_all_or_nothing() -> None:
    t = tier()
    put(t, 0, (0, 0), 16)
    for missing in ((1, (0, 1)), (0, (0, 7))):
        with pytest.raises(AssertionError, match="wanted, holds"), t.using([(0, (0, 0)), missing]):
            raise RuntimeError("unreachable")
    t.evict(0)  # nobody is left using it


def test_no_room_keeps_what_the_slot_has() -> None:
    t = tier(64)
    put(t, 0, (0, 0), 32)
    put(t, 1, (0, 1), 32)
    with pytest.raises(UserError, match=r"--device-budget: no room for expert 2 of layer 0 in slot 1: .* 256 bytes, 128 of 256 are free"):
        put(t, 1, (0, 2), 64)
    assert t.held() == {0: (0, 0), 1: (0, 1)}


def test_a_filling_that_was_interrupted_goes_on() -> None:
    t = tier(64)
    with pytest.raises(Interrupted), t.filling(0, (0, 1), 64) as filling:
        filling.room[:40] = contents((0, 1), 64)[:40]
        filling.done = 40
        raise Interrupted(40 / 64)
    assert t.held() == {} and t.fills == 0
    with pytest.raises(AssertionError, match="not whole yet"), t.using([(0, (0, 1))]):
        raise RuntimeError("unreachable")
    with t.filling(0, (0, 1), 64, start=40) as filling:
        filling.room[40:] = contents((0, 1), 64)[40:]
    with t.using([(0, (0, 1))]) as (view,):
        assert (view == contents((0, 1), 64)).all()


def test_going_on_with_what_is_not_there_is_an_error() -> None:
    t = tier(64)
    with pytest.raises(AssertionError, match="is to go on from 8, the slot has nothing"), t.filling(0, (0, 1), 64, start=8):
        raise RuntimeError("unreachable")
    put(t, 0, (0, 0), 64)
    with pytest.raises(AssertionError, match=r"go on from 8, the slot has 64 of \(0, 0\)"), t.filling(0, (0, 1), 64, start=8):
        raise RuntimeError("unreachable")
    with pytest.raises(Interrupted), t.filling(0, (0, 1), 64):
        raise Interrupted(0.0)
    put(t, 1, (0, 2), 64)  # nothing of it stayed


def test_what_was_left_of_an_interrupted_filling_makes_room() -> None:
    t = tier(64)
    with pytest.raises(Interrupted), t.filling(0, (0, 1), 64) as filling:
        filling.done = 8
        raise Interrupted(8 / 64)
    put(t, 0, (0, 2), 64)
    assert t.held() == {0: (0, 2)} and t.evictions == 0
