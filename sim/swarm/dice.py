"""Single counter-based draws: `sim.jitter.uniform` for one point, without numpy's cost of a call (a hundred times as fast)."""

from __future__ import annotations

_MASK = (1 << 64) - 1


def uniform(seed: int, *coordinates: int) -> float:
    """In (0, 1): the number that `sim.jitter.uniform` draws for this point."""
    h = seed & _MASK
    for c in coordinates:
        h = (h ^ (c & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        h = (h ^ (h >> 27)) * 0x94D049BB133111EB & _MASK
        h ^= h >> 31
    return (h >> 11) * 2.0**-53 + 2.0**-54


def below(limit: int, seed: int, *coordinates: int) -> int:
    """A whole number in [0, limit)."""
    return int(uniform(seed, *coordinates) * limit)
