"""The rate solver's state as an object, and the three calls that Python makes into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.engines import usage
from sim.engines.layout import CLASS, COUNTS, DEMAND, LAZY_FROM, NEVER, NODE, RESOURCE, SLOT, WEIGHT_ONE, WIDTH, Shared, entry
from sim.engines.lazy import due
from sim.engines.settle import settle

if TYPE_CHECKING:
    from sim.costs import Prices

MANY = 32
"""Users from which on an oversubscribed resource may be lazy. Results do not depend on it but for rounding."""


@entry
def step(
    classes: Any, demands: Any, resources: Any, slots: Any, nodes: Any, lists: Any, counts: Any,
    now: int, leaving: Any, entering: Any, entering_cls: Any, entering_left: Any,
) -> Any:  # fmt: skip
    """One instant in one call: tasks leave, tasks enter, speeds are settled.

    Returns the next due time (NEVER: none) and the number of slots then due, listed in lists[DUE].
    Arrays come one by one because numba checks the type of a tuple of arrays much more slowly.
    """
    x = Shared(classes, demands, resources, slots, nodes, lists, counts)
    for s in leaving:
        usage.leave(x, s)
    for i in range(len(entering)):
        usage.enter(x, entering[i], entering_cls[i], entering_left[i], now)
    settle(x, now)
    return due(x)


@entry
def price(classes: Any, demands: Any, resources: Any, slots: Any, nodes: Any, lists: Any, counts: Any, since: int) -> None:
    usage.price(Shared(classes, demands, resources, slots, nodes, lists, counts), since)


@entry
def rebuild(classes: Any, demands: Any, resources: Any, slots: Any, nodes: Any, lists: Any, counts: Any) -> None:
    usage.rebuild(Shared(classes, demands, resources, slots, nodes, lists, counts))


def check_prices(prices: Prices) -> None:
    """Assert what the solver relies on."""
    assert ((prices.amount >= 0) & (prices.amount < np.inf)).all(), "amounts must be finite and not negative"
    assert (prices.cap > 0).all(), "caps must be positive"
    assert (prices.latency_ps >= 0).all(), "latencies must not be negative"
    assert ((prices.weight >= 2.0**-16) & (prices.weight <= 1024)).all(), "weights must lie between 2^-16 and 1024"
    pairs = np.repeat(np.arange(len(prices.latency_ps)), prices.ptr[1:] - prices.ptr[:-1]) << 16 | prices.resource
    pairs.sort()
    assert (pairs[1:] != pairs[:-1]).all(), "a class must name each resource once: merge its demands"


def class_table(prices: Prices, first: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows of CLASS and DEMAND; `first` is the index of their first demand in a longer table."""
    check_prices(prices)
    classes = np.zeros(len(prices.latency_ps), CLASS)
    classes["latency"] = prices.latency_ps
    classes["first"], classes["last"] = prices.ptr[:-1] + first, prices.ptr[1:] + first
    demands = np.zeros(len(prices.resource), DEMAND)
    demands["resource"], demands["amount"], demands["cap"] = prices.resource, prices.amount, prices.cap
    demands["weight"] = np.rint(prices.weight * WEIGHT_ONE)
    return classes, demands


class Rates:
    """Price classes, capacities, and the tasks that run now, each in a slot.

    Attributes
    ----------
    classes [c], demands [d], resources [r], slots [m], nodes [m * width], lists [6, max(m, r)],
        counts [COUNTS]: see the dtypes of `sim.engines.layout`.
    """

    def __init__(self, capacity: NDArray[np.float64], slots: int) -> None:
        assert np.all((capacity >= 0) & np.isfinite(capacity)), f"capacities must be finite and not negative: {capacity}"
        self._classes, self._demands = np.zeros(0, CLASS), np.zeros(0, DEMAND)
        self.classes, self.demands = self._classes, self._demands
        self.resources = np.zeros(len(capacity), RESOURCE)
        self.resources["capacity"] = capacity
        self.resources["head"] = self.resources["root"] = self.resources["shown"] = -1
        self.counts = np.zeros(COUNTS, np.int64)
        self.counts[WIDTH] = 1
        self.counts[LAZY_FROM] = MANY
        self.slots = _fresh_slots(0)
        self.nodes = np.zeros(0, NODE)
        self.lists = np.zeros((6, len(capacity)), np.int32)
        self.reserve(max(slots, 1))

    @property
    def arrays(self) -> Shared:
        return Shared(self.classes, self.demands, self.resources, self.slots, self.nodes, self.lists, self.counts)

    def reserve(self, slots: int) -> None:
        """Make room for `slots` running tasks, keeping those that run. Between instants only."""
        lists = np.zeros((6, max(slots, len(self.resources))), np.int32)
        lists[:, : self.lists.shape[1]] = self.lists
        self.lists = lists
        self.slots = np.concatenate([self.slots, _fresh_slots(slots - len(self.slots))])
        self._widen(int(self.counts[WIDTH]))

    def extend(self, prices: Prices) -> int:
        """Append classes; returns the index of the first. Amortised O(rows): the tables double."""
        since = len(self.classes)
        classes, demands = class_table(prices, len(self.demands))
        self._classes, self.classes = _append(self._classes, since, classes)
        self._demands, self.demands = _append(self._demands, len(self.demands), demands)
        price(*self.arrays, since)
        width = int((prices.ptr[1:] - prices.ptr[:-1]).max(initial=1))
        if width > self.counts[WIDTH]:
            self._widen(width)
        return since

    def set_capacity(self, k: int, capacity: float) -> None:
        """From the next `step` on, resource `k` gives `capacity`; fractions done are kept."""
        self.resources["capacity"][k] = capacity
        rebuild(*self.arrays)

    def left(self, slot: int, now: int) -> float:
        """Fraction of the fluid phase that a slot has still to do at `now` ps."""
        row = self.slots[slot]
        if row["lazy"] < 0:
            return float(row["left"] - (now - row["anchor"]) / row["span"])
        r, d = self.resources[row["lazy"]], self.demands[row["demand"]]
        clock = r["clock"] + (now - r["since"]) * r["level"]
        return float((row["target"] - clock) / (self.classes[row["cls"]]["solo"] * (d["share"] / d["weight"])))

    def speed(self, slot: int) -> float:
        """Speed of a running task relative to running alone."""
        row = self.slots[slot]
        if row["lazy"] < 0:
            return float(row["speed"])
        d = self.demands[row["demand"]]
        return float(d["weight"] * self.resources[row["lazy"]]["level"] / d["share"])

    def _widen(self, width: int) -> None:
        """`width` nodes for each slot, those in use in their new places; no sum and no clock changes."""
        old, was = self.nodes, int(self.counts[WIDTH])
        at = np.arange(len(old)) // was * width + np.arange(len(old)) % was
        moved = np.append(at, -1)  # the node after the last, -1, stays what it is
        self.nodes = np.zeros(len(self.slots) * width, NODE)
        self.nodes[at] = old
        for name in ("next", "prev"):
            self.nodes[name][at] = moved[old[name]]
        self.resources["head"] = moved[self.resources["head"]]
        self.counts[WIDTH] = width


def _append(buffer: NDArray[Any], used: int, rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The buffer, twice as long where needed, and the part of it in use."""
    need = used + len(rows)
    if need > len(buffer):
        longer = np.zeros(max(need, 2 * len(buffer)), buffer.dtype)
        longer[:used] = buffer[:used]
        buffer = longer
    buffer[used:need] = rows
    return buffer, buffer[:need]


def _fresh_slots(n: int) -> NDArray[Any]:
    slots = np.zeros(n, SLOT)
    slots["end"], slots["heap"], slots["lazy"] = NEVER, -1, -1
    return slots
