"""The table of slots under any order of calls, and Belady's bound on any trace."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sim.residency import Grant, Load, Residency, policies
from sim.residency.admission import ADMISSIONS
from sim.residency.replay import Event, keys_of, replay

LAYERS, EXPERTS = 3, 6

ASKED = st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=EXPERTS, unique=True)


@st.composite
def traces(draw: st.DrawFn) -> list[Event]:
    """Steps of events in the order of the layers; some sequences end on the way."""
    steps = draw(st.lists(st.tuples(st.lists(ASKED, min_size=LAYERS, max_size=LAYERS), st.sampled_from([0.0, 0.5, 1.0])), max_size=12))
    return [(layer, asked, ended if layer == LAYERS - 1 else 0.0) for of_step, ended in steps for layer, asked in enumerate(of_step)]


def hits(happened: list[Event], name: str, rule: str, capacity: int, whole: bool) -> int:
    popularity = {k: float(k % 5) for k in range(LAYERS * EXPERTS)}
    evictor = policies.evictor(name, EXPERTS, whole, popularity, keys_of(happened, EXPERTS))
    table = Residency(LAYERS, EXPERTS, capacity, 1, evictor, rule)
    tally = replay(happened, table)
    table.check()
    return tally.hits


@given(traces(), st.integers(1, 7), st.booleans(), st.sampled_from([*policies.ONLINE, "static"]), st.sampled_from([*ADMISSIONS]))
def test_no_online_policy_beats_belady_under_the_same_rule(
    happened: list[Event], capacity: int, whole: bool, name: str, admission: str
) -> None:
    rule = "always" if admission == "always" else "contest"
    assert hits(happened, name, admission, capacity, whole) <= hits(happened, "belady", rule, capacity, whole)


def best(happened: list[Event], capacity: int) -> int:
    """Most hits of one layer with optional admission, by trying everything: what is kept is any set of the right size."""
    from itertools import combinations

    states: dict[frozenset[int], int] = {frozenset(): 0}
    for _, asked, _ in happened:
        after: dict[frozenset[int], int] = {}
        for kept, found in states.items():
            pool = sorted(kept | set(asked))
            for choice in combinations(pool, min(capacity, len(pool))):
                key = frozenset(choice)
                after[key] = max(after.get(key, 0), found + len(kept & set(asked)))
        states = after
    return max(states.values())


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True), max_size=7), st.integers(1, 3))
def test_belady_is_the_best_of_all_choices(asked: list[list[int]], capacity: int) -> None:
    happened: list[Event] = [(0, experts, 0.0) for experts in asked]
    evictor = policies.evictor("belady", EXPERTS, asked=keys_of(happened, EXPERTS))
    assert replay(happened, Residency(1, EXPERTS, capacity, 1, evictor, "contest")).hits == best(happened, capacity)


class Table(RuleBasedStateMachine):
    """Any calls in any order, against what a set of (slot, key) pairs says is in the slots."""

    def __init__(self) -> None:
        super().__init__()
        self.flying: dict[int, int] = {}
        self.inside: dict[int, int] = {}
        """Key that was last copied into each slot."""
        self.pinned: dict[int, dict[int, int]] = {}
        self.table = Residency(LAYERS, EXPERTS, 2, 2, policies.evictor("lru", EXPERTS))

    def _loaded(self, loads: Sequence[Load]) -> None:
        for load in loads:
            self.inside[load.slot] = load.key

    @rule(layer=st.integers(0, LAYERS - 1), asked=ASKED, data=st.data(), admit=st.booleans(), most=st.integers(0, 2))
    def need(self, layer: int, asked: list[int], data: st.DataObject, admit: bool, most: int) -> None:
        before = self.table.look(layer, asked)
        free = self.table.look(layer, asked)[1] + self.table.look(layer, asked)[2]
        elsewhere = data.draw(st.sets(st.sampled_from(free))) if free else set()
        grant = self.table.need(layer, asked, elsewhere, most, admit)
        if not isinstance(grant, Grant):
            assert layer in self.pinned or self.pinned, grant
            assert self.table.look(layer, asked) == before
            return
        assert layer not in self.pinned
        assert (list(grant.hits), list(grant.late), list(grant.missed)) == before
        for k in grant.cancelled:
            del self.flying[k]
        for k, slot in grant.slots.items():
            if k not in self.flying and k not in grant.cancelled:
                assert self.inside[slot] == k, "a hit whose expert is not in its slot"
        using = {s for keys in self.pinned.values() for s in keys.values()}
        there = self.table._slots.of
        coming = {grant.slots[k] for k in grant.late if k not in elsewhere and k in there}  # else a wave has it once it was read
        for wave in grant.waves:
            slots = [load.slot for load in wave]
            assert len(set(slots)) == len(slots) and not set(slots) & (using | coming), "a slot that somebody reads"
            self._loaded(wave)
        assert {load.key for wave in grant.waves for load in wave} == set(grant.missed) - elsewhere
        for load in grant.promotions:
            self.flying[load.key] = load.slot
            assert load.slot not in using
        for k in grant.late:
            if k not in elsewhere:
                slot = self.flying.pop(k)  # the event waits for it
                if k in there:
                    self.inside[slot] = k
        self.pinned[layer] = {k: there[k] for k in (*grant.hits, *grant.missed) if k not in elsewhere and k in there}

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        layer = data.draw(st.sampled_from(sorted(self.pinned)))
        del self.pinned[layer]
        self.table.release(layer)

    @rule(key=st.integers(0, LAYERS * EXPERTS - 1))
    def ahead(self, key: int) -> None:
        found = self.table.ahead(key)
        if isinstance(found, Load):
            assert key not in self.flying and found.slot not in {s for keys in self.pinned.values() for s in keys.values()}
            self.flying[key] = found.slot

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), arrives=st.booleans())
    def flight_ends(self, data: st.DataObject, arrives: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.flying)))
        slot = self.flying.pop(key)
        if arrives:
            self.inside[slot] = key
            self.table.landed(key)
        else:
            self.table.lost(key)

    @invariant()
    def sound(self) -> None:
        self.table.check()


TestTable = Table.TestCase
TestTable.settings = settings(max_examples=30, stateful_step_count=20)


@pytest.mark.parametrize("name", policies.ONLINE)
def test_a_policy_forgets_what_left(name: str) -> None:
    """Every expert that was asked for is served, whatever the policy; nothing stays behind in it."""
    happened: list[Event] = [(layer, [(3 * i + layer) % EXPERTS, (i + 1) % EXPERTS] if i % 3 else [i % EXPERTS], 0.0)
                             for i in range(40) for layer in range(LAYERS)]  # fmt: skip
    happened = [(layer, list(dict.fromkeys(asked)), ended) for layer, asked, ended in happened]
    table = Residency(LAYERS, EXPERTS, 2, 1, policies.evictor(name, EXPERTS))
    assert replay(happened, table).asked == sum(len(asked) for _, asked, _ in happened)
    table.check()
    assert table.occupied == 2 * LAYERS
