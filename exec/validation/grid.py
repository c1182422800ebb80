"""The configurations that `exec validate` runs on both clocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from exec.devices import DeviceName
from sim import configuration

RATE_LANES = ("h2d", "d2h", "pin")

DISTURBED = 0.65
"""A session of which a larger share of the runs was disturbed tells nothing: the calmest third, which counts whatever it was
like, is about all that is left of each setup."""


class Case(BaseModel):
    """One run. Rates are bytes/s; 0 means native copies, as fast as this computer does them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "tiny-mixtral"
    scheduler: str
    prompt: int = Field(gt=0, le=4096, description="longest prompt of the batch, in tokens")
    gen: int = Field(gt=1, le=4096)
    batch: int = Field(gt=0)
    microbatch: int = Field(gt=0)
    ragged: bool = Field(True, description="prompt lengths between half of `prompt` and all of it")
    h2d: float | None = Field(None, ge=0, description="bytes/s of the link to the device; none: the rig's")
    d2h: float | None = Field(None, ge=0)
    pin: float | None = Field(None, ge=0)
    seed: int = 0

    @property
    def rates(self) -> dict[str, float]:
        return {lane: rate for lane in RATE_LANES if (rate := getattr(self, lane)) is not None}

    def without_scheduler(self) -> tuple[Any, ...]:
        """What two cases share that may be ranked against each other."""
        return tuple(sorted((k, v) for k, v in self.model_dump().items() if k != "scheduler" and v is not None))


class Grid(BaseModel):
    """Cases, each field a value or a list of values; lists expand to their product."""

    model_config = ConfigDict(extra="forbid")
    repeats: int = Field(3, ge=1, le=100)
    cases: list[dict[str, Any]] = Field(min_length=1)


def product(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination of the values that a row lists."""
    values = [v if isinstance(v, list) else [v] for v in row.values()]
    return (dict(zip(row, combination, strict=True)) for combination in itertools.product(*values))


def load_grid(path: Path | None, device: DeviceName = DeviceName.cpu) -> tuple[int, list[Case]]:
    """(repeats, cases) of a YAML grid; without a path, the one that comes with Tandem for the device.

    Raises UserError naming the file and each wrong field.
    """
    path = path or Path(__file__).with_name("grid.yaml" if device is DeviceName.cpu else f"grid_{device}.yaml")
    grid = configuration.load(path, Grid)
    return grid.repeats, [configuration.parse(f"{path}: case {i}", one, Case) for i, row in enumerate(grid.cases) for one in product(row)]
