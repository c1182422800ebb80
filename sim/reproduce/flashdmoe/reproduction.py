"""Everything at once, as one object that the page and JSON are made of."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sim.ep.study import compile_engine
from sim.reproduce.flashdmoe import calibration, cells, low_latency, profile, published, score


@dataclass(frozen=True, slots=True)
class Reproduction:
    """calibration: "paper" or "healthy", of the bars and sweeps. The rest is healthy always."""

    calibration: str
    bars: list[cells.Bar]
    sweeps: list[cells.Sweep]
    rerun: list[cells.Rerun]
    contests: list[cells.Contest]
    low_latency: list[low_latency.Exchanged]
    profile: profile.Profile
    wall_s: float

    def as_dict(self) -> dict[str, Any]:
        """The object of `reproduce flashdmoe --json`."""
        return {
            "calibration": self.calibration,
            "bars": [b.as_dict() for b in self.bars],
            "within_15_percent": score.within(self.bars),
            "order": score.order(self.bars),
            "weak_scaling": score.weak_scaling(self.bars),
            "experts": [{**asdict(s), "growth": s.growth} for s in self.sweeps],
            "fitted": [c._asdict() for c in calibration.CONSTANTS] if self.calibration == "paper" else [],
            "rerun": [{**asdict(r), "error": r.error} for r in self.rerun],
            "fusion": [{**asdict(c), "gain": c.gain} for c in self.contests],
            "low_latency": [{**asdict(x), "error": x.error} for x in self.low_latency],
            "profile": {**asdict(self.profile), "published_hidden": published.HIDDEN_IN_PROFILE},
            "wall_s": self.wall_s,
        }  # fmt: skip


def reproduce(name: str, say: Callable[[str], None] = lambda text: None) -> Reproduction:
    """name: of a calibration. `say` hears what is done."""
    compile_engine()
    began = time.perf_counter()
    bars, sweeps = list(cells.bars(name, say)), list(cells.sweeps(name, say))
    return Reproduction(
        name, bars, sweeps, list(cells.rerun()), list(cells.contests(say)), list(low_latency.table(say)), profile.simulate(),
        time.perf_counter() - began,
    )  # fmt: skip
