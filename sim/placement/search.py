"""Local search over the placement of one layer: simulated annealing on balance under many loads and on tokens' reach.

What is maximised is  sum over scenarios of weight x balancedness  -  pull x units touched by a token,  balancedness
being the ideal load over the largest. A move either exchanges two copies between two GPUs, or lets a GPU give up one
copy of an expert that has others for a copy of an expert that it lacks; used slots stay as many. With a price, every
copy that must be loaded costs that much balancedness.

Annealing after Kirkpatrick, Gelatt and Vecchi (Science 220, 1983) with geometric cooling; half of the proposals start
at the busiest GPU of a scenario. While it is hot, reach goes by co-activated pairs (`reach`), which cost next to nothing and
have fewer local optima; then by the tokens, where pairs only turn down what is hopeless: delayed acceptance, Christen and Fox
(J. Comp. Graph. Stat. 14, 2005). The number of steps is fixed beforehand: no clock decides about a placement.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.placement.compiled import jit
from sim.placement.reach import follow, misses, pairs_change, reach_change, shift

HOT, WARM, COLD = 0.02, 0.001, 0.0003
"""Temperatures at first, where pairs give way to tokens, and last, in units of balancedness (of a unit touched, where that is
worth more): what one bad move may cost."""
COARSE = 0.75
"""Share of the steps in which reach goes by pairs."""
SWAPS = 0.6
"""Share of exchanges among the proposals."""
SLOPES = 64
"""Exchanges by which a pair's worth is measured."""


@jit
def anneal(x: Any, pull: float, price: float, steps: int, seed: int) -> Any:
    """The best placement found [experts, gpus] bool; `x`, a `Layer`, is left wherever the search ended."""
    np.random.seed(seed)
    best, worth = x.held.copy(), value(x, pull, price)
    scale, coarse = max(1.0, pull), int(COARSE * steps) if pull > 0 else 0
    hot, between = scale * HOT, scale * (WARM if coarse else HOT)
    for exact in (False, True):
        if exact:
            x.miss[:] = misses(x.sets, x.y)
            hot, coarse = between, steps - coarse
        walk(x, best, worth, pull, slope(x) if pull > 0 else 0.0, price, hot, scale * COLD if exact else between, coarse, exact)
    return best


@jit
def value(x: Any, pull: float, price: float) -> float:
    """What is maximised, summed from scratch."""
    found = 0.0
    for s in range(len(x.weight)):
        found += x.weight[s] / x.loads[s, x.top[s]]
    for e in range(len(x.copies)):
        for g in range(len(x.used)):
            if x.held[e, g] and not x.home[e, g]:
                found -= price
    for t in range(len(x.share)):
        for u in range(len(x.miss)):
            found -= pull * x.share[t] * (1.0 - x.miss[u, t])
    return found


@jit
def walk(x: Any, best: Any, worth: float, pull: float, pair: float, price: float, hot: float, cold: float, steps: int, exact: bool) -> None:
    """Moves x while it cools; `best` becomes the best state that is worth more than `worth`, where values are `exact`.

    pair: units touched less for each co-activated pair more.
    """
    gpus = x.held.shape[1]
    at, de, df = np.empty(gpus, np.int64), np.empty(gpus), np.empty(gpus)
    now = value(x, pull, price) if exact else -np.inf
    heat, cooling = hot, (cold / hot) ** (1.0 / max(1, steps))
    for _ in range(steps):
        heat *= cooling
        swap = np.random.random() < SWAPS
        e, f, a, b = propose(x, swap)
        if e < 0:
            continue
        n = exchange(x, e, f, a, b, at, de, df) if swap else replace(x, e, f, a, at, de, df)
        change = balance_change(x, e, f, at, de, df, n) - price * loaded_change(x, e, f, a, b, swap)
        guess = change + pull * pair * pairs_change(x, e, f, at, de, df, n) if pull > 0 else change
        if guess < heat * np.log(np.random.random()):
            continue
        if pull > 0:
            shift(x, e, f, at, de, df, n, 1.0)
            if exact:
                change += pull * reach_change(x, e, f, at, n, False)
                if change - guess < heat * np.log(np.random.random()):
                    shift(x, e, f, at, de, df, n, -1.0)
                    continue
                reach_change(x, e, f, at, n, True)
            follow(x, e, f, at, de, df, n)
        if change < 0 and now > worth:  # kept only when it is about to be left: a copy of every step up would cost more than the steps
            worth = now
            best[:] = x.held
        accept(x, e, f, a, b, at, de, df, n, swap)
        now += change
    if now > worth:
        best[:] = x.held


@jit
def slope(x: Any) -> float:
    """Units touched less for each co-activated pair more: least squares over random exchanges from where x is."""
    at, de, df = np.empty(2, np.int64), np.empty(2), np.empty(2)
    square, product = 0.0, 0.0
    for _ in range(SLOPES):
        e, f, a, b = propose(x, True)
        if e >= 0:
            n = exchange(x, e, f, a, b, at, de, df)
            pairs = pairs_change(x, e, f, at, de, df, n)
            shift(x, e, f, at, de, df, n, 1.0)
            product += pairs * reach_change(x, e, f, at, n, False)
            square += pairs * pairs
            shift(x, e, f, at, de, df, n, -1.0)
    return product / square if square > 0 else 1.0


@jit
def propose(x: Any, swap: bool) -> Any:
    """Experts e, f and GPUs a, b: e leaves a, and f takes its place; e = -1: the draw made no sense."""
    gpus = len(x.used)
    a, b = np.random.randint(gpus), np.random.randint(gpus)
    if len(x.top) and np.random.random() < 0.5:
        a = x.top[np.random.randint(len(x.top))]
    if x.used[a] == 0 or x.used[b] == 0 or (swap and a == b):
        return -1, -1, a, b
    e = x.members[a, np.random.randint(x.used[a])]
    f = x.members[b, np.random.randint(x.used[b])] if swap else np.random.randint(len(x.copies))
    if e == f or x.held[f, a] or (x.held[e, b] if swap else x.copies[e] == 1):
        return -1, -1, a, b
    return e, f, a, b


@jit
def exchange(x: Any, e: int, f: int, a: int, b: int, at: Any, de: Any, df: Any) -> int:
    """Copies of e on a and of f on b change places. Fills GPUs `at` and the changes there of both rows of x."""
    at[0], at[1] = a, b
    de[0], de[1] = -x.x[e, a], x.x[e, a]
    df[0], df[1] = x.x[f, b], -x.x[f, b]
    return 2


@jit
def replace(x: Any, e: int, f: int, a: int, at: Any, de: Any, df: Any) -> int:
    """GPU a gives up its copy of e for one of f: the other copies of e serve more, those of f less."""
    e_share, f_share = 1.0 / (x.copies[e] - 1), 1.0 / (x.copies[f] + 1)
    n = 0
    for g in range(len(x.used)):
        if g == a or x.held[e, g] or x.held[f, g]:
            at[n] = g
            de[n] = -x.x[e, g] if g == a else (e_share - x.x[e, g] if x.held[e, g] else 0.0)
            df[n] = f_share if g == a else (f_share - x.x[f, g] if x.held[f, g] else 0.0)
            n += 1
    return n


@jit
def loaded_change(x: Any, e: int, f: int, a: int, b: int, swap: bool) -> int:
    """Copies that must be loaded more."""
    more = int(x.home[e, a]) - int(x.home[f, a])
    return more + int(x.home[f, b]) - int(x.home[e, b]) if swap else more


@jit
def balance_change(x: Any, e: int, f: int, at: Any, de: Any, df: Any, n: int) -> float:
    """Gain in the weighted balancedness over the scenarios."""
    change = 0.0
    for s in range(len(x.weight)):
        most, hit = 0.0, False
        for i in range(n):
            g = at[i]
            most = max(most, x.loads[s, g] + (x.scenarios[s, e] * de[i] + x.scenarios[s, f] * df[i]) / x.speed[g])
            hit = hit or g == x.top[s]
        if hit:
            most = max(most, most_elsewhere(x.loads[s], at, n))
        else:
            most = max(most, x.loads[s, x.top[s]])
        change += x.weight[s] * (1.0 / most - 1.0 / x.loads[s, x.top[s]])
    return change


@jit
def most_elsewhere(loads: Any, at: Any, n: int) -> float:
    """The largest load of the GPUs that are not among at[:n], which ascend or are two."""
    most, i = 0.0, 0
    low, high = (at[1], at[0]) if n == 2 and at[1] < at[0] else (at[0], at[n - 1])
    for g in range(len(loads)):
        if n == 2:
            if g != low and g != high:
                most = max(most, loads[g])
        elif i < n and at[i] == g:
            i += 1
        else:
            most = max(most, loads[g])
    return most


@jit
def accept(x: Any, e: int, f: int, a: int, b: int, at: Any, de: Any, df: Any, n: int, swap: bool) -> None:
    """The move becomes the state."""
    for s in range(len(x.weight)):
        for i in range(n):
            g = at[i]
            x.loads[s, g] += (x.scenarios[s, e] * de[i] + x.scenarios[s, f] * df[i]) / x.speed[g]
        x.top[s] = x.loads[s].argmax()
    _put(x, a, e, f)
    if swap:
        _put(x, b, f, e)
    else:
        x.copies[e] -= 1
        x.copies[f] += 1
    for i in range(n):
        g = at[i]
        x.x[e, g] = 1.0 / x.copies[e] if x.held[e, g] else 0.0
        x.x[f, g] = 1.0 / x.copies[f] if x.held[f, g] else 0.0


@jit
def _put(x: Any, g: int, out: int, into: int) -> None:
    """GPU g holds `into` where it held `out`."""
    x.held[out, g], x.held[into, g] = False, True
    for i in range(x.used[g]):
        if x.members[g, i] == out:
            x.members[g, i] = into
