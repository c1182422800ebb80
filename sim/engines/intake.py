"""Checks at submission, shared by both engines: a bad command is an error at once, not a hang later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.engines.run import LaneLike
from sim.errors import UserError, unknown
from sim.plan import Plan

if TYPE_CHECKING:
    from sim.costs import PricedPlan

Change = tuple[int, str, float]
"""(time in ps, resource, capacity from then on)."""


def lane_table(plan: Plan, lanes: Sequence[str]) -> NDArray[np.int32]:
    """Index of the machine's lane for each row of `plan.lanes`; a last row of -1 for "no lane"."""
    index = {name: i for i, name in enumerate(lanes)}
    for name in plan.lanes:
        if name not in index:
            raise unknown("lane of a task", name, lanes)
    return np.array([*(index[name] for name in plan.lanes), -1], np.int32)


def pool_table(plan: Plan, pools: Mapping[str, int]) -> NDArray[np.int16]:
    """Index into `pools` (in their order) for each row of `plan.pools`; checks every take."""
    index = {name: i for i, name in enumerate(pools)}
    for name in plan.pools:
        if name not in index:
            raise unknown("pool of a task", name, pools)
    table = np.array([index[name] for name in plan.pools], np.int16)
    capacity = np.array([pools[name] for name in plan.pools], np.int64)
    if len(plan.take_units):
        if (plan.take_units < 0).any():
            raise UserError(f"{_task_of(plan, int(plan.take_units.argmin()))}: takes a negative number of units; 0 or more would be right")
        _check_takes(plan, capacity)
    return table


def task_takes(task: int, takes: Iterable[tuple[str, int]], pools: Mapping[str, int]) -> dict[str, int]:
    """Units that one task takes, by pool. Raises UserError where they could never be granted."""
    sums: dict[str, int] = {}
    for pool, units in takes:
        if pool not in pools:
            raise unknown(f"task {task}: pool", pool, pools)
        if units < 0:
            raise UserError(f"task {task}: takes {units} of pool {pool!r}; 0 or more would be right")
        sums[pool] = sums.get(pool, 0) + units
    for pool, units in sums.items():
        if units > pools[pool]:
            raise _too_many(f"task {task}", units, pool, pools[pool])
    return sums


def _too_many(task: str, units: int, pool: str, capacity: int) -> UserError:
    return UserError(f"{task}: takes {units} of pool {pool!r}, which holds {capacity}; a larger pool or a smaller take would be right")


def _check_takes(plan: Plan, capacity: NDArray[np.int64]) -> None:
    """A task's units of one pool, summed, must fit into the empty pool."""
    owner = np.repeat(np.arange(len(plan)), np.diff(plan.take_ptr))
    units = plan.take_units
    repeats = owner[1:] == owner[:-1]
    if repeats.any():
        key = owner * len(plan.pools) + plan.take_pool
        keys, inverse = np.unique(key, return_inverse=True)
        sums = np.zeros(len(keys), np.int64)
        np.add.at(sums, inverse, plan.take_units)
        units = sums[inverse]
    over = units > capacity[plan.take_pool]
    if over.any():
        j = int(over.argmax())
        pool = int(plan.take_pool[j])
        raise _too_many(_task_of(plan, j), int(units[j]), plan.pools[pool], int(capacity[pool]))


def _task_of(plan: Plan, take: int) -> str:
    return f"task {plan.first + int(np.searchsorted(plan.take_ptr, take, side='right')) - 1}"


def check_references(plan: Plan, known: Callable[[NDArray[np.int32]], NDArray[np.bool_]]) -> None:
    """Dependencies name earlier tasks, releases any task of this Plan or of earlier commands.

    `known` tells of numbers below `plan.first` which ones were submitted.
    """
    owner = plan.first + np.repeat(np.arange(len(plan)), np.diff(plan.dep_ptr))
    unknown_dep = plan.dep >= owner
    outside = plan.dep < plan.first
    unknown_dep[outside] = ~known(plan.dep[outside])
    if unknown_dep.any():
        j = int(unknown_dep.argmax())
        raise UserError(f"task {owner[j]}: depends on {plan.dep[j]}, which was not submitted before it; deps name earlier tasks")
    unknown_release = plan.release >= plan.first + len(plan)
    outside = plan.release < plan.first
    unknown_release[outside] = ~known(plan.release[outside])
    if unknown_release.any():
        j = int(unknown_release.argmax())
        task = plan.first + int(np.searchsorted(plan.release_ptr, j, side="right")) - 1
        raise UserError(f"task {task}: releases {plan.release[j]}, which was not submitted; releases name tasks that take from a pool")


def check_bodies(priced: PricedPlan, lanes: Sequence[LaneLike]) -> None:
    """The bodies that are to run: whole in themselves, on lanes that take tasks as they become ready."""
    orders = {lane.name: lane.order for lane in lanes}
    seen: set[int] = set()
    for i, body in priced.bodies.items():
        task, plan = f"task {priced.plan.first + i}", body.plan
        if priced.plan.lane[i] < 0:
            raise UserError(f"{task}: has a body and no lane; the lane that waits for the body is needed")
        if id(plan) in seen:
            continue
        seen.add(id(plan))
        check_references(plan, lambda numbers: np.zeros(len(numbers), np.bool_))
        if plan.bodies or plan.notify.any() or len(plan.take_units) or len(plan.release):
            raise UserError(f"{task}: its body has bodies, takes, releases or notifications; the task itself may have them")
        for name in plan.lanes:
            if orders.get(name, "") not in ("ready", "priority"):
                raise UserError(f"{task}: its body needs lane {name!r} with order 'ready' or 'priority'; it is {orders.get(name)!r}")


def change_columns(
    changes: Sequence[Change], resources: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Scheduled changes of capacity in order of time (ties: as given): times, resource indices, capacities."""
    for time_ps, resource, capacity in changes:
        if resource not in resources:
            raise unknown("resource of a capacity change", resource, resources)
        if time_ps < 0 or not 0 <= capacity < np.inf:
            raise UserError(f"change of {resource!r} at {time_ps} ps to {capacity}: times and capacities are finite and not negative")
    ordered = sorted(changes, key=lambda change: change[0])
    index = {name: k for k, name in enumerate(resources)}
    return (
        np.array([c[0] for c in ordered], np.int64),
        np.array([index[c[1]] for c in ordered], np.int64),
        np.array([c[2] for c in ordered], np.float64),
    )


def check_failures(failures: Sequence[tuple[int, float]]) -> dict[int, float]:
    """Fraction of its work at which each task is to fail, by number."""
    for number, fraction in failures:
        if not 0 <= fraction <= 1:
            raise UserError(f"failure of task {number} at {fraction}: a fraction of its work between 0 and 1 would be right")
    return dict(failures)


def check_lanes(lanes: Sequence[str], pools: Mapping[str, int]) -> None:
    if len(set(lanes)) < len(lanes):
        raise UserError(f"lanes: a name stands twice in {', '.join(lanes)}; each lane needs its own")
    for name, capacity in pools.items():
        if capacity < 0:
            raise UserError(f"pools.{name}: capacity {capacity} is negative; 0 or more would be right")
