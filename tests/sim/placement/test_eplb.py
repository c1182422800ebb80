"""EPLB: the published example, and the published rules followed plainly on drawn loads."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.placement import Gpus, Problem
from sim.placement.eplb import Eplb, physical

WEIGHT = [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]]
"""The example in the README of github.com/deepseek-ai/EPLB, and its printed output."""
PHY2LOG = [[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1], [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]]


def test_equals_the_published_example() -> None:
    problem = Problem(np.array([WEIGHT], float), Gpus.even(8, 12, 4, gpus_per_node=4), groups=4)
    assert physical(problem).reshape(2, 16).tolist() == PHY2LOG
    held = Eplb().place(problem).check(problem).held
    assert [[sorted(np.flatnonzero(held[layer, :, g])) for g in range(8)] for layer in range(2)] == [
        [sorted(row[2 * g : 2 * g + 2]) for g in range(8)] for row in PHY2LOG
    ]


def plainly(weight: list[int], replicas: int, gpus: int) -> list[list[int]] | None:
    """Experts of each GPU by the published rules; None where they would put two copies of one together."""
    copies, items = [1] * len(weight), list(range(len(weight)))
    while len(items) < replicas:
        e = max(range(len(weight)), key=lambda e: (weight[e] / copies[e], -e))
        copies[e] += 1
        items.append(e)
    slots, found, load = replicas // gpus, [[] for _ in range(gpus)], [0.0] * gpus
    for e in sorted(items, key=lambda e: -weight[e] / copies[e]):
        g = min((g for g in range(gpus) if len(found[g]) < slots), key=lambda g: load[g])
        if e in found[g]:
            return None
        found[g].append(e)
        load[g] += weight[e] / copies[e]
    return found


@settings(max_examples=60)
@given(st.lists(st.integers(1, 10**6), min_size=6, max_size=12, unique=True), st.integers(2, 4), st.integers(0, 2))
def test_global_follows_the_published_rules(weight: list[int], gpus: int, more: int) -> None:
    replicas = -(-len(weight) // gpus) * gpus + more * gpus
    if replicas == gpus or replicas > gpus * len(weight):
        return
    wanted = plainly(weight, replicas, gpus)
    problem = Problem(np.array([[weight]], float), Gpus.even(gpus, len(weight), replicas - len(weight)))
    found = physical(problem)[0].tolist()
    if wanted is not None:
        assert found == wanted
    else:
        assert all(len(set(row)) == len(row) for row in found)


def test_groups_that_do_not_divide_over_the_nodes_are_placed_globally() -> None:
    fleet = Gpus.even(8, 12, 4, gpus_per_node=4)
    weight = np.array([WEIGHT], float)
    of = {groups: Eplb().place(Problem(weight, fleet, groups=groups)) for groups in (1, 3, 4)}
    assert of[1] == of[3] == Eplb("global").place(Problem(weight, fleet, groups=4))
    assert of[4] != of[1]
    assert (of[4].held[:, :, :4].any(2) ^ of[4].held[:, :, 4:].any(2)).all(), "an expert of a group lives on one node only"


def test_one_slot_each_stays_in_order_as_published() -> None:
    problem = Problem(np.array([[[1.0, 9.0, 5.0, 3.0]]]), Gpus.even(4, 4))
    assert physical(problem)[0, :, 0].tolist() == [0, 1, 2, 3]
