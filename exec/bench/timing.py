"""Samples of several variants in turn: what disturbs the computer for a while disturbs them all alike."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from exec.bench.case import Case, Measured, Work

SAMPLE_S = 2e-3
"""A sample repeats a call until it takes about so long: longer than a clock's grain and a scheduler's tick."""

LEAST_ROUNDS = 5


def measure(case: Case, rounds: int, timed: Callable[[Work, int], float] | None = None) -> Measured:
    """`rounds` samples of each variant, one round after the other, each round beginning with another variant.

    timed(work, n): seconds of n calls (default: by this computer's clock).
    """
    clock = timed or by_clock
    for work in case.variants.values():
        work()  # compiles, loads, allocates
    if case.check is not None:
        case.check()
    repeats = {name: _repeats(work, clock) for name, work in case.variants.items()}
    found = Measured(case, {name: [] for name in case.variants})
    names = list(case.variants)
    for r in range(max(rounds, LEAST_ROUNDS)):
        for k in range(len(names)):
            name = names[(r + k) % len(names)]
            seconds = clock(case.variants[name], repeats[name])
            found.samples[name].append(seconds / repeats[name] / case.calls)
    return found


def by_clock(work: Work, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        work()
    return time.perf_counter() - began


def _repeats(work: Work, clock: Callable[[Work, int], float]) -> int:
    """Calls of one sample."""
    once = min(clock(work, 1) for _ in range(3))
    return max(1, round(SAMPLE_S / max(once, 1e-9)))


def with_threads(count: int, work: Callable[[], object]) -> None:
    """Run `work` on a thread whose kernels, ours and torch's, use `count` threads. Raises what it raises."""
    from exec.products import set_threads

    errors: list[BaseException] = []

    def target() -> None:
        try:
            set_threads(count)
            work()
        except BaseException as error:
            errors.append(error)

    runner = threading.Thread(target=target, name="bench")
    runner.start()
    runner.join()
    if errors:
        raise errors[0]
