"""A placement: which GPUs hold a copy of which expert, checked against the problem that it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.errors import UserError
from sim.placement.problem import Problem

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, slots=True)
class Placement:
    """`held` [layers, experts, gpus] bool: whether the GPU has a copy. Two copies of an expert are never on one GPU."""

    held: Bools

    def __post_init__(self) -> None:
        found = f"{self.held.shape} {self.held.dtype}"
        assert self.held.ndim == 3 and self.held.dtype == np.bool_, f"{found}: must be [layers, experts, gpus] bool"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Placement) and np.array_equal(self.held, other.held)

    __hash__ = None  # type: ignore[assignment]

    @property
    def copies(self) -> NDArray[np.int64]:
        """Copies of each expert [layers, experts]."""
        return np.asarray(self.held.sum(axis=2))

    @property
    def used(self) -> NDArray[np.int64]:
        """Copies on each GPU in each layer [layers, gpus]."""
        return np.asarray(self.held.sum(axis=1))

    def moved(self, current: Placement | None) -> int:
        """Copies to be loaded: held now by a GPU that did not hold them before. All of them where nothing stood before."""
        return int(self.held.sum() if current is None else (self.held & ~current.held).sum())

    def check(self, problem: Problem, whole_layers: bool = False) -> Placement:
        """Itself; asserts that each expert has a copy and no GPU holds more than it can.

        whole_layers: held to the GPUs' whole memory only, not to their slots of each layer (policies that give
        a GPU all of some layers and none of others).
        """
        shape = (problem.layers, problem.experts, len(problem.gpus))
        assert self.held.shape == shape, f"{self.held.shape}: must be {shape}"
        lost = np.argwhere(~self.held.any(axis=2))
        assert not len(lost), f"layer {lost[0][0]} expert {lost[0][1]}: has no copy"
        over = self.used.sum(axis=0) - problem.budget
        assert (over <= 0).all(), f"gpu {over.argmax()}: holds {over.max()} copies more than its memory"
        extra = self.used - problem.gpus.slots
        layer, gpu = np.unravel_index(extra.argmax(), extra.shape)
        assert whole_layers or (extra <= 0).all(), f"layer {layer} gpu {gpu}: holds {extra.max()} copies more than its slots"
        return self

    def to_json(self) -> dict[str, Any]:
        """`{"gpus": G, "experts": E, "layers": [[[expert, ...] of each GPU] of each layer]}`."""
        layers, experts, gpus = self.held.shape
        rows = [[np.flatnonzero(self.held[layer, :, g]).tolist() for g in range(gpus)] for layer in range(layers)]
        return {"gpus": gpus, "experts": experts, "layers": rows}

    @classmethod
    def from_json(cls, value: Any, where: str) -> Placement:
        """What `to_json` wrote. Raises `UserError` that names the field."""
        if not isinstance(value, dict) or not {"gpus", "experts", "layers"} <= set(value):
            raise UserError(f"{where}: is no placement; fields gpus, experts and layers are needed")
        try:
            gpus, experts = int(value["gpus"]), int(value["experts"])
            held = np.zeros((len(value["layers"]), experts, gpus), np.bool_)
            for layer, row in enumerate(value["layers"]):
                _fill(held[layer], row, f"{where}: field layers[{layer}]")
        except (TypeError, ValueError) as e:
            if isinstance(e, UserError):
                raise
            raise UserError(f"{where}: is no placement: {e}") from None
        return cls(held)


def _fill(held: Bools, row: Sequence[Sequence[int]], where: str) -> None:
    experts, gpus = held.shape
    if len(row) != gpus:
        raise UserError(f"{where}: has {len(row)} GPUs; field gpus says {gpus}")
    for g, copies in enumerate(row):
        if any(not isinstance(e, int) or not 0 <= e < experts for e in copies) or len(set(copies)) < len(copies):
            raise UserError(f"{where}[{g}]: must be different experts 0 to {experts - 1}")
        held[copies, g] = True
    lost = np.flatnonzero(~held.any(axis=1))
    if len(lost):
        raise UserError(f"{where}: expert {lost[0]} has no copy")
