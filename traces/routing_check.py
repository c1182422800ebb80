"""What a row of a routing trace may hold, checked on whole row groups or on the columns of one that were read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from traces.errors import TraceError
from traces.files import decode, in_range, integers

PHASES = ("prefill", "decode")


def check(table: pa.Table, where: str, layers: int, experts: int, k: int) -> None:
    """Refuse a table with a value that no router can have produced; columns that were not read are not checked."""
    held = set(table.column_names)
    for name, high in (("step", None), ("request_id", None), ("position", None), ("layer", layers - 1)):
        if name in held:
            in_range(integers(table, name, where), name, where, 0, high)
    if "experts" in held:
        _check_experts(table, where, experts, k)
    if "weights" in held:
        _check_weights(table, where, k)
    if {"phase", "step"} <= held:
        _check_phase(table, where)


def matrix(table: pa.Table, name: str, k: int) -> NDArray[Any]:
    """A fixed-size list column as an array [n, k]; NaN where a row is empty."""
    parts = [_chunk(c, k) for c in table.column(name).chunks]
    if not parts:
        return np.empty((0, k), table.schema.field(name).type.value_type.to_pandas_dtype())
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _chunk(chunk: pa.FixedSizeListArray, k: int) -> NDArray[Any]:
    if not chunk.null_count:
        return np.asarray(chunk.flatten().to_numpy(zero_copy_only=False)).reshape(-1, k)
    out = np.full((len(chunk), k), np.nan, np.float32)
    out[chunk.is_valid().to_numpy(zero_copy_only=False)] = chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, k)
    return out


def _check_phase(table: pa.Table, where: str) -> None:
    codes, names = decode(table, "phase", where)
    unknown = set(names) - set(PHASES)
    if unknown:
        raise TraceError(f"{where}: column phase: has {sorted(unknown)[0]!r}; must be one of {', '.join(map(repr, PHASES))}")
    in_decode = np.array([n == "decode" for n in names], np.bool_)[codes] if names else np.empty(0, np.bool_)
    wrong = in_decode != (integers(table, "step", where) > 0)
    if wrong.any():
        row = int(np.argmax(wrong))
        found = f"row {row} has {table['step'][row]} in the phase {table['phase'][row]}"
        raise TraceError(f"{where}: column step: {found}; 0 is the prefill, decode steps count from 1")


def _check_experts(table: pa.Table, where: str, most: int, k: int) -> None:
    column = table.column("experts")
    if column.null_count or any(c.flatten().null_count for c in column.chunks):
        raise TraceError(f"{where}: column experts: has empty values; every row needs {k} experts")
    experts = matrix(table, "experts", k)
    if len(experts) and (experts.min() < 0 or experts.max() >= most):
        in_range(experts, "experts", where, 0, most - 1)
    twice = _repeats(experts)
    if twice.any():
        row = int(np.argmax(twice))
        raise TraceError(f"{where}: column experts: row {row} has {experts[row].tolist()}; a token goes to {k} different experts")


def _repeats(experts: NDArray[Any]) -> NDArray[np.bool_]:
    """Rows [n] in which an expert stands twice. Comparing all pairs beats sorting where k is small, and it is."""
    n, k = experts.shape
    if k > 12:
        ordered = np.sort(experts, axis=1)
        return np.asarray((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    slots = np.ascontiguousarray(experts.T)
    twice = np.zeros(n, np.bool_)
    for a in range(k):
        for b in range(a + 1, k):
            twice |= slots[a] == slots[b]
    return twice


def _check_weights(table: pa.Table, where: str, k: int) -> None:
    valid = np.asarray(table.column("weights").is_valid().to_numpy())
    if any(c.flatten().null_count for c in table.column("weights").chunks):
        raise TraceError(f"{where}: column weights: has an empty weight inside a row; a row has all {k} weights or none")
    weights = matrix(table, "weights", k)
    bad = valid & ~(np.isfinite(weights) & (weights >= 0)).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        raise TraceError(f"{where}: column weights: row {row} has {weights[row].tolist()}; must be finite and 0 or more")
