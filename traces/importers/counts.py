"""Count matrices: how often each expert of each layer was used, without the tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.errors import TraceError
from traces.importers.base import Source, check_rows
from traces.importers.source import INT64_MAX, arrays, csv_columns, field, json_file, reading, whole_array, whole_numbers
from traces.load import Load

_NAMES = ("logical_count", "counts", "count", "load", "")
_MOST = 1 << 26
"""Cells of a plausible count matrix."""


def counts(source: Source) -> Load:
    """[layers, experts] or [windows, layers, experts] in JSON (`{"logical_count": [[...]]}` or bare), npz, npy or CSV.

    A CSV holds the matrix without a header, a row a layer, or rows under the header
    `layer,expert,count`, with a leading `window` if there are several. An npz may name the windows
    in `domains` or `counts_domains`, and the model's numbers of its layers in `layers`.
    """
    name = source.path.name.removesuffix(".gz")
    if name.endswith((".npz", ".npy")):
        found = _from_arrays(source)
    elif name.endswith(".csv"):
        found = _from_csv(source)
    else:
        found = _from_json(source)
    return _load(source, found)


def activations(source: Source) -> Load:
    """CSV with the header `layer,expert`: one line an activation, counted into one window."""
    path = source.path
    table = csv_columns(path, ("layer", "expert"))
    layer, expert = (whole_numbers(table[n], path, n, 0, 32766) for n in ("layer", "expert"))
    check_rows(source, len(layer))
    shape = (1, int(layer.max(initial=0)) + 1, _experts(source, int(expert.max(initial=0))))
    flat = np.bincount(layer * shape[2] + expert, minlength=shape[1] * shape[2])
    return Load(flat.reshape(shape), source.provenance(f"expert activations of {source.options.model or path.stem}", facts=_facts(source)))


def _load(source: Source, found: NDArray[np.int64]) -> Load:
    if found.ndim == 2:
        found = found[None]
    windows, layers, experts = found.shape
    if not layers or not experts:
        raise TraceError(f"{source.path}: has {layers} layers and {experts} experts; at least one of each is needed")
    said = source.options.experts
    if said is not None and said != experts:
        raise TraceError(f"{source.path}: has {experts} experts; --experts says {said}")
    check_rows(source, windows * layers * experts)
    return Load(found, source.provenance(f"expert counts of {source.options.model or source.path.stem}", facts=_facts(source)))


def _facts(source: Source) -> dict[str, str]:
    return {"model": source.options.model or source.path.stem}


def _experts(source: Source, largest: int) -> int:
    said = source.options.experts
    if said is not None and largest >= said:
        raise TraceError(f"{source.path}: has expert {largest}; --experts says {said}, so they go to {said - 1}")
    return said or largest + 1


def _from_json(source: Source) -> NDArray[np.int64]:
    value = json_file(source.path)
    where = str(source.path)
    if isinstance(value, dict):
        value, where = field(value, _NAMES[:-1], where), f"{where}: field logical_count"
    if not isinstance(value, list):
        raise TraceError(f"{where}: holds a {type(value).__name__}; a matrix of counts is needed")
    deep = isinstance(value[0][0], list) if value and isinstance(value[0], list) and value[0] else False
    return whole_array(value, where, 3 if deep else 2, 0, INT64_MAX)


def _from_arrays(source: Source) -> NDArray[np.int64]:
    held = arrays(source.path)
    name = next((n for n in _NAMES if n in held), next(iter(held)) if len(held) == 1 else None)
    if name is None:
        raise TraceError(f"{source.path}: array logical_count or counts: missing; has {', '.join(held)}")
    found = held[name]
    _name_windows(source, held, found)
    where = f"{source.path}: array {name or 'in the file'}"
    return whole_array(found, where, 3 if found.ndim == 3 else 2, 0, INT64_MAX)


def _name_windows(source: Source, held: dict[str, NDArray[Any]], found: NDArray[Any]) -> None:
    for array in ("counts_domains", "domains"):
        if array in held and held[array].shape == found.shape[:1] and found.ndim == 3:
            source.notes.setdefault("window_names", ",".join(map(str, held[array].tolist())))
    if "layers" in held and held["layers"].shape == found.shape[-2:-1]:
        source.notes["layer_numbers"] = ",".join(map(str, held["layers"].tolist()))


def _from_csv(source: Source) -> NDArray[np.int64]:
    path = source.path
    with reading(path) as f:
        first = f.readline(1 << 20)
    if b"expert" in first:
        return _from_long_csv(source, b"window" in first)
    rows = []
    with reading(path) as f:
        for number, line in enumerate(f, 1):
            try:
                rows.append([int(v) for v in line.decode("ascii").strip().split(",")])
            except ValueError as e:
                raise TraceError(f"{path}: line {number}: must be whole numbers between commas: {e}") from e
            if len(rows[-1]) != len(rows[0]):
                raise TraceError(f"{path}: line {number}: has {len(rows[-1])} numbers, line 1 has {len(rows[0])} (truncated?)")
    return whole_array(rows, str(path), 2, 0, INT64_MAX)


def _from_long_csv(source: Source, windowed: bool) -> NDArray[np.int64]:
    path = source.path
    names = ("window", "layer", "expert") if windowed else ("layer", "expert")
    table = csv_columns(path, (*names, "count"))
    at = [whole_numbers(table[n], path, n, 0, INT64_MAX if n == "window" else 32766) for n in names]
    values = whole_numbers(table["count"], path, "count", 0, INT64_MAX)
    shape = tuple(int(a.max(initial=0)) + 1 for a in at)
    if windowed and shape[0] * shape[1] * shape[2] > _MOST:
        raise TraceError(f"{path}: column window: {' x '.join(map(str, shape))} cells are no plausible count matrix")
    shape = (*shape[:-1], _experts(source, shape[-1] - 1))
    flat = np.ravel_multi_index(tuple(at), shape)
    if len(np.unique(flat)) < len(flat):
        raise TraceError(f"{path}: column count: a ({', '.join(names)}) stands there twice; one row each")
    found = np.zeros(int(np.prod(shape)), np.int64)
    found[flat] = values
    return found.reshape(shape)
