"""The end of an instant: speeds of what changed, and when each of it is due."""

from __future__ import annotations

import math

import numpy as np

from sim.engines.heap import schedule
from sim.engines.layout import LAZY, LEVEL, NEVER, NOISE, PART, TOUCHED, Shared, jit
from sim.engines.levels import become_lazy, close_parts, couple, level_anew, set_lazy_apart
from sim.rates import share_out


@jit
def rearm(x: Shared, s: int, now: int) -> None:
    """Anchor the progress of slot `s` at `now` if its speed changed, and make it due again."""
    slot = x.slots[s]
    span = x.classes[slot.cls].solo / slot.speed
    if span == slot.span:
        return
    if now > slot.anchor:
        slot.left = max(0.0, slot.left - (now - slot.anchor) / slot.span)
    slot.anchor = now
    slot.span = span
    ahead = slot.left * span if slot.left > 0.0 else 0.0
    if ahead < NEVER:
        schedule(x, s, now + np.int64(math.ceil(ahead - ahead * NOISE)))
    else:
        schedule(x, s, NEVER)


@jit
def settle(x: Shared, now: int) -> None:
    """End of an instant: solve if an oversubscribed resource changed, then rearm what changed speed."""
    if x.counts[PART] > 0:
        if x.counts[LAZY] > 0:
            couple(x)
            set_lazy_apart(x)
        share_out(x)
        if x.counts[LEVEL] > 0:
            level_anew(x, now)
        close_parts(x)
    for i in range(x.counts[TOUCHED]):
        s = x.lists[TOUCHED, i]
        x.slots[s].touched = 0
        if x.slots[s].fluid != 0 and x.slots[s].lazy < 0:
            rearm(x, s, now)
    x.counts[TOUCHED] = 0
    for i in range(x.counts[LEVEL]):
        become_lazy(x, x.lists[LEVEL, i], now)
    x.counts[LEVEL] = 0
