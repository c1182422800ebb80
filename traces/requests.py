"""Requests: when each came in and how long its prompt and its output are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from traces import files
from traces.errors import TraceError
from traces.files import Provenance, in_range, integers

KIND = "requests"
VERSION = 1
_NUMBERS = (("request_id", pa.int64()), ("arrival_ns", pa.int64()), ("prompt_tokens", pa.int32()), ("output_tokens", pa.int32()))
SCHEMA = pa.schema([
    *(pa.field(name, kind, nullable=False) for name, kind in _NUMBERS),
    pa.field("region", pa.dictionary(pa.int32(), pa.string())),
    pa.field("prefix_hashes", pa.list_(pa.int64())),
])  # fmt: skip
OPTIONAL = ("region", "prefix_hashes")


@dataclass(frozen=True, eq=False, slots=True)
class Requests:
    """Structure of arrays over n requests, by arrival.

    Attributes
    ----------
    request_id [n]: unique. arrival_ns [n]: since the trace began.
    prompt_tokens, output_tokens [n]: 1 or more.
    region: where each came in, None for all where the trace does not tell.
    prefix_hashes: hashes of the prompt's leading blocks of each, for prefix caches; None where the trace does not tell.
    """

    request_id: NDArray[np.int64]
    arrival_ns: NDArray[np.int64]
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    provenance: Provenance
    region: tuple[str | None, ...] | None = None
    prefix_hashes: tuple[tuple[int, ...] | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.request_id)


def to_table(requests: Requests) -> pa.Table:
    """The Arrow table with the columns of `SCHEMA`, those that the trace does not tell left out."""
    columns: dict[str, Any] = {
        name: pa.array(_narrow(np.ascontiguousarray(getattr(requests, name)), name, kind.to_pandas_dtype())) for name, kind in _NUMBERS
    }
    if requests.region is not None:
        columns["region"] = pa.array(requests.region, pa.string()).dictionary_encode()
    if requests.prefix_hashes is not None:
        columns["prefix_hashes"] = pa.array(requests.prefix_hashes, SCHEMA.field("prefix_hashes").type)
    return pa.table(list(columns.values()), schema=pa.schema([SCHEMA.field(n) for n in columns]))


def _narrow(values: NDArray[Any], name: str, dtype: type) -> NDArray[Any]:
    """In the column's type; a value that it cannot hold is refused and not wrapped round."""
    in_range(values, name, "written rows", np.iinfo(dtype).min, np.iinfo(dtype).max)
    return values.astype(dtype, copy=False)


def write_requests(path: str | Path, requests: Requests) -> None:
    """Check and write a request trace."""
    table = to_table(requests)
    _check(table, f"{path}: written rows")
    _check_unique(requests.request_id, str(path))
    with files.writing(path, table.schema, requests.provenance.metadata(KIND, VERSION), {"arrival_ns": "DELTA_BINARY_PACKED"}) as writer:
        writer.write_table(table, row_group_size=files.ROW_GROUP)


def read_requests(path: str | Path) -> Requests:
    """Read and check a request trace, sorted by arrival; raises `TraceError` naming the file, row group and column."""
    path = Path(path)
    with files.opening(path) as f:
        schema = f.schema_arrow
        provenance = files.read_provenance(f.metadata.metadata, path, KIND, VERSION)
        files.check_schema(schema, SCHEMA, OPTIONAL, path)
        groups = list(files.row_groups(f, path, _check))
        table = pa.concat_tables(groups) if groups else schema.empty_table()
    columns = {name: table.column(name).to_numpy() for name, _ in _NUMBERS}
    _check_unique(columns["request_id"], str(path))
    order = np.argsort(columns["arrival_ns"], kind="stable")
    told: dict[str, Any] = {}
    for name in set(OPTIONAL) & set(table.column_names):
        values = table.column(name).to_pylist()
        told[name] = tuple(tuple(v) if isinstance(v, list) else v for v in (values[i] for i in order.tolist()))
    return Requests(provenance=provenance, **{n: v[order] for n, v in columns.items()}, **told)


def _check(table: pa.Table, where: str) -> None:
    for name, low in (("request_id", 0), ("arrival_ns", 0), ("prompt_tokens", 1), ("output_tokens", 1)):
        in_range(integers(table, name, where), name, where, low)


def _check_unique(ids: NDArray[np.int64], where: str) -> None:
    ordered = np.sort(ids)
    twice = ordered[1:] == ordered[:-1]
    if twice.any():
        raise TraceError(f"{where}: column request_id: {ordered[int(np.argmax(twice))]} stands there twice; ids are unique")
