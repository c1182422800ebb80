"""Load: how many tokens each expert got, window by window."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from traces import files
from traces.errors import TraceError
from traces.files import Provenance, in_range, integers

KIND = "load"
VERSION = 1
SCHEMA = pa.schema([
    pa.field(name, kind, nullable=False)
    for name, kind in (("window", pa.int32()), ("layer", pa.int16()), ("expert", pa.int16()), ("count", pa.int64()))
])  # fmt: skip


@dataclass(frozen=True, eq=False, slots=True)
class Load:
    """Tokens per expert: `counts` [windows, layers, experts] int64. Zero counts are not stored."""

    counts: NDArray[np.int64]
    provenance: Provenance


def to_table(load: Load) -> pa.Table:
    """The Arrow table with the columns of `SCHEMA`: a row for each count that is not 0."""
    at = np.nonzero(load.counts)
    columns = [np.asarray(c).astype(f.type.to_pandas_dtype()) for c, f in zip((*at, load.counts[at]), SCHEMA, strict=True)]
    return pa.table([pa.array(c) for c in columns], schema=SCHEMA)


def write_load(path: str | Path, load: Load) -> None:
    """Check and write count matrices."""
    windows, layers, experts = load.counts.shape
    if (load.counts < 0).any():
        raise TraceError(f"{path}: column count: has {int(load.counts.min())}; must be 0 or more")
    facts = {**load.provenance.facts, "windows": str(windows), "layers": str(layers), "experts": str(experts)}
    with files.writing(path, SCHEMA, replace(load.provenance, facts=facts).metadata(KIND, VERSION)) as writer:
        writer.write_table(to_table(load), row_group_size=files.ROW_GROUP)


def read_load(path: str | Path) -> Load:
    """Read and check count matrices; raises `TraceError` naming the file, row group and column."""
    path = Path(path)
    with files.opening(path) as f:
        provenance = files.read_provenance(f.metadata.metadata, path, KIND, VERSION)
        files.check_schema(f.schema_arrow, SCHEMA, (), path)
        sizes = _sizes(provenance, path)
        counts = np.zeros(sizes, np.int64)
        seen = np.zeros(sizes, np.bool_)
        for g, table in enumerate(files.row_groups(f, path, lambda t, where: _check(t, where, sizes))):
            at = tuple(table.column(n).to_numpy() for n in ("window", "layer", "expert"))
            _check_once(at, seen, f"{path}: row group {g}")
            counts[at] = table.column("count").to_numpy()
    return Load(counts, provenance)


def _sizes(provenance: Provenance, path: Path) -> tuple[int, int, int]:
    try:
        windows, layers, experts = (int(provenance.facts[n]) for n in ("windows", "layers", "experts"))
    except (KeyError, ValueError) as e:
        raise TraceError(f"{path}: metadata {files.PREFIX}windows, layers, experts: missing or no numbers ({e})") from e
    if windows < 0 or layers < 1 or experts < 1 or windows * layers * experts > 1 << 31:
        raise TraceError(f"{path}: metadata {files.PREFIX}windows, layers, experts: {windows} x {layers} x {experts} is no plausible size")
    return windows, layers, experts


def _check(table: pa.Table, where: str, sizes: tuple[int, int, int]) -> None:
    for name, size in zip(("window", "layer", "expert"), sizes, strict=True):
        in_range(integers(table, name, where), name, where, 0, size - 1)
    in_range(integers(table, "count", where), "count", where, 0)


def _check_once(at: tuple[NDArray[np.integer], ...], seen: NDArray[np.bool_], where: str) -> None:
    flat = np.ravel_multi_index(at, seen.shape)
    if seen[at].any() or len(np.unique(flat)) < len(flat):
        raise TraceError(f"{where}: column count: a (window, layer, expert) stands there twice; one row each")
    seen[at] = True
