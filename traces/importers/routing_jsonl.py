"""Routing as JSON Lines: a line for each token of a layer, or for each batch of a layer."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.errors import TraceError
from traces.importers.base import RoutingStream, Source, check_rows, router
from traces.importers.source import count, json_lines, whole_array
from traces.importers.source import field as of
from traces.routing_file import Routing

_REQUEST = ("request_id", "sequence_id", "seq_id", "sample_id")


@dataclass(slots=True)
class _Rows:
    """Rows as they come in: [n] each, experts and weights [n x k]."""

    k: int = 0
    request: array[int] = field(default_factory=lambda: array("l"))
    position: array[int] = field(default_factory=lambda: array("l"))
    layer: array[int] = field(default_factory=lambda: array("l"))
    experts: list[NDArray[np.int16]] = field(default_factory=list)
    weights: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, request: Any, position: Any, layer: int, experts: NDArray[np.int64], weights: NDArray[np.float32], where: str) -> None:
        """Rows of one line: request and position [rows] or one number, experts and weights [rows, k]."""
        n, k = experts.shape
        self.k = self.k or k
        if k != self.k or not k:
            raise TraceError(f"{where}: has {k} experts a token; the lines before it have {self.k}")
        self.request.extend(np.broadcast_to(request, n).tolist())
        self.position.extend(np.broadcast_to(position, n).tolist())
        self.layer.extend([layer] * n)
        self.experts.append(experts.astype(np.int16))
        self.weights.append(weights)


def tokens(source: Source) -> RoutingStream:
    """{"layer_idx", "token_idx", "selected_ids", "gate_weights"?, "request_id"?} a line; without a request, all tokens are one's.

    `--prompt-tokens` says how many of the first tokens of each request are its prompt; without it
    all are taken for decode tokens, and the metadata says so.
    """
    rows, names = _Rows(), dict[Any, int]()
    for where, line in json_lines(source.path):
        experts = whole_array(of(line, ("selected_ids",), where), f"{where}: field selected_ids", 1, 0, 32766)[None]
        weights = _weights(line, "gate_weights", experts, where)
        key = next((str(line[n]) for n in _REQUEST if n in line), "")
        token, layer = count(line, "token_idx", where), count(line, "layer_idx", where, 0, 32766)
        rows.add(names.setdefault(key, len(names)), token, layer, experts, weights, where)
    prompt = source.options.prompt_tokens
    if prompt is None:
        source.notes["positions"] = "the source tells no prompt lengths: all tokens taken for decode, from position 0 on"
    position = np.array(rows.position, np.int64)
    return _stream(source, rows, np.maximum(position - (prompt or 0) + 1, 0), position)


def batches(source: Source) -> RoutingStream:
    """{"layer", "batch_id", "origin_rows", "topk_experts", "topk_weights"?} a line: [rows], [rows, k], [rows, k].

    A batch becomes a decode step, a row of it a request: the source does not tell which rows of two
    batches belong to one request, so nothing across batches may be read from the request's number.
    """
    rows = _Rows()
    for where, line in json_lines(source.path):
        origin = whole_array(of(line, ("origin_rows",), where), f"{where}: field origin_rows", 1)
        experts = whole_array(of(line, ("topk_experts",), where), f"{where}: field topk_experts", 2, 0, 32766)
        if len(experts) != len(origin):
            raise TraceError(f"{where}: field topk_experts: has {len(experts)} rows, origin_rows has {len(origin)}")
        batch, layer = count(line, "batch_id", where, 0, 2**31 - 2), count(line, "layer", where, 0, 32766)
        rows.add(origin, batch, layer, experts, _weights(line, "topk_weights", experts, where), where)
    source.notes["requests"] = "rows of a batch; the source does not follow a request from batch to batch"
    position = np.array(rows.position, np.int64)
    return _stream(source, rows, position + 1, position)


def _weights(line: Any, name: str, experts: NDArray[np.int64], where: str) -> NDArray[np.float32]:
    value = line.get(name)
    if value is None:
        return np.full(experts.shape, np.nan, np.float32)
    try:
        found = np.asarray(value, np.float64)
    except (ValueError, TypeError, OverflowError) as e:
        raise TraceError(f"{where}: field {name}: must be numbers, one for each expert") from e
    if found.size != experts.size or not np.isfinite(found).all() or (found < 0).any():
        raise TraceError(f"{where}: field {name}: must be finite numbers of 0 or more, one for each expert")
    return found.reshape(experts.shape).astype(np.float32)


def _stream(source: Source, rows: _Rows, step: NDArray[np.int64], position: NDArray[np.int64]) -> RoutingStream:
    if not rows.k:
        raise TraceError(f"{source.path}: has no lines")
    check_rows(source, len(position))
    experts, weights = np.concatenate(rows.experts), np.concatenate(rows.weights)
    request, layer = np.array(rows.request, np.int64), np.array(rows.layer, np.int64)
    order = np.lexsort((layer, position, request))
    _check_complete(source, request[order], position[order], layer[order])
    shape = router(source, int(layer.max()) + 1, int(experts.max()), rows.k, source.path.name.split(".")[0])
    provenance = source.provenance(f"per-token routing of {shape.model}", facts={"moe_layers": str(len(np.unique(layer)))})
    routing = Routing(
        decode=step[order] > 0, step=step[order].astype(np.int32), request_id=request[order].astype(np.int32),
        position=position[order].astype(np.int32), layer=layer[order].astype(np.int16), experts=experts[order], weights=weights[order],
        shape=shape, provenance=provenance,
    )  # fmt: skip

    def parts() -> Iterator[Routing]:
        yield routing

    return RoutingStream(shape, provenance, parts())


def _check_complete(source: Source, request: NDArray[np.int64], position: NDArray[np.int64], layer: NDArray[np.int64]) -> None:
    """Sorted rows: every token passed the same layers, each once; a file that ends inside a token is cut."""
    layers = np.unique(layer)
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(request) != 0) | (np.diff(position) != 0)]))
    lengths = np.diff(np.concatenate([starts, [len(layer)]]))
    fits = lengths == len(layers)
    if fits.all():
        fits[:] = (layer.reshape(-1, len(layers)) == layers).all(axis=1)
    if not fits.all():
        i = int(starts[int(np.argmin(fits))])
        found = layer[i : i + int(lengths[int(np.argmin(fits))])].tolist()
        place = f"request {request[i]}, token {position[i]}"
        wanted = f"the trace has {len(layers)} of them, each once a token"
        raise TraceError(f"{source.path}: {place}: has the layers {found[:8]}, {wanted} (truncated?)")
