"""Whose clock says what: offsets between the clocks of ranks and of the controller, by ping-pong.

The controller reads its clock, the rank reads its own while it answers, the controller reads again. If
both ways took equally long, the rank's reading belongs to the middle; it cannot be off by more than
half of the round trip. The shortest of many round trips bounds it best (Cristian 1989).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Offset(NamedTuple):
    """A rank's clock minus the controller's, in ns, at `at_ns` of the controller's clock; off by `uncertainty_ns` at most."""

    offset_ns: int
    uncertainty_ns: int
    at_ns: int


def estimate(samples: Iterable[tuple[int, int, int]]) -> Offset:
    """From (sent, answered, received): the controller's, the rank's, and again the controller's clock."""
    sent, answered, received = min(samples, key=lambda s: s[2] - s[0])
    return Offset(answered - (sent + received) // 2, (received - sent + 1) // 2, (sent + received) // 2)


def drift_corrected_ps(ps: int, origin_ns: int, before: Offset, after: Offset) -> int:
    """A time of a rank on the controller's clock, ps since `origin_ns`.

    `ps` was stamped as if the offset stayed what it was `before` the run; between there and `after` it is
    taken to change evenly. Where the two estimates do not contradict each other, no drift is corrected.
    """
    moved = after.offset_ns - before.offset_ns
    if abs(moved) <= before.uncertainty_ns + after.uncertainty_ns or after.at_ns == before.at_ns:
        return ps
    share = (origin_ns + ps / 1000 - before.at_ns) / (after.at_ns - before.at_ns)
    return ps - round(1000 * moved * share)
