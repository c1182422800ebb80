"""A recorded routing trace as the source of expert loads, checked against the job that it is to drive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sim.errors import UserError
from sim.events import Request
from sim.models.spec import ModelSpec
from traces.routing import RoutingIndex


class TraceRouting:
    """`sim.costs.Routing` from a Parquet file.

    Attributes
    ----------
    hits, misses: router calls that the trace told, and that it did not; the latter are priced by expected loads.
    """

    def __init__(self, path: Path) -> None:
        """Raises `traces.errors.TraceError` for a file that is no routing trace."""
        self.path = path
        self.hits = self.misses = 0
        self._index = RoutingIndex(path)

    def check(self, model: ModelSpec, requests: Sequence[Request]) -> None:
        """Raises `UserError` where the trace is of another model shape or empty, or its prompts are not those of the run."""
        shape = self._index.shape
        for name, found, needed in (
            ("k", shape.k, model.top_k), ("experts", shape.experts, model.experts), ("layers", shape.layers, model.layers),
        ):  # fmt: skip
            if found != needed:
                raise UserError(f"--trace {self.path}: metadata {name}: is {found}; a trace of {model.name} has {needed}")
        if not len(self._index.routing):
            raise UserError(f"--trace {self.path}: holds no rows; a trace of a whole run is needed")
        prompts = self._prompt_tokens()
        for r in requests:
            found = prompts.get(r.request_id, 0)
            if found != r.prompt_tokens:
                raise UserError(
                    f"--trace {self.path}: request {r.request_id} has {found} prompt tokens there and {r.prompt_tokens} in this run; "
                    "give the workload, seed and batch that the trace was recorded with"
                )

    def _prompt_tokens(self) -> dict[int, int]:
        r = self._index.routing
        prompt = ~r.decode & (r.layer == r.layer.min())
        ids, counts = np.unique(r.request_id[prompt], return_counts=True)
        return dict(zip(ids.tolist(), counts.tolist(), strict=True))

    def expert_tokens(self, requests: tuple[int, ...], phase: str, step: int, layer: int) -> tuple[int, ...] | None:
        """Rows of each expert [experts]; None where the trace does not tell."""
        rows = self._index.expert_tokens(requests, phase, step, layer)
        self.hits += rows is not None
        self.misses += rows is None
        return rows
