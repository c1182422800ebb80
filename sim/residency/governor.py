"""Governor: whether prefetching pays, found by trying.

Bytes fetched ahead use the link that misses wait for, and nothing in a hit rate tells what that costs. So blocks
of steps with and without prefetch alternate, and the faster way is kept for a while; then it is tried again, each
time after twice as long.
"""

from __future__ import annotations

from sim.tasks import Time

BLOCK = 8
"""Steps of one block."""
BLOCKS = 8
"""Blocks of one trial, half of them with prefetch."""
FIRST, LAST = 256, 4096
"""Steps for which the first decision holds, and at most any."""
MARGIN = 0.005
"""Share of a token's time that must be won."""


class Governor:
    """Told the end of each step, it says whether the next one may prefetch (`on`).

    turned: (step, on) of every decision.
    """

    def __init__(self) -> None:
        self.on = True
        self.turned: list[tuple[int, bool]] = []
        self._step = 0
        self._hold = FIRST
        self._since: Time | None = None
        self._left = BLOCK * BLOCKS
        self._trying = True
        self._spent = {True: 0.0, False: 0.0}
        self._tokens = {True: 0, False: 0}

    def ended(self, now: Time, tokens: int) -> None:
        """A step of so many tokens ended."""
        if self._since is not None and self._trying and self._left % BLOCK != BLOCK - 1:  # a block's first step still feels the one before
            self._spent[self.on] += now - self._since
            self._tokens[self.on] += tokens
        self._since = now
        self._step += 1
        self._left -= 1
        if self._left == 0:
            self._decide() if self._trying else self._try()
        elif self._trying and self._left % BLOCK == 0:
            self.on = not self.on

    def _decide(self) -> None:
        with_, without = (self._spent[on] / max(1, self._tokens[on]) for on in (True, False))
        self.on = with_ < (1.0 - MARGIN) * without
        self.turned.append((self._step, self.on))
        self._trying, self._left = False, self._hold
        self._hold = min(LAST, 2 * self._hold)

    def _try(self) -> None:
        self.on, self._trying, self._left = True, True, BLOCK * BLOCKS
        self._spent, self._tokens = {True: 0.0, False: 0.0}, {True: 0, False: 0}
