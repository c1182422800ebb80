"""Timeline: what ran where from when to when, written alike by the simulator and the executor."""

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
from traces.files import Provenance, decode, in_range, integers

KIND = "timeline"
VERSION = 1
STATUSES = ("done", "failed", "cancelled", "skipped")
PHASES = ("", "prefill", "decode")

INSIDE = 1 << 32
"""Task numbers are below it: row i inside of task t is INSIDE * (t + 1) + i."""

_TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema([
    pa.field(name, kind, nullable=False) for name, kind in (
        ("task_id", pa.int64()), ("attempt", pa.int16()), ("op", _TEXT), ("lane", _TEXT), ("rank", pa.int16()),
        ("phase", _TEXT), ("step", pa.int32()), ("layer", pa.int16()), ("microbatch", pa.int16()),
        ("start_ps", pa.int64()), ("end_ps", pa.int64()), ("bytes", pa.int64()), ("flops", pa.int64()), ("status", _TEXT),
    )
])  # fmt: skip
TEXT_COLUMNS = {"op": "ops", "lane": "lanes", "phase": "phases", "status": "statuses"}
_ENCODINGS = dict.fromkeys(("task_id", "start_ps", "end_ps"), "DELTA_BINARY_PACKED")


@dataclass(frozen=True, eq=False, slots=True)
class Timeline:
    """Structure of arrays over n tasks, in any order.

    Attributes
    ----------
    task_id, attempt: number of the task and which try of it this was (from 0). What ran inside a task (the
        tiles of one kernel) has rows too, `INSIDE` times the task's number + 1, and on from there.
    op, lane, phase, status: codes into `ops`, `lanes`, `phases`, `statuses`. A join or a timer has the
        lane "", a task outside prefill and decode the phase "".
    rank: process that the lane belongs to.
    step, layer, microbatch: labels; -1 for none. Step 0 is the prefill.
    start_ps, end_ps: picoseconds since the run began; of a task that never started both are the time
        of its cancelling, or -1.
    bytes, flops: work that the task stands for: bytes moved or streamed, floating point operations.
    provenance: where it comes from; its `clock` says whose time this is.
    """

    task_id: NDArray[np.int64]
    attempt: NDArray[np.int16]
    op: NDArray[np.int32]
    lane: NDArray[np.int32]
    rank: NDArray[np.int16]
    phase: NDArray[np.int32]
    step: NDArray[np.int32]
    layer: NDArray[np.int16]
    microbatch: NDArray[np.int16]
    start_ps: NDArray[np.int64]
    end_ps: NDArray[np.int64]
    bytes: NDArray[np.int64]
    flops: NDArray[np.int64]
    status: NDArray[np.int32]
    ops: tuple[str, ...]
    lanes: tuple[str, ...]
    provenance: Provenance
    phases: tuple[str, ...] = PHASES
    statuses: tuple[str, ...] = STATUSES

    def __len__(self) -> int:
        return len(self.task_id)

    @property
    def clock(self) -> str:
        return self.provenance.clock

    @property
    def duration_ps(self) -> NDArray[np.int64]:
        """[n], 0 where the task never started."""
        return self.end_ps - self.start_ps

    @property
    def inside(self) -> NDArray[np.bool_]:
        """[n], rows of what ran inside a task."""
        return self.task_id >= INSIDE

    @property
    def ran(self) -> NDArray[np.bool_]:
        """[n], whether the task started at all."""
        never = (self.status == self.code("status", "cancelled")) & (self.start_ps == self.end_ps)
        started: NDArray[np.bool_] = (self.start_ps >= 0) & ~never
        return started

    @property
    def makespan_ps(self) -> int:
        """From 0 to the last end."""
        return int(self.end_ps.max(initial=0))

    def take(self, rows: NDArray[Any]) -> Timeline:
        """The rows of a boolean mask or an index array."""
        return replace(self, **{name: getattr(self, name)[rows] for name in SCHEMA.names})

    def code(self, column: str, value: str) -> int:
        """Code of a string in a text column, -1 where it does not occur in the table."""
        table: tuple[str, ...] = getattr(self, TEXT_COLUMNS[column])
        return table.index(value) if value in table else -1


def concatenate(parts: Sequence[Timeline]) -> Timeline:
    """One timeline of several; their string tables are merged. The first one's provenance stays."""
    assert parts, "concatenate() needs at least one timeline"
    columns: dict[str, Any] = {}
    for name in SCHEMA.names:
        if name not in TEXT_COLUMNS:
            columns[name] = np.concatenate([getattr(p, name) for p in parts])
            continue
        tables = [getattr(p, TEXT_COLUMNS[name]) for p in parts]
        merged = tuple(dict.fromkeys(s for t in tables for s in t))
        at = {s: i for i, s in enumerate(merged)}
        moved = [np.array([at[s] for s in t], np.int32) for t in tables]
        columns[name] = np.concatenate([m[getattr(p, name)] for m, p in zip(moved, parts, strict=True)])
        columns[TEXT_COLUMNS[name]] = merged
    return replace(parts[0], **columns)


def to_table(timeline: Timeline) -> pa.Table:
    """The Arrow table with the columns of `SCHEMA`."""
    columns = []
    for f in SCHEMA:
        values = getattr(timeline, f.name)
        if f.name in TEXT_COLUMNS:
            columns.append(files.encode(values, getattr(timeline, TEXT_COLUMNS[f.name])))
        else:
            columns.append(pa.array(np.ascontiguousarray(values).astype(f.type.to_pandas_dtype(), copy=False)))
    return pa.table(columns, schema=SCHEMA)


class TimelineWriter:
    """Appends timelines to an open file, a row group or more each; see `writing_timeline`."""

    def __init__(self, writer: pq.ParquetWriter, path: Path) -> None:
        self._writer = writer
        self._path = path

    def append(self, timeline: Timeline) -> None:
        """Write rows; `TraceError` where a time runs backwards or a code has no string."""
        table = to_table(timeline)
        _check(table, f"{self._path}: written rows")
        self._writer.write_table(table, row_group_size=files.ROW_GROUP)


@contextmanager
def writing_timeline(path: str | Path, provenance: Provenance) -> Iterator[TimelineWriter]:
    """Stream a long timeline; the file appears at the end, whole, or not at all."""
    with files.writing(path, SCHEMA, provenance.metadata(KIND, VERSION), _ENCODINGS) as writer:
        yield TimelineWriter(writer, Path(path))


def write_timeline(path: str | Path, timeline: Timeline) -> None:
    """Write one timeline whole."""
    with writing_timeline(path, timeline.provenance) as out:
        out.append(timeline)


def read_timeline(path: str | Path) -> Timeline:
    """Read and check a timeline; raises `TraceError` naming the file, row group and column."""
    path = Path(path)
    with files.opening(path) as f:
        schema = f.schema_arrow
        provenance = files.read_provenance(f.metadata.metadata, path, KIND, VERSION)
        files.check_schema(schema, SCHEMA, (), path)
        groups = list(files.row_groups(f, path, _check))
        table = pa.concat_tables(groups) if groups else schema.empty_table()
    columns: dict[str, Any] = {}
    for name in SCHEMA.names:
        if name in TEXT_COLUMNS:
            columns[name], columns[TEXT_COLUMNS[name]] = decode(table, name, str(path))
        else:
            columns[name] = table.column(name).to_numpy()
    return Timeline(provenance=provenance, **columns)


def _check(table: pa.Table, where: str) -> None:
    numbers = {f.name: integers(table, f.name, where) for f in SCHEMA if f.name not in TEXT_COLUMNS}
    for name, low in (("task_id", 0), ("attempt", 0), ("rank", 0), ("step", -1), ("layer", -1), ("microbatch", -1)):
        in_range(numbers[name], name, where, low)
    for name, low in (("start_ps", -1), ("end_ps", -1), ("bytes", 0), ("flops", 0)):
        in_range(numbers[name], name, where, low)
    early = numbers["end_ps"] < numbers["start_ps"]
    if early.any():
        row = int(np.argmax(early))
        start, end = int(numbers["start_ps"][row]), int(numbers["end_ps"][row])
        raise TraceError(f"{where}: column end_ps: row {row} ends at {end}, before its start {start}")
    for name, allowed in (("status", STATUSES), ("phase", PHASES)):
        _, strings = decode(table, name, where)
        unknown = set(strings) - set(allowed)
        if unknown:
            raise TraceError(f"{where}: column {name}: has {sorted(unknown)[0]!r}; must be one of {', '.join(map(repr, allowed))}")


def strings(timeline: Timeline, column: str) -> NDArray[np.str_]:
    """A text column spelled out [n]."""
    table = np.array(getattr(timeline, TEXT_COLUMNS[column]) or ("",), dtype=np.str_)
    codes: NDArray[np.int32] = getattr(timeline, column)
    return table[codes]
