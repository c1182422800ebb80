"""What the routers chose: recorded while a run goes on, and replayed from a trace."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from exec.runtime import Record
from exec.state import MicroBatch
from sim.errors import UserError
from sim.models.spec import ModelSpec
from traces.files import Provenance
from traces.routing import Routing, RoutingIndex, Shape


class RoutingRecorder:
    """Collects (batch, experts, weights) of each router call; arrays are kept, not copied."""

    def __init__(self) -> None:
        self._calls: list[tuple[bool, int, int, MicroBatch, NDArray[np.int16], NDArray[np.float32]]] = []

    def record(
        self, task: Record, batch: MicroBatch, experts: NDArray[np.int16], weights: NDArray[np.float32], layer: int | None = None
    ) -> None:
        """layer: whose router it was, where not the task's."""
        decode = task.phase == "decode"
        self._calls.append((decode, task.step if decode else 0, task.layer if layer is None else layer, batch, experts, weights))

    def trace(self, model: ModelSpec, provenance: Provenance) -> Routing:
        """All calls as one trace. Where a pass was repeated, the last call counts."""
        columns: dict[str, Any] = {
            "decode": self._rows(lambda c: c[0], np.bool_),
            "step": self._rows(lambda c: c[1], np.int32),
            "layer": self._rows(lambda c: c[2], np.int16),
            "request_id": _joined([c[3].request_rows for c in self._calls], np.int32),
            "position": _joined([c[3].positions for c in self._calls], np.int32),
            "experts": _joined([c[4] for c in self._calls], np.int16, model.top_k),
            "weights": _joined([c[5] for c in self._calls], np.float32, model.top_k),
        }
        shape = Shape(model.name, model.layers, model.experts, model.top_k)
        return _last_calls(Routing(**columns, shape=shape, provenance=provenance))

    def _rows(self, value: Any, dtype: Any) -> NDArray[Any]:
        lengths = [c[3].rows for c in self._calls]
        return np.repeat(np.array([value(c) for c in self._calls], dtype), lengths)


def _joined(parts: list[NDArray[Any]], dtype: Any, width: int = 0) -> NDArray[Any]:
    empty = np.empty((0, width) if width else 0, dtype)
    return np.concatenate([empty, *parts]).astype(dtype)


def _last_calls(routing: Routing) -> Routing:
    """One row for each (step, layer, request, position): the one that was recorded last."""
    order = np.lexsort((np.arange(len(routing)), routing.position, routing.request_id, routing.layer, routing.step))
    keys = np.stack([routing.step, routing.layer, routing.request_id, routing.position])[:, order]
    last = np.ones(len(order), np.bool_)
    last[:-1] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
    return routing.take(np.sort(order[last]))


def forced(index: RoutingIndex | None, task: Record, batch: MicroBatch) -> NDArray[np.int16] | None:
    """Experts [rows, k] that a trace has for the rows of a task; None: no trace, the router chooses.

    Raises UserError where the trace lacks one of the sequences, or has another number of rows.
    """
    if index is None:
        return None
    found = index.rows(batch.requests, task.phase, task.step, task.layer)
    where = f"routing trace: {task.phase} step {task.step}, layer {task.layer}"
    if found is None:
        which = ", ".join(map(str, batch.requests))
        raise UserError(f"{where}: lacks one of the requests {which}; record it with this workload and scheduler")
    if len(found[0]) != batch.rows:
        raise UserError(f"{where}: has {len(found[0])} rows for {batch.rows} tokens; record it with this workload")
    return found[0]
