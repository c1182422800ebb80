"""Length distributions of prompts and generations, in tokens.

Every draw is a function of (seed, stream, request number), by a counter-based generator: another
request more moves no other's length.
"""

from __future__ import annotations

from functools import cached_property
from statistics import NormalDist
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

Lengths = NDArray[np.int64]
_NORMAL = NormalDist()


class _Distribution(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fixed(_Distribution):
    """Every length alike."""

    kind: Literal["fixed"] = "fixed"
    tokens: int = Field(gt=0)

    @property
    def longest(self) -> int:
        return self.tokens

    @property
    def average(self) -> float:
        return float(self.tokens)

    def draw(self, count: int, seed: int, stream: int) -> Lengths:
        return np.full(count, self.tokens, np.int64)


class Values(_Distribution):
    """Lengths listed one by one, taken in order and round again."""

    kind: Literal["values"] = "values"
    tokens: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)

    @property
    def longest(self) -> int:
        return max(self.tokens)

    @property
    def average(self) -> float:
        return sum(self.tokens) / len(self.tokens)

    def draw(self, count: int, seed: int, stream: int) -> Lengths:
        return np.resize(np.array(self.tokens, np.int64), count)


class Uniform(_Distribution):
    """Independent draws, each length from `min` to `max` equally likely."""

    kind: Literal["uniform"] = "uniform"
    min: int = Field(gt=0)
    max: int = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self

    @property
    def longest(self) -> int:
        return self.max

    @property
    def average(self) -> float:
        return (self.min + self.max) / 2

    def draw(self, count: int, seed: int, stream: int) -> Lengths:
        u = uniforms(count, seed, stream)
        return self.min + np.minimum((u * (self.max - self.min + 1)).astype(np.int64), self.max - self.min)


class LogNormal(_Distribution):
    """Log-normal lengths cut to [min, max], whose mean over the quantiles is `mean`.

    `sigma` is the standard deviation of the logarithm. `from_max`: what is log-normal is not the
    length but the distance (max + 1 - length), for corpora whose prompts crowd below a limit.

    `distinct` lengths stand at the mid-quantiles (i + 0.5) / distinct; the last of them is set to
    `max` and single tokens are shifted until the mean is exact. They are a corpus of so many
    prompts: n requests are the corpus over and over, each round in another seeded order. Without
    `distinct`, each length is drawn on its own.
    """

    kind: Literal["lognormal"] = "lognormal"
    mean: float = Field(gt=0)
    min: int = Field(1, gt=0)
    max: int = Field(gt=0)
    sigma: float = Field(gt=0, le=3)
    from_max: bool = False
    distinct: int | None = Field(None, ge=2, le=100_000)

    @model_validator(mode="after")
    def _reachable(self) -> LogNormal:
        if not self.min < self.mean < self.max:
            raise ValueError(f"mean {self.mean:g} must lie between min {self.min} and max {self.max}")
        if self.distinct is not None and (self.distinct - 1) * self.min + self.max > round(self.mean * self.distinct):
            raise ValueError(f"mean {self.mean:g} cannot be reached by {self.distinct} lengths of which one is {self.max}; take more")
        return self

    @property
    def longest(self) -> int:
        return self.max

    @property
    def average(self) -> float:
        return self.mean

    def draw(self, count: int, seed: int, stream: int) -> Lengths:
        if self.distinct is None:
            return self._at(_deviates(uniforms(count, seed, stream)), self._location)
        rounds = -(-count // self.distinct)
        order = [_generator(seed, stream, r).permutation(self.distinct) for r in range(rounds)]
        return self.corpus[np.concatenate(order)[:count]] if order else np.empty(0, np.int64)

    @cached_property
    def corpus(self) -> Lengths:
        """The distinct lengths, ascending; their mean is `mean` to within 1 / distinct."""
        assert self.distinct is not None
        lengths = np.sort(self._at(_deviates(_quantiles(self.distinct)), self._location))
        lengths[-1] = self.max
        surplus = int(lengths.sum()) - round(self.mean * self.distinct)
        step = -1 if surplus > 0 else 1
        while surplus:
            room = np.flatnonzero((lengths[:-1] > self.min) if step < 0 else (lengths[:-1] < self.max))
            chosen = room[np.linspace(0, len(room) - 1, min(abs(surplus), len(room))).astype(np.int64)]
            lengths[np.unique(chosen)] += step
            surplus += step * len(np.unique(chosen))
        return np.sort(lengths)

    @cached_property
    def _location(self) -> float:
        """Mean of the logarithm, by bisection over the cut distribution's mean."""
        z = _deviates(_quantiles(self.distinct or 4096))
        low, high = -5.0, 25.0
        for _ in range(60):
            middle = (low + high) / 2
            above = self._at(z, middle).mean() > self.mean
            low, high = (low, middle) if above != self.from_max else (middle, high)
        return (low + high) / 2

    def _at(self, z: NDArray[np.float64], location: float) -> Lengths:
        """Lengths at standard normal deviates."""
        x = np.exp(np.minimum(location + self.sigma * z, 40.0))
        lengths = np.rint(self.max + 1 - x if self.from_max else x)
        clipped: Lengths = np.clip(lengths, self.min, self.max).astype(np.int64)
        return clipped


Distribution = Annotated[Fixed | Values | Uniform | LogNormal, Field(discriminator="kind")]


def uniforms(count: int, seed: int, stream: int) -> NDArray[np.float64]:
    """Numbers in [0, 1), the i-th a function of (seed, stream, i) only."""
    return _generator(seed, stream).random(count)


def _generator(seed: int, stream: int, part: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, part]))


def _quantiles(count: int) -> NDArray[np.float64]:
    return (np.arange(count) + 0.5) / count


def _deviates(u: NDArray[np.float64]) -> NDArray[np.float64]:
    tiny = 2.0**-54
    return np.array([_NORMAL.inv_cdf(min(max(p, tiny), 1 - tiny)) for p in u.tolist()], np.float64)
