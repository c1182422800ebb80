"""A case: one op at one shape on one device, what does it and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kernels.cost import Cost

Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """Attributes
    ----------
    variants: what to time, by name; the first is ours.
    cost: FLOPs and bytes of one call, by the work formula. calls: times that one call does the work.
    check: raises AssertionError where the variants disagree; called once, after each has run.
    """

    op: str
    shape: str
    dtype: str
    threads: int
    cost: Cost
    variants: dict[str, Work]
    check: Work | None = None
    calls: int = 1


@dataclass(frozen=True)
class Ceilings:
    """What this device reaches at best, measured in the same run: FLOP/s of a large product and bytes/s of streaming,
    by dtype and threads."""

    flops_per_s: dict[str, float]
    bytes_per_s: dict[int, float]

    def raise_to(self, other: Ceilings) -> None:
        """Take over what another measurement found higher."""
        for mine, theirs in ((self.flops_per_s, other.flops_per_s), (self.bytes_per_s, other.bytes_per_s)):
            mine.update({k: max(v, mine.get(k, 0.0)) for k, v in theirs.items()})  # type: ignore[attr-defined, call-overload]

    def flops(self, dtype: str, threads: int) -> float:
        return self.flops_per_s.get(f"{dtype}/{threads}", 0.0)

    def bandwidth(self, threads: int) -> float:
        return self.bytes_per_s.get(threads, 0.0)


def _over() -> None:
    raise AssertionError("this case was measured and let go")


@dataclass
class Measured:
    """Seconds of each call that was timed, by variant."""

    case: Case
    samples: dict[str, list[float]] = field(default_factory=dict)

    def freed(self) -> Measured:
        """Without what the case works on: its operands may be large."""
        return Measured(replace(self.case, variants=dict.fromkeys(self.case.variants, _over), check=None), self.samples)

    def rows(self, ceilings: Ceilings) -> list[dict[str, Any]]:
        """One row a variant. speedup: the variant's median time over ours."""
        c = self.case
        ours = float(np.median(self.samples[next(iter(c.variants))]))
        rows = []
        for name, samples in self.samples.items():
            median = float(np.median(samples))
            flops, moved = c.cost.flops / median, c.cost.bytes / median
            peak, width = ceilings.flops(c.dtype, c.threads), ceilings.bandwidth(c.threads)
            rows.append({
                "op": c.op, "shape": c.shape, "dtype": c.dtype, "threads": c.threads, "variant": name, "median_s": median,
                "mean_s": float(np.mean(samples)), "stddev_s": float(np.std(samples, ddof=1)) if len(samples) > 1 else 0.0,
                "flops_per_s": flops, "bytes_per_s": moved, "of_flops_ceiling": flops / peak if peak else None,
                "of_bytes_ceiling": moved / width if width else None, "ours_faster": median / ours, "samples_s": list(samples),
            })  # fmt: skip
        return rows


def floats(*shape: int) -> np.ndarray:
    """Independent normals, float32; the same for the same shape."""
    return np.random.default_rng(len(shape) + sum(shape)).standard_normal(shape, dtype=np.float32)


def agree(found: Any, wanted: Any, within: float = 1e-3) -> Work:
    """A check that two results agree, each computed by a call or given."""

    def check() -> None:
        a, b = (np.asarray(x() if callable(x) else x) for x in (found, wanted))
        error = np.abs(a - b).max() / np.abs(b).max()
        assert error < within, f"results differ by {error:.2e} of the largest value"

    return check
