"""Reading a long trace in bounded memory: row group by row group, and only the columns asked for.

A file's rows stand in the order of the router calls that were recorded, so a scan also replays it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from traces import files, routing_file
from traces.errors import TraceError
from traces.files import Provenance
from traces.routing_check import check, matrix
from traces.routing_file import Shape

T = TypeVar("T")


def kind_of(path: str | Path) -> str:
    """Which kind of trace a file is: "timeline", "routing", "requests" or "load"; `TraceError` where it is none."""
    path = Path(path)
    with files.opening(path) as f:
        facts = files.facts_of(f.metadata.metadata, path)
    if "kind" not in facts:
        raise TraceError(f"{path}: metadata {files.PREFIX}kind: missing; this is no Tandem trace")
    return facts["kind"]


def routing_header(path: str | Path) -> tuple[Shape, Provenance, int]:
    """Shape, provenance and number of rows of a routing trace, from its footer alone."""
    path = Path(path)
    with files.opening(path) as f:
        shape, provenance = routing_file.header(f, path)
        return shape, provenance, f.metadata.num_rows


def scan(path: str | Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The row groups of a routing trace with these columns only, each checked; the next one is read meanwhile.

    Memory: two row groups (`files.ROW_GROUP` rows each in files written here), whatever the file's
    length. Raises `TraceError` naming the file, row group and column.
    """
    path = Path(path)
    with files.opening(path, memory_map=False) as f:
        shape, _ = routing_file.header(f, path)
        unknown = [c for c in columns if f.schema_arrow.get_field_index(c) < 0]
        if unknown:
            raise TraceError(f"{path}: column {unknown[0]}: missing; has {', '.join(f.schema_arrow.names)}")
        yield from _ahead(_groups(f, path, columns, shape))


def _groups(f: pq.ParquetFile, path: Path, columns: Sequence[str], shape: Shape) -> Iterator[pa.Table]:
    return files.row_groups(f, path, lambda table, where: check(table, where, shape.layers, shape.experts, shape.k), columns)


def _ahead(source: Iterator[T]) -> Iterator[T]:
    """The same items, the next one being made on another thread while this one is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, source, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, source, None)
            yield item


def expert_load(path: str | Path) -> NDArray[np.int64]:
    """Rows per expert [layers, experts] of a routing trace, in bounded memory; reads the columns layer and experts."""
    shape, _, _ = routing_header(path)
    counts = np.zeros(shape.layers * shape.experts, np.int64)
    for table in scan(path, ("layer", "experts")):
        layer = table.column("layer").to_numpy().astype(np.int32)
        place = layer[:, None] * np.int32(shape.experts) + matrix(table, "experts", shape.k)
        counts += np.bincount(place.ravel(), minlength=len(counts))
    return counts.reshape(shape.layers, shape.experts)
