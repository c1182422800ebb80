"""Local search over the placement of one layer: simulated annealing on balance under many loads and on tokens' reach.

What is maximised is  sum over scenarios of weight x balancedness  -  pull x units touched by a token,  balancedness
being the ideal load over the largest. A move either exchanges two copies between two GPUs, or lets a GPU give up one
copy of an expert that has others for a copy of an expert that it lacks; used slots stay as many. With a price, every
copy that must be loaded costs that much balancedness.

Annealing after Kirkpatrick, Gelatt and Vecchi (Science 220, 1983) with geometric cooling; half of the proposals start
at the busiest GPU of a scenario. The number of steps is fixed beforehand: no clock decides about a placement.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.placement.compiled import jit

HOT, COLD = 0.02, 0.0003
"""First and last temperature, in units of balancedness (of a unit touched, where that is worth more): what one bad move may cost."""
SWAPS = 0.6
"""Share of exchanges among the proposals."""


@jit
def anneal(x: Any, pull: float, price: float, steps: int, seed: int) -> Any:
    """The best placement found [experts, gpus] bool; `x`, a `Layer`, is left wherever the search ended."""
    np.random.seed(seed)
    gpus = x.held.shape[1]
    at, de, df = np.empty(gpus, np.int64), np.empty(gpus), np.empty(gpus)
    best, best_gain, gain = x.held.copy(), 1e-12, 0.0
    heat, cooling = HOT * max(1.0, pull), (COLD / HOT) ** (1.0 / max(1, steps))
    for _ in range(steps):
        heat *= cooling
        swap = np.random.random() < SWAPS
        e, f, a, b = propose(x, swap)
        if e < 0:
            continue
        n = exchange(x, e, f, a, b, at, de, df) if swap else replace(x, e, f, a, at, de, df)
        least = heat * np.log(np.random.random())
        change = balance_change(x, e, f, at, de, df, n) - price * loaded_change(x, e, f, a, b, swap)
        if change + pull * (x.mass[e] + x.mass[f]) < least:
            continue
        if pull > 0:
            shift(x, e, f, at, de, df, n, 1.0)
            change += pull * reach_change(x, e, f, at, n, False)
            if change < least:
                shift(x, e, f, at, de, df, n, -1.0)
                continue
            reach_change(x, e, f, at, n, True)
        if change < 0 and gain > best_gain:  # kept only when it is about to be left: a copy of every step up would cost more than the steps
            best_gain = gain
            best[:] = x.held
        accept(x, e, f, a, b, at, de, df, n, swap)
        gain += change
    if gain > best_gain:
        best[:] = x.held
    return best


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
def shift(x: Any, e: int, f: int, at: Any, de: Any, df: Any, n: int, sign: float) -> None:
    """The rows of y follow the move, or go back."""
    for i in range(n):
        x.y[x.unit[at[i]], e] += sign * de[i]
        x.y[x.unit[at[i]], f] += sign * df[i]


@jit
def reach_change(x: Any, e: int, f: int, at: Any, n: int, keep: bool) -> float:
    """Units that a token touches less, on average, now that the rows of y have moved; `keep`: remember it."""
    gain = 0.0
    for i in range(n):
        u = x.unit[at[i]]
        again = False
        for j in range(i):
            again = again or x.unit[at[j]] == u
        if again:
            continue
        row, left = x.y[u], x.miss[u]
        for one in (e, f):
            for q in range(x.first[one], x.first[one + 1]):
                t = x.where[q]
                both, miss = False, 1.0
                for k in x.sets[t]:
                    miss *= 1.0 - row[k]
                    both = both or (one == f and k == e)
                if not both:
                    gain += x.share[t] * (miss - left[t])
                    if keep:
                        left[t] = miss
    return gain


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
