"""Forecasts of a series from its past: Holt's linear trend, damped, with the spread of its errors.

Holt (1957), damped by Gardner and McKenzie (1985); recurrences as ETS(A,Ad,N) and the variance of a forecast h steps ahead as in
Hyndman, Koehler, Ord and Snyder, "Forecasting with Exponential Smoothing" (2008), chapter 2 and table 6.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True, slots=True)
class Holt:
    """alpha, beta: weights of the newest value in level and trend; phi: share of the trend that a step keeps."""

    alpha: float = 0.4
    beta: float = 0.1
    phi: float = 0.9

    def forecasts(self, series: Sequence[float], steps: int, quantile: float) -> Iterator[float]:
        """After each value of the series, from that value and those before: the quantile of the value `steps` ahead (errors taken as
        normal), or of any nearer one if that is more; never below 0."""
        level, trend, squares = series[0] if series else 0.0, 0.0, 0.0
        z = NormalDist().inv_cdf(quantile)
        for i, value in enumerate(series):
            error = value - (level + self.phi * trend)
            squares += error * error if i else 0.0
            level, trend = level + self.phi * trend + self.alpha * error, self.phi * trend + self.alpha * self.beta * error
            sigma = math.sqrt(squares / i) if i else 0.0
            yield max(0.0, *(self._ahead(level, trend, sigma * z, h) for h in range(1, steps + 1)))

    def _ahead(self, level: float, trend: float, spread: float, h: int) -> float:
        damped = [self.phi**j for j in range(1, h + 1)]
        weights = (self.alpha * (1.0 + self.beta * sum(damped[:j])) for j in range(1, h))
        return level + trend * sum(damped) + spread * math.sqrt(1.0 + sum(c * c for c in weights))
