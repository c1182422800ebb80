"""The placement problem: loads of experts, GPUs with slots and speed on nodes and in regions, what lives where now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.errors import UserError

if TYPE_CHECKING:
    import networkx as nx

    from sim.placement.placement import Placement

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

WHOLE = float(1 << 32)
"""What the shares of a layer add up to. Whole numbers: their sums are exact, so that no policy's choice hangs on
the order of an addition or on the unit in which loads were counted."""


@dataclass(frozen=True, eq=False, slots=True)
class Gpus:
    """GPUs as columns.

    Attributes
    ----------
    names [gpus]. node, region [gpus] int64, numbered from 0.
    speed [gpus] float64: expert tokens a second, in any unit that all share.
    slots [gpus] int64: copies of one layer's experts that fit, at most one of each expert.
    """

    names: tuple[str, ...]
    node: Ints
    region: Ints
    speed: Floats
    slots: Ints

    def __post_init__(self) -> None:
        n = len(self.names)
        for column in (self.node, self.region, self.speed, self.slots):
            assert column.shape == (n,), f"{column.shape}: must be ({n},)"
        assert n and (self.speed > 0).all() and (self.slots >= 0).all(), f"{n} GPUs, speeds {self.speed}, slots {self.slots}"

    def __len__(self) -> int:
        return len(self.names)

    @property
    def nodes(self) -> int:
        return int(self.node.max()) + 1

    @property
    def regions(self) -> int:
        return int(self.region.max()) + 1

    @property
    def alike(self) -> bool:
        """Whether all have one speed and as many slots."""
        return bool((self.speed == self.speed[0]).all() and (self.slots == self.slots[0]).all())

    @classmethod
    def even(cls, gpus: int, experts: int, spares: int = 0, gpus_per_node: int | None = None) -> Gpus:
        """So many equal GPUs of one region; the slots of experts + spares dealt out, the first GPUs holding one more."""
        per_node = gpus_per_node or gpus
        slots = np.minimum(experts, apportion(experts + spares, np.ones(gpus)))
        numbers = np.arange(gpus)
        return cls(tuple(f"gpu{g}" for g in numbers), numbers // per_node, np.zeros(gpus, np.int64), np.ones(gpus), slots)


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """Recorded tokens: `experts` [tokens, layers, k] int16, and `window` [tokens] int64: which of the problem's
    windows each belongs to."""

    experts: NDArray[np.int16]
    window: Ints

    def __len__(self) -> int:
        return len(self.window)


@dataclass(frozen=True, eq=False)
class Problem:
    """What a policy is told.

    Attributes
    ----------
    windows [windows, layers, experts] float64: tokens of each expert, in one or several recordings.
    gpus: where copies may live.
    sample: recorded tokens, where a routing trace tells them; None: only counts are known.
    current: the placement that stands now; None: nothing is loaded yet.
    memory [gpus] int64: copies that fit over all layers together; by default the slots of every layer.
    groups: groups of neighbouring experts that the router keeps together (DeepSeek-V3 has 8); 1: none.
    cluster: links and prices, for policies that look at them.
    seed: of everything that a policy draws.
    """

    windows: Floats
    gpus: Gpus
    sample: Sample | None = None
    current: Placement | None = None
    memory: Ints | None = None
    groups: int = 1
    cluster: nx.DiGraph[Any] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        assert self.windows.ndim == 3 and min(self.windows.shape) > 0, f"windows {self.windows.shape}: must be [windows, layers, experts]"
        if not np.isfinite(self.windows).all() or (self.windows < 0).any():
            raise UserError("load: has negative or infinite counts; counts of tokens are 0 or more")
        room = int(np.minimum(self.gpus.slots, self.experts).sum())
        if room < self.experts:
            raise UserError(f"slots: {room} on {len(self.gpus)} GPUs; {self.experts} experts a layer need as many")

    @property
    def layers(self) -> int:
        return int(self.windows.shape[1])

    @property
    def experts(self) -> int:
        return int(self.windows.shape[2])

    @cached_property
    def budget(self) -> Ints:
        """Copies that fit on each GPU over all layers together [gpus]."""
        return self.memory if self.memory is not None else np.asarray(np.minimum(self.gpus.slots, self.experts) * self.layers)

    @cached_property
    def load(self) -> Floats:
        """Shares of each layer's tokens, all windows pooled [layers, experts]: whole numbers that add up to about `WHOLE`."""
        return shares(self.windows.sum(axis=0))

    def with_current(self, current: Placement | None) -> Problem:
        return replace(self, current=current)


def shares(counts: Floats) -> Floats:
    """Counts [..., experts] as whole numbers that add up to about `WHOLE`; a layer without any counts has equal shares."""
    total = counts.sum(axis=-1, keepdims=True)
    even = np.full_like(counts, 1.0 / counts.shape[-1])
    return np.asarray(np.rint(np.divide(counts, total, out=even, where=total > 0) * WHOLE))


def apportion(total: int, weights: Floats | Sequence[float]) -> Ints:
    """`total` whole units in proportion to weights [n]: largest remainder (Hamilton's method), ties to the first."""
    weights = np.asarray(weights, np.float64)
    ideal = total * weights / weights.sum()
    found: Ints = np.floor(ideal).astype(np.int64)
    rest = np.argsort(-(ideal - found), kind="stable")[: total - int(found.sum())]
    found[rest] += 1
    return found
