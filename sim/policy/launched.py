"""What a scheduler launches, counted: how many tasks of each kind one batch has, for any number of micro-batches.

Read off the scheduler's own Plans for a few small batches, so that nothing about a launch order is said twice.
Launch orders repeat: the counts are linear in layers, in decode steps and, from three micro-batches on (two still
fit into the prefill's slots), in micro-batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.events import Arrived, Request
from sim.models.spec import ModelSpec
from sim.plan import PHASES, Plan
from sim.policy.space import Order
from sim.schedulers.policy import Policy

Array = NDArray[np.float64]

LINEAR_FROM = 3
WEIGHT_COPIES = frozenset({"layer_to_gpu", "page_to_gpu", "page_to_pin"})
CACHE_COPIES = frozenset({"kv_to_cpu", "kv_to_gpu"})
_PROMPT = 2


class Kind(NamedTuple):
    """Tasks that are priced alike but for their sizes. row_bytes: of a copy of activations, for each token.
    routed: has experts. sliding: of a layer that sees a window only."""

    phase: str
    lane: str
    op: str
    variant: str
    routed: bool
    sliding: bool
    row_bytes: int


@dataclass(frozen=True, eq=False)
class Launched:
    """Tasks of each kind in one batch of n micro-batches and `steps` decode steps.

    base, per_step: by n, for n up to LINEAR_FROM + 1: count = base[n] + steps * per_step[n].
    Streamed weights are counted as if a layer were one page.
    """

    base: Mapping[int, Mapping[Kind, int]]
    per_step: Mapping[int, Mapping[Kind, int]]
    kinds: tuple[Kind, ...]

    @cache  # noqa: B019 - a few objects, kept by `launched` anyway
    def spread(self, kind: Kind, steps: int) -> tuple[Array, Array]:
        """(fixed, each) [LINEAR_FROM] for 1, 2, .. and at least LINEAR_FROM micro-batches: the number of tasks is
        fixed + each * micro-batches."""
        low, high = (float(self._total(kind, n, steps)) for n in (LINEAR_FROM, LINEAR_FROM + 1))
        few = [float(self._total(kind, n, steps)) for n in range(1, LINEAR_FROM)]
        each = high - low
        return np.array([*few, low - LINEAR_FROM * each]), np.array([*(0.0 for _ in few), each])

    @cache  # noqa: B019
    def activations(self, phase: str) -> tuple[Kind, ...]:
        """Kinds of a phase but for streamed weights."""
        return tuple(k for k in self.kinds if k.phase == phase and k.op not in WEIGHT_COPIES)

    def _total(self, kind: Kind, n: int, steps: int) -> int:
        return self.base[n].get(kind, 0) + steps * self.per_step[n].get(kind, 0)


@cache
def launched(order: Order, model: ModelSpec) -> Launched:
    """Counted with the scheduler of `order`; streams all experts where the scheduler streams any."""
    base, per_step = {}, {}
    for n in range(1, LINEAR_FROM + 2):
        one, two = (_counts(order, model, n, gen) for gen in (2, 3))
        per_step[n] = {k: two[k] - one[k] for k in two}
        base[n] = {k: one[k] - per_step[n][k] for k in two}
    return Launched(base, per_step, tuple(sorted({k for counts in base.values() for k in counts})))


def _counts(order: Order, model: ModelSpec, n: int, gen: int) -> Counter[Kind]:
    """Of the whole model, from two with few layers where all layers are alike but the leading dense ones."""
    few = model.dense_layers + 4
    if model.sliding_layers or model.layers <= few:
        return _counted(order, model, n, gen)
    short, long = (_counted(order, replace(model, layers=few - 1 + k), n, gen) for k in (0, 1))
    more = model.layers - few + 1
    return Counter({k: short[k] + more * (long[k] - short[k]) for k in long})


def _counted(order: Order, model: ModelSpec, n: int, gen: int) -> Counter[Kind]:
    plan = _plan(order, model, n, gen)
    sliding = frozenset(model.sliding_layers)
    found: Counter[Kind] = Counter()
    for work, lane, phase, layer in zip(plan.work.tolist(), plan.lane.tolist(), plan.phase.tolist(), plan.layer.tolist(), strict=True):
        if lane >= 0:
            w = plan.works[work]
            row = w.bytes // w.tokens if w.tokens and w.op not in CACHE_COPIES else 0
            found[Kind(PHASES[phase], plan.lanes[lane], w.op, w.variant, w.experts > 0, layer in sliding, row)] += 1
    return found


def _plan(order: Order, model: ModelSpec, n: int, gen: int) -> Plan:
    policy = Policy(batch=n, microbatch=1, pages=1, attention=order.attention, cache_tokens=_PROMPT + gen)
    scheduler = order.load()(model, policy)
    plans: list[Plan] = []
    for i in range(n):
        commands = scheduler.on(0, Arrived(Request(i, _PROMPT, gen, gen), last=i == n - 1))
        plans += [c for c in commands if isinstance(c, Plan)]
    assert len(plans) == 1, (order, len(plans))
    return plans[0]
