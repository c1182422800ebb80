"""SGLang's expert-distribution recorder: what `/dump_expert_distribution_record` leaves behind, a torch file.

Layout (sglang/srt/eplb/expert_distribution.py): mode "stat" {rank, logical_count [passes, layers,
experts]}; modes "per_pass" and "per_token" {records: [{forward_pass_id, rank, global_physical_count
[layers, slots], and per token input_ids, positions, extend_seq_lens, topk_ids_of_layer [layers,
tokens, 8]}], last_physical_to_logical_map [layers, slots]}. Ids are those of physical slots.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.errors import TraceError
from traces.importers.base import RoutingStream, Source, check_rows, router
from traces.importers.source import INT64_MAX, field, reading, whole_array
from traces.load import Load
from traces.routing_file import Routing, Shape


def sglang(source: Source) -> Load | RoutingStream:
    """Counts become a load trace with a window for each pass, per-token records a routing trace."""
    held = _torch_file(source)
    if "logical_count" in held:
        return _load(source, _array(held["logical_count"], f"{source.path}: field logical_count", 3))
    records = field(held, ("records",), str(source.path))
    if not isinstance(records, list) or not records or not all(isinstance(r, Mapping) for r in records):
        raise TraceError(f"{source.path}: field records: has no passes")
    name = "last_physical_to_logical_map"
    logical = _array(field(held, (name,), str(source.path)), f"{source.path}: field {name}", 2)
    if not logical.size or logical.max() > 32766:
        raise TraceError(f"{source.path}: field {name}: must map slots to experts 0 to 32766")
    if "topk_ids_of_layer" in records[0]:
        return _per_token(source, records, logical)
    return _load(source, np.stack([_logical_counts(r, logical, f"{source.path}: pass {i}") for i, r in enumerate(records)]))


def _torch_file(source: Source) -> Mapping[str, Any]:
    import torch

    try:
        with reading(source.path) as f, zipfile.ZipFile(f) as z:  # torch itself does not look at the checksums
            damaged = z.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        held = torch.load(source.path, map_location="cpu", weights_only=True)
    except TraceError:
        raise
    except Exception as e:  # torch raises about everything for damaged files; weights_only runs no code of theirs
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise TraceError(f"{source.path}: not a readable torch file (truncated or damaged?): {reason}") from e
    if not isinstance(held, Mapping):
        raise TraceError(f"{source.path}: holds a {type(held).__name__}; SGLang's recorder writes a dictionary")
    return held


def _array(value: Any, where: str, dimensions: int, low: int = 0) -> NDArray[np.int64]:
    return whole_array(value.numpy() if hasattr(value, "numpy") else value, where, dimensions, low, INT64_MAX)


def _load(source: Source, counts: NDArray[np.int64]) -> Load:
    check_rows(source, counts.size)
    model = source.options.model or source.path.stem
    return Load(counts, source.provenance(f"expert counts of {model}, SGLang's recorder", facts={"model": model}))


def _logical_counts(record: Mapping[str, Any], logical: NDArray[np.int64], where: str) -> NDArray[np.int64]:
    """Counts of physical slots [layers, slots] summed by the expert that each slot holds."""
    physical = _array(field(record, ("global_physical_count",), where), f"{where}: field global_physical_count", 2)
    if physical.shape != logical.shape:
        raise TraceError(f"{where}: field global_physical_count: is {list(physical.shape)}, the map of slots {list(logical.shape)}")
    counts = np.zeros((len(logical), int(logical.max()) + 1), np.int64)
    np.add.at(counts, (np.arange(len(logical))[:, None], logical), physical)
    return counts


@dataclass(slots=True)
class _Active:
    """A request that is being decoded: its number, the position that comes next, its prompt's length."""

    number: int
    coming: int
    prompt: int


def _per_token(source: Source, records: list[Mapping[str, Any]], logical: NDArray[np.int64]) -> RoutingStream:
    source.notes["requests"] = "the recorder names none: followed from pass to pass by their positions, in the batch's order"
    passes = [_Pass.of(r, logical, f"{source.path}: pass {i}") for i, r in enumerate(records)]
    passes = [p for p in passes if len(p.positions)]
    if not passes:
        raise TraceError(f"{source.path}: field records: has no tokens")
    k, held = passes[0].experts.shape[2], passes[0].layers
    for p in passes:
        if p.experts.shape[2] != k or not np.array_equal(p.layers, held):
            found = f"has k = {p.experts.shape[2]} and {len(p.layers)} MoE layers"
            raise TraceError(f"{p.where}: {found}, the passes before it {k} and {len(held)}")
    check_rows(source, sum(len(p.positions) for p in passes) * len(held))
    largest = max(int(logical.max()), max(int(p.experts.max()) for p in passes))
    shape = router(source, len(logical), largest, k, source.path.stem)
    provenance = source.provenance(f"per-token routing of {shape.model}, SGLang's recorder", facts={"moe_layers": str(len(held))})
    return RoutingStream(shape, provenance, _follow(passes, shape, provenance))


@dataclass(frozen=True, slots=True)
class _Pass:
    """One forward pass: positions [tokens], experts [tokens, MoE layers, k], lengths of the sequences that a prefill extends."""

    where: str
    positions: NDArray[np.int64]
    extends: NDArray[np.int64] | None
    experts: NDArray[np.int64]
    layers: NDArray[np.int64]

    @classmethod
    def of(cls, record: Mapping[str, Any], logical: NDArray[np.int64], where: str) -> _Pass:
        positions = _array(field(record, ("positions",), where), f"{where}: field positions", 1)
        ids = _array(field(record, ("topk_ids_of_layer",), where), f"{where}: field topk_ids_of_layer", 3, -1)
        if ids.shape[:2] != (len(logical), len(positions)):
            needed = f"{len(logical)} layers and {len(positions)} tokens are needed"
            raise TraceError(f"{where}: field topk_ids_of_layer: is {list(ids.shape)}; {needed} (truncated?)")
        layers = np.flatnonzero((ids >= 0).any(axis=(1, 2)))
        used = (ids[layers] >= 0).any(axis=(0, 1)) if len(layers) else np.zeros(ids.shape[2], np.bool_)
        ids = ids[layers][:, :, used]
        if (ids < 0).any() or (ids >= logical.shape[1]).any():
            raise TraceError(f"{where}: field topk_ids_of_layer: has ids outside 0 to {logical.shape[1] - 1} (truncated?)")
        extends = record.get("extend_seq_lens")
        lengths = None if extends is None else _array(extends, f"{where}: field extend_seq_lens", 1)
        if lengths is not None and lengths.sum() != len(positions):
            found = f"sums to {lengths.sum()}, there are {len(positions)} tokens"
            raise TraceError(f"{where}: field extend_seq_lens: {found} (mixed passes are not supported)")
        experts = logical[layers[:, None, None], ids].transpose(1, 0, 2)
        return cls(where, positions, lengths, experts, layers)


def _follow(passes: list[_Pass], shape: Shape, provenance: Any) -> Iterator[Routing]:
    """Rows pass by pass. A running batch keeps its order: what leaves leaves a gap, what enters enters at the end."""
    active: list[_Active] = []
    made = 0
    for p in passes:
        if p.extends is None:
            active = _continue(active, p)
            owners = [(a, 1) for a in active]
        else:
            owners = []
            for first, length in zip(p.positions[np.cumsum(p.extends) - p.extends].tolist(), p.extends.tolist(), strict=True):
                owners.append((_extended(active, int(first), int(length), made), int(length)))
                made = max(made, owners[-1][0].number + 1)
            active = active + [a for a, _ in owners if a not in active]
        yield _rows(p, owners, shape, provenance)
        for a, length in owners:
            a.coming += length if p.extends is None else 0


def _extended(active: list[_Active], first: int, length: int, made: int) -> _Active:
    """A prefill that goes on where a chunk of a prompt ended is that request's, if no token of it was decoded; else a new one."""
    for a in active:
        if first > 0 and a.coming == first and a.prompt == first:
            a.coming = a.prompt = first + length
            return a
    return _Active(made, first + length, first + length)


def _continue(active: list[_Active], p: _Pass) -> list[_Active]:
    """The requests that this decode pass's tokens belong to."""
    found, at = [], 0
    for position in p.positions.tolist():
        while at < len(active) and active[at].coming != position:
            at += 1
        if at == len(active):
            lost = f"position {position} goes on no request of the passes before"
            raise TraceError(f"{p.where}: field positions: {lost} (truncated, or recorded from the middle)")
        found.append(active[at])
        at += 1
    return found


def _rows(p: _Pass, owners: list[tuple[_Active, int]], shape: Shape, provenance: Any) -> Routing:
    """Layer by layer, as the routers were called."""
    tokens, layers = len(p.positions), len(p.layers)
    request = np.repeat([a.number for a, _ in owners], [n for _, n in owners])
    prompt = np.repeat([a.prompt for a, _ in owners], [n for _, n in owners])
    step = np.zeros(tokens, np.int64) if p.extends is not None else p.positions - prompt + 1
    return Routing(
        decode=np.full(tokens * layers, p.extends is None), step=np.tile(step, layers).astype(np.int32),
        request_id=np.tile(request, layers).astype(np.int32), position=np.tile(p.positions, layers).astype(np.int32),
        layer=np.repeat(p.layers, tokens).astype(np.int16), experts=p.experts.transpose(1, 0, 2).reshape(-1, shape.k).astype(np.int16),
        weights=np.full((tokens * layers, shape.k), np.nan, np.float32), shape=shape, provenance=provenance,
    )  # fmt: skip
