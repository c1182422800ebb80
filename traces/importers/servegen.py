"""ServeGen's client pools (arXiv 2505.09999): rates, burstiness and lengths of real clients, drawn into requests.

The pool holds fitted statistics and no requests, so what comes out is marked synthetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.errors import TraceError
from traces.importers.base import Source, check_rows
from traces.importers.source import INT32_MAX, field, json_file
from traces.requests import Requests

WINDOW_S = 600
"""A client's rate and burstiness hold for so long."""


def servegen(source: Source) -> Requests:
    """{client: {"trace": [[t_s, rate_rps, cv, family, shape, scale], ...], "dataset": {t_s: {"input_tokens": {tokens: share},
    "output_tokens": ...}}}}.

    In each window of 600 s a client sends rate x 600 requests. Their gaps are drawn from the
    window's family ("Gamma" or "Weibull" with its shape; "" from the coefficient of variation as
    Gamma) and scaled so that they fill the window: the rate is kept exactly, the burstiness within
    the window as well. Lengths are drawn from the histograms of the time of day.
    Each (seed, client, window) has its own random numbers, so that no draw moves another.
    """
    clients = json_file(source.path)
    if not isinstance(clients, dict) or not clients:
        raise TraceError(f"{source.path}: holds no clients; an object of client -> trace and dataset is needed")
    o = source.options
    begin = 0.0 if o.start_hour is None else o.start_hour * 3600
    end = math.inf if o.hours is None else begin + o.hours * 3600
    seed = 0 if o.seed is None else o.seed
    parts = []
    for number, (name, client) in enumerate(clients.items()):
        where = f"{source.path}: client {name}"
        if not isinstance(client, dict):
            raise TraceError(f"{where}: holds a {type(client).__name__}; an object with trace and dataset is needed")
        parts.extend(_client(client, where, number, begin, end, seed))
    if not parts:
        raise TraceError(f"{source.path}: no client has a window in hours {begin / 3600:g} to {end / 3600:g}")
    time, prompt, output = (np.concatenate(c) for c in zip(*parts, strict=True))
    order = np.argsort(time, kind="stable")
    check_rows(source, len(order))
    facts = {"seed": str(seed), "clients": str(len(clients))}
    return Requests(
        request_id=np.arange(len(order), dtype=np.int64), arrival_ns=time[order], prompt_tokens=prompt[order], output_tokens=output[order],
        provenance=source.provenance("drawn from ServeGen's clients (fitted production statistics)", "synthetic", facts),
    )  # fmt: skip


def _client(client: Mapping[str, Any], where: str, number: int, begin: float, end: float, seed: int) -> list[tuple[NDArray[Any], ...]]:
    windows = field(client, ("trace",), where)
    lengths = _histograms(field(client, ("dataset",), where), where)
    parts: list[tuple[NDArray[Any], ...]] = []
    if not isinstance(windows, list):
        raise TraceError(f"{where}: field trace: holds a {type(windows).__name__}; a list of windows is needed")
    for index, window in enumerate(windows):
        at = f"{where}: field trace[{index}]"
        start, rate, cv, family, shape = _window(window, at)
        if not begin <= start < end or rate == 0:
            continue
        rng = np.random.default_rng([seed, number, index])
        n = int(rate * WINDOW_S + 0.5)
        if n > 10_000_000:
            raise TraceError(f"{at}: a rate of {rate} requests/s is not plausible")
        gaps = _gaps(rng, n + 1, cv, family, shape, at)
        total = gaps.sum()
        offsets = np.cumsum(gaps)[:-1] / total if total > 0 else np.linspace(0, 1, n, endpoint=False)
        times = np.round((start - begin + offsets * WINDOW_S) * 1e9).astype(np.int64)
        held = lengths[max(t for t in lengths if t <= max(start, min(lengths)))]
        parts.append((times, *(rng.choice(values, n, p=shares).astype(np.int32) for values, shares in held)))
    return parts


def _window(window: Any, where: str) -> tuple[float, float, float, str, float]:
    if not isinstance(window, list) or len(window) < 5 or not isinstance(window[3], str):
        raise TraceError(f"{where}: has {str(window)[:60]}; must be [t_s, rate, cv, family, shape, scale]")
    numbers = [window[0], window[1], window[2], window[4]]
    if any(isinstance(x, bool) or not isinstance(x, (int, float)) or not math.isfinite(x) or x < 0 for x in numbers):
        raise TraceError(f"{where}: has {str(window)[:60]}; must be finite numbers, 0 or more")
    if window[3] not in ("", "Gamma", "Weibull"):
        raise TraceError(f"{where}: has the family {window[3][:20]!r}; must be 'Gamma', 'Weibull' or ''")
    return float(window[0]), float(window[1]), float(window[2]), window[3], float(window[4])


def _gaps(rng: np.random.Generator, n: int, cv: float, family: str, shape: float, where: str) -> NDArray[np.float64]:
    """Gaps up to a common factor."""
    if family and shape <= 0:
        raise TraceError(f"{where}: has the shape {shape}; must be above 0")
    if family == "Gamma":
        return rng.gamma(shape, size=n)
    if family == "Weibull":
        return rng.weibull(shape, size=n)
    return rng.gamma(1 / cv**2, size=n) if cv > 0 else np.ones(n)


def _histograms(dataset: Any, where: str) -> dict[float, list[tuple[NDArray[np.int64], NDArray[np.float64]]]]:
    """Time of day [s] -> (values, shares) of prompt and output lengths; times without both are left out."""
    if not isinstance(dataset, dict):
        raise TraceError(f"{where}: field dataset: holds a {type(dataset).__name__}; an object is needed")
    found = {}
    for time, kinds in dataset.items():
        if isinstance(kinds, dict) and kinds.get("input_tokens") and kinds.get("output_tokens"):
            at = f"{where}: field dataset.{time}"
            if not isinstance(time, str) or not time.isdecimal():
                raise TraceError(f"{at}: is no time of day in whole seconds")
            found[float(time)] = [_histogram(kinds[n], f"{at}.{n}") for n in ("input_tokens", "output_tokens")]
    if not found:
        raise TraceError(f"{where}: field dataset: has no time of day with input_tokens and output_tokens")
    return found


def _histogram(shares: Any, where: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    try:
        values = np.array([int(v) for v in shares], np.int64)
        weights = np.array([float(w) for w in shares.values()], np.float64)
    except (ValueError, TypeError, AttributeError, OverflowError) as e:
        raise TraceError(f"{where}: must be an object of token count -> share: {e}") from e
    if (values < 0).any() or (values > INT32_MAX).any() or not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
        raise TraceError(f"{where}: token counts and shares must be 0 or more and finite, and the shares not all 0")
    return np.maximum(values, 1), weights / weights.sum()
