"""Routing: which experts a router chose for each token of each layer.

One row stands for one token in one layer. In the prefill (step 0) a request has the positions
0 .. prompt - 1; decode step d processes the one position prompt + d - 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from traces import files
from traces.errors import TraceError
from traces.files import Provenance, decode
from traces.routing_check import PHASES, check, matrix

KIND = "routing"
VERSION = 1
_NUMBERS = (("step", pa.int32()), ("request_id", pa.int32()), ("position", pa.int32()), ("layer", pa.int16()))
_ENCODINGS = {"position": "DELTA_BINARY_PACKED", "weights": "BYTE_STREAM_SPLIT"}
_COLUMNS = ("decode", "step", "request_id", "position", "layer", "experts", "weights")
_MOST = 1 << 26


@dataclass(frozen=True, slots=True)
class Shape:
    """The router that was recorded: `experts` per layer, `k` of them chosen, in `layers` layers of `model`."""

    model: str
    layers: int
    experts: int
    k: int

    def __post_init__(self) -> None:
        if not (1 <= self.k <= self.experts <= 32767 and 1 <= self.layers <= 32767 and self.layers * self.experts <= _MOST):
            found = f"k={self.k}, experts={self.experts}, layers={self.layers}"
            raise ValueError(f"{found}: must be 1 <= k <= experts <= 32767, 1 <= layers <= 32767 and no more than {_MOST} experts in all")


def schema(k: int) -> pa.Schema:
    """Columns of a routing trace with k experts a token."""
    return pa.schema([
        *(pa.field(name, kind, nullable=False) for name, kind in _NUMBERS),
        pa.field("experts", pa.list_(pa.field("item", pa.int16(), nullable=False), k), nullable=False),
        pa.field("weights", pa.list_(pa.float32(), k)),
        pa.field("phase", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    ])  # fmt: skip


@dataclass(frozen=True, eq=False, slots=True)
class Routing:
    """Structure of arrays over n (token, layer) rows, in any order.

    Attributes
    ----------
    decode [n] bool: whether the row is of the decode; else of the prefill, with step 0.
    step, request_id, position, layer [n].
    experts [n, k] int16: chosen experts, in the router's order.
    weights [n, k] float32: their gate weights; NaN in every slot of a row without weights (written as an empty value).
    """

    decode: NDArray[np.bool_]
    step: NDArray[np.int32]
    request_id: NDArray[np.int32]
    position: NDArray[np.int32]
    layer: NDArray[np.int16]
    experts: NDArray[np.int16]
    weights: NDArray[np.float32]
    shape: Shape
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.step)

    def take(self, rows: NDArray[Any]) -> Routing:
        """The rows of a boolean mask or an index array."""
        return replace(self, **{n: getattr(self, n)[rows] for n in _COLUMNS})


def to_table(routing: Routing) -> pa.Table:
    """The Arrow table with the columns of `schema(k)`."""
    k, n = routing.shape.k, len(routing)
    assert routing.experts.shape == routing.weights.shape == (n, k), f"{routing.experts.shape}, {routing.weights.shape}: must be {(n, k)}"
    lacking = np.isnan(routing.weights).all(axis=1)
    experts = np.ascontiguousarray(routing.experts, np.int16).ravel()
    weights = np.ascontiguousarray(routing.weights, np.float32).ravel()
    wanted = schema(k)
    columns = [pa.array(np.ascontiguousarray(getattr(routing, name)).astype(kind.to_pandas_dtype())) for name, kind in _NUMBERS]
    columns.append(pa.FixedSizeListArray.from_arrays(pa.array(experts), type=wanted.field("experts").type))
    mask = pa.array(lacking) if lacking.any() else None
    columns.append(pa.FixedSizeListArray.from_arrays(pa.array(weights), type=wanted.field("weights").type, mask=mask))
    columns.append(files.encode(routing.decode.astype(np.int32), PHASES))
    return pa.table(columns, schema=wanted)


class RoutingWriter:
    """Collects the rows that a recorder sees, one router call at a time; see `writing_routing`."""

    def __init__(self, writer: pq.ParquetWriter, path: Path, shape: Shape, provenance: Provenance) -> None:
        self._writer, self._path, self._shape, self._provenance = writer, path, shape, provenance
        self._calls: list[Routing] = []
        self._rows = 0

    def record(
        self,
        phase: str,
        step: int,
        layer: int,
        request_id: NDArray[Any],
        position: NDArray[Any],
        experts: NDArray[Any],
        weights: NDArray[Any] | None = None,
    ) -> None:
        """Append one call of the router of `layer`: request_id and position [rows], experts and weights [rows, k].

        The arrays are copied. Not for several threads at once.
        """
        n = len(request_id)
        self.collect(Routing(
            decode=np.full(n, phase == "decode"), step=np.full(n, step, np.int32), request_id=np.array(request_id, np.int32),
            position=np.array(position, np.int32), layer=np.full(n, layer, np.int16), experts=np.array(experts, np.int16),
            weights=np.full((n, self._shape.k), np.nan, np.float32) if weights is None else np.array(weights, np.float32),
            shape=self._shape, provenance=self._provenance,
        ))  # fmt: skip

    def append(self, routing: Routing) -> None:
        """Append rows that are arrays already, as row groups of their own."""
        self.flush()
        self._write(routing)

    def collect(self, routing: Routing) -> None:
        """Append rows that are arrays already, gathered into full row groups."""
        self._calls.append(routing)
        self._rows += len(routing)
        if self._rows >= files.ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        """Write what was recorded so far as a row group."""
        if self._calls:
            self._write(concatenate(self._calls))
        self._calls, self._rows = [], 0

    def _write(self, routing: Routing) -> None:
        table = to_table(routing)
        check(table, f"{self._path}: written rows", self._shape.layers, self._shape.experts, self._shape.k)
        self._writer.write_table(table, row_group_size=files.ROW_GROUP)


def concatenate(parts: Sequence[Routing]) -> Routing:
    """The rows of several parts, in order, with the first's shape and provenance."""
    columns: dict[str, Any] = {n: np.concatenate([getattr(p, n) for p in parts]) for n in _COLUMNS}
    return replace(parts[0], **columns)


@contextmanager
def writing_routing(path: str | Path, shape: Shape, provenance: Provenance) -> Iterator[RoutingWriter]:
    """Stream a routing trace; the file appears at the end, whole, or not at all."""
    facts = {"model": shape.model, "layers": str(shape.layers), "experts": str(shape.experts), "k": str(shape.k)}
    provenance = replace(provenance, facts={**provenance.facts, **facts})
    with files.writing(path, schema(shape.k), provenance.metadata(KIND, VERSION), _ENCODINGS) as writer:
        out = RoutingWriter(writer, Path(path), shape, provenance)
        yield out
        out.flush()


def write_routing(path: str | Path, routing: Routing) -> None:
    """Write one routing trace whole."""
    with writing_routing(path, routing.shape, routing.provenance) as out:
        out.append(routing)


def read_routing(path: str | Path, rows: int | None = None) -> Routing:
    """Read and check a routing trace; raises `TraceError` naming the file, row group and column.

    rows: stop after the row group that reaches so many; None reads all.
    """
    path = Path(path)
    with files.opening(path) as f:
        shape, provenance = header(f, path)
        groups, read = [], 0
        for table in files.row_groups(f, path, lambda table, where: check(table, where, shape.layers, shape.experts, shape.k)):
            groups.append(table)
            read += table.num_rows
            if rows is not None and read >= rows:
                break
        table = pa.concat_tables(groups) if groups else schema(shape.k).empty_table()
    phase, names = decode(table, "phase", str(path))
    return Routing(
        decode=np.array([n == "decode" for n in names], np.bool_)[phase] if names else np.empty(0, np.bool_),
        experts=matrix(table, "experts", shape.k), weights=matrix(table, "weights", shape.k), shape=shape, provenance=provenance,
        **{name: table.column(name).to_numpy() for name, _ in _NUMBERS},
    )  # fmt: skip


def header(f: pq.ParquetFile, path: Path) -> tuple[Shape, Provenance]:
    """Shape and provenance from an open file's footer; refuses a file that is no routing trace."""
    provenance = files.read_provenance(f.metadata.metadata, path, KIND, VERSION)
    shape = _shape(provenance, path)
    files.check_schema(f.schema_arrow, schema(shape.k), (), path)
    return shape, provenance


def _shape(provenance: Provenance, path: Path) -> Shape:
    try:
        return Shape(provenance.facts["model"], *(int(provenance.facts[f]) for f in ("layers", "experts", "k")))
    except KeyError as e:
        raise TraceError(f"{path}: metadata {files.PREFIX}{e.args[0]}: missing; a routing trace needs model, layers, experts, k") from e
    except ValueError as e:
        raise TraceError(f"{path}: metadata {files.PREFIX}k, layers, experts: {e}") from e
