"""What all trace files share: provenance in the metadata, whole-or-nothing writing, checked reading.

A trace is a Parquet file (zstd). Its key-value metadata says which kind of trace it is, in which
version of that kind's schema, where the data came from and how it was made; a reader refuses a
file that does not say so.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from traces.errors import TraceError

Made: TypeAlias = Literal["recorded", "imported", "synthetic"]
Clock: TypeAlias = Literal["", "simulated", "emulated", "measured"]
Check: TypeAlias = Callable[[pa.Table, str], None]

PREFIX = "tandem."
ROW_GROUP = 1 << 17
"""Rows of a row group: large enough to compress, small enough to read a part of a long run."""


def package_version() -> str:
    """Version of the distribution that writes; "unknown" in a tree that was never installed."""
    try:
        return version("tandem-moe")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a trace came from.

    Attributes
    ----------
    made: "recorded" from a real run, "imported" from somebody else's data, or "synthetic" (drawn
        from a distribution, or simulated).
    origin: what was recorded, whose data it is, or which distribution; free text, never empty.
    clock: "simulated", "emulated" or "measured" where times are involved, else "".
    facts: further metadata by name, such as `model`, `k`, `layers`, `experts` of a routing trace.
    """

    made: Made
    origin: str
    clock: Clock = ""
    command: str = field(default_factory=lambda: shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    version: str = field(default_factory=package_version)
    facts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.made not in get_args(Made):
            raise ValueError(f"made={self.made!r}: must be one of {', '.join(get_args(Made))}")
        if self.clock not in get_args(Clock):
            raise ValueError(f"clock={self.clock!r}: must be one of {', '.join(c or 'empty' for c in get_args(Clock))}")
        if not self.origin:
            raise ValueError("origin='': must say where the data came from")

    def metadata(self, kind: str, schema_version: int) -> dict[str, str]:
        """Key-value metadata of the file."""
        own = {
            "kind": kind, "schema_version": str(schema_version), "made": self.made, "origin": self.origin,
            "clock": self.clock, "command": self.command, "version": self.version,
        }  # fmt: skip
        return {PREFIX + k: v for k, v in {**self.facts, **own}.items()}


_OWN = ("kind", "schema_version", "made", "origin", "clock", "command", "version")


def facts_of(metadata: Mapping[bytes, bytes] | None, path: Path) -> dict[str, str]:
    """Our key-value metadata without the prefix; `TraceError` where a damaged footer no longer fits its digest."""
    try:
        found = {k.decode(): v.decode() for k, v in (metadata or {}).items() if k.startswith(PREFIX.encode())}
    except UnicodeDecodeError as e:
        raise TraceError(f"{path}: metadata: not UTF-8 text (damaged?): {e}") from e
    facts = {k.removeprefix(PREFIX): v for k, v in found.items()}
    digest = facts.pop("digest", None)
    if digest is not None and digest != _digest(facts):
        raise TraceError(f"{path}: metadata {PREFIX}digest: does not fit the rest of the metadata; the file is damaged")
    return facts


def _digest(facts: Mapping[str, str]) -> str:
    """SHA-256 of the metadata: page checksums cover the columns, this covers what the footer says of them."""
    return hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()


def read_provenance(metadata: Mapping[bytes, bytes] | None, path: Path, kind: str, schema_version: int) -> Provenance:
    """Provenance of a file of this kind; `TraceError` where the metadata does not say or says another kind."""
    facts = facts_of(metadata, path)
    facts.pop("rows", None)
    missing = [k for k in _OWN if k not in facts]
    if missing:
        raise TraceError(f"{path}: metadata {PREFIX}{missing[0]}: missing; this is no Tandem {kind} trace")
    own = {k: facts.pop(k) for k in _OWN}
    if own["kind"] != kind:
        raise TraceError(f"{path}: metadata {PREFIX}kind: is {own['kind']!r}; a {kind!r} trace is needed here")
    if own["schema_version"] != str(schema_version):
        raise TraceError(f"{path}: metadata {PREFIX}schema_version: is {own['schema_version']}; this version reads {schema_version}")
    try:
        return Provenance(own["made"], own["origin"], own["clock"], own["command"], own["version"], facts)  # type: ignore[arg-type]
    except ValueError as e:
        raise TraceError(f"{path}: metadata {e}") from e


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place at the end, or vanishes if anything goes wrong."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    if path.is_dir():
        raise TraceError(f"{path}: cannot be written: is a directory")
    try:
        part.touch()
    except OSError as e:
        raise TraceError(f"{path}: cannot be written: {e.strerror or e}") from e
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def writing(
    path: str | Path, schema: pa.Schema, metadata: Mapping[str, str], encodings: Mapping[str, str] | None = None
) -> Iterator[pq.ParquetWriter]:
    """A Parquet writer whose file appears at `path` when all of it is written, or not at all.

    `encodings`: column -> Parquet encoding for those that no dictionary serves (times, ids).
    """
    encoding = {_leaf(schema.field(name)): how for name, how in (encodings or {}).items()}
    dictionary = [_leaf(f) for f in schema if _leaf(f) not in encoding]
    with replacing(path) as part, _CountingWriter(
        part, schema.with_metadata(dict(metadata)), compression="zstd", compression_level=1, use_dictionary=dictionary,
        column_encoding=encoding or None, write_statistics=True, write_page_checksum=True,
    ) as writer:  # fmt: skip
        yield writer
        facts = {k.removeprefix(PREFIX): v for k, v in metadata.items()} | {"rows": str(writer.rows)}
        writer.add_key_value_metadata({f"{PREFIX}rows": facts["rows"], f"{PREFIX}digest": _digest(facts)})


def _leaf(f: pa.Field) -> str:
    """Parquet's path of a column: the values of a list have one of their own."""
    return f"{f.name}.list.element" if pa.types.is_list(f.type) or pa.types.is_fixed_size_list(f.type) else str(f.name)


class _CountingWriter(pq.ParquetWriter):  # type: ignore[misc]
    """Counts its rows, so that the footer can say how many there must be."""

    rows = 0

    def write_table(self, table: pa.Table, row_group_size: int | None = None) -> None:
        super().write_table(table, row_group_size)
        self.rows += table.num_rows


@contextmanager
def opening(path: str | Path, *, memory_map: bool = True) -> Iterator[pq.ParquetFile]:
    """An open Parquet file; every way in which it can be unreadable becomes a `TraceError`.

    `memory_map=False` keeps what was read out of the process's resident memory: for scans of long files.
    """
    path = Path(path)
    if path.is_dir():
        raise TraceError(f"{path}: is a directory; a Parquet file is needed")
    try:
        with pq.ParquetFile(path, memory_map=memory_map, page_checksum_verification=True) as f:
            _check_rows(f, path)
            yield f
    except FileNotFoundError as e:
        raise TraceError(f"{path}: no such file") from e
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        raise TraceError(f"{path}: not a readable Parquet file (truncated or damaged?): {_first_line(e)}") from e


def _check_rows(f: pq.ParquetFile, path: Path) -> None:
    """The row groups hold as many rows as were written."""
    said = (f.metadata.metadata or {}).get(f"{PREFIX}rows".encode())
    held = sum(f.metadata.row_group(g).num_rows for g in range(f.num_row_groups))
    if said is not None and said != str(held).encode():
        text = said.decode(errors="replace")
        raise TraceError(f"{path}: metadata {PREFIX}rows: says {text}, the row groups hold {held}; the file is damaged")


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def check_schema(found: pa.Schema, needed: pa.Schema, optional: Iterable[str], path: Path) -> None:
    """Each needed column is there with its type, and there is no other one."""
    may_lack = set(optional)
    for want in needed:
        at = found.get_field_index(want.name)
        if at < 0:
            if want.name in may_lack:
                continue
            raise TraceError(f"{path}: column {want.name}: missing; has {', '.join(found.names)}")
        if not _same_type(found.field(at).type, want.type):
            raise TraceError(f"{path}: column {want.name}: has type {found.field(at).type}; must be {want.type}")
    unknown = [n for n in found.names if needed.get_field_index(n) < 0]
    if unknown:
        raise TraceError(f"{path}: column {unknown[0]}: not in the schema; columns are {', '.join(needed.names)}")


def _same_type(found: pa.DataType, needed: pa.DataType) -> bool:
    """Equal, where text may come with or without a dictionary and lists may name their items anyhow."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_dictionary(needed):
        needed = needed.value_type
    if pa.types.is_fixed_size_list(found) and pa.types.is_fixed_size_list(needed):
        return bool(found.list_size == needed.list_size and found.value_type == needed.value_type)
    if pa.types.is_list(found) and pa.types.is_list(needed):
        return bool(found.value_type == needed.value_type)
    return bool(found == needed)


def row_groups(f: pq.ParquetFile, path: Path, check: Check, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The row groups one after another, each checked; `check(table, where)` raises on bad values.

    With `columns`, nothing but these is read from the disk.
    """
    for g in range(f.num_row_groups):
        try:
            table = f.read_row_group(g, columns=None if columns is None else list(columns))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
            raise TraceError(f"{path}: row group {g}: not readable (truncated or damaged?): {_first_line(e)}") from e
        check(table, f"{path}: row group {g}")
        yield table


def integers(table: pa.Table, name: str, where: str) -> NDArray[Any]:
    """A column as a numpy array; refuses nulls."""
    column = table.column(name)
    if column.null_count:
        raise TraceError(f"{where}: column {name}: has {column.null_count} empty values; every row needs one")
    values: NDArray[Any] = column.to_numpy()
    return values


def in_range(values: NDArray[Any], name: str, where: str, low: float, high: float | None = None) -> None:
    """Refuse a value outside low..high, and say the first one with its row."""
    bad = values < low if high is None else (values < low) | (values > high)
    if bad.any():
        row = int(np.argmax(bad)) if bad.ndim == 1 else int(np.argmax(bad.any(axis=1)))
        value = values.reshape(len(values), -1)[row].tolist()
        shown = value[0] if len(value) == 1 else value
        right = f"{low} or more" if high is None else f"{low} to {high}"
        raise TraceError(f"{where}: column {name}: row {row} has {shown}; must be {right}")


def encode(codes: NDArray[Any], table: Iterable[str]) -> pa.DictionaryArray:
    """Codes and their strings as an Arrow dictionary column."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32, copy=False)), pa.array(list(table), pa.string()))


def decode(table: pa.Table, name: str, where: str) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """A text column as codes and the strings that they index."""
    column = table.column(name)
    if column.null_count:
        raise TraceError(f"{where}: column {name}: has {column.null_count} empty values; every row needs one")
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    merged = column.unify_dictionaries().combine_chunks()
    if isinstance(merged, pa.ChunkedArray):
        if merged.num_chunks == 0:
            return np.empty(0, np.int32), ()
        merged = merged.chunk(0)
    return merged.indices.to_numpy().astype(np.int32, copy=False), tuple(merged.dictionary.to_pylist())
