"""Jitter: how much longer a launch takes on one rank than on the fastest, drawn for each rank, step and launch.

A delay ratio is 1 + lognormal(mu, sigma). mu and sigma are fitted to the medians and 95th percentiles of a
synchronous all-to-all (FlashDMoE, arXiv 2506.04667, Table 2: total over fastest time): 3.1 and 11.4 on a cloud VM
with 8 V100, 1.09 and 1.32 on a supercomputer with 8 x 4 A100. A log-normal of the ratio itself would draw ratios
below 1. Draws are counter-based, a hash of (seed, rank, step, launch): a draw depends on nothing else, so a task
or a rank more moves no other draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim.errors import UserError, unknown

FITTED = {"supercomputer": (-2.408, 0.771), "vm": (0.742, 0.973)}
"""mu and sigma of ratio - 1."""

NAMES = ("none", *FITTED)

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def uniform(seed: int, *coordinates: ArrayLike) -> NDArray[np.float64]:
    """Numbers in (0, 1), one for each point of the broadcast coordinates (integers), by SplitMix64's finaliser applied once a
    coordinate (Steele, Lea and Flood, OOPSLA 2014)."""
    h = np.full(np.broadcast_shapes(*(np.shape(c) for c in coordinates)) or (1,), seed, np.int64).view(np.uint64)
    for c in coordinates:
        h = _finalise((h ^ np.asarray(c, np.int64).view(np.uint64)) + _GAMMA)
    drawn = (h >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54
    return drawn.reshape(np.broadcast_shapes(*(np.shape(c) for c in coordinates)))


def _finalise(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    h = (h ^ (h >> np.uint64(30))) * _MIX[0]
    h = (h ^ (h >> np.uint64(27))) * _MIX[1]
    return h ^ (h >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class Jitter:
    """A distribution of delay ratios, all at least 1.

    Attributes
    ----------
    lognormal: mu and sigma of ratio - 1; None: none, or `measured`.
    measured: ratios in ascending order; draws are their quantiles, linear between two neighbours.
    """

    name: str
    lognormal: tuple[float, float] | None = None
    measured: Sequence[float] = ()

    @staticmethod
    def named(name: str) -> Jitter:
        """One of NAMES, or a text file of measured ratios, one a line ("#" begins a comment). Raises UserError."""
        if name in FITTED:
            return Jitter(name, FITTED[name])
        if name == "none":
            return Jitter(name)
        if not Path(name).suffix and "/" not in name:
            raise unknown("--jitter", name, NAMES)
        return Jitter(name, measured=_read(Path(name)))

    def ratio(self, seed: int, rank: ArrayLike, step: ArrayLike, launch: ArrayLike) -> NDArray[np.float64]:
        """Delay ratios, in the broadcast shape of rank, step and launch."""
        u = uniform(seed, rank, step, launch)
        if self.lognormal is not None:
            from scipy.special import ndtri

            mu, sigma = self.lognormal
            return np.asarray(1.0 + np.exp(mu + sigma * ndtri(u)))
        if self.measured:
            return np.asarray(np.quantile(np.asarray(self.measured), u))
        return np.ones_like(u)


def _read(path: Path) -> tuple[float, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"--jitter {path}: cannot be read ({e}); a text file with one delay ratio a line is needed") from None
    found = []
    for i, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not 1.0 <= value < 1e6:
            raise UserError(f"--jitter {path}: line {i}: is {text!r}; a delay ratio is a number of at least 1")
        found.append(value)
    if not found:
        raise UserError(f"--jitter {path}: holds no ratio; one a line is needed")
    return tuple(sorted(found))
