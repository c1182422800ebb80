"""Reading other people's files: every way in which one can be damaged becomes a `TraceError` that names file and line."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from traces.errors import TraceError

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
_BLOCK = 1 << 24
"""Bytes of text parsed at a time."""


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked where its name ends in .gz."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as f:
            yield f  # type: ignore[misc]
    except IsADirectoryError as e:
        raise TraceError(f"{path}: is a directory; a file is needed") from e
    except FileNotFoundError as e:
        raise TraceError(f"{path}: no such file") from e
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise TraceError(f"{path}: not a readable gzip file (truncated or damaged?): {e}") from e
    except OSError as e:
        raise TraceError(f"{path}: cannot be read: {e.strerror or e}") from e


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of a folder's file names and contents: what was imported, wherever it lay."""
    digest = hashlib.sha256()
    for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if part.is_file():
            if path.is_dir():
                digest.update(part.relative_to(path).as_posix().encode() + b"\0")
            with part.open("rb") as f:
                while block := f.read(_BLOCK):
                    digest.update(block)
    return digest.hexdigest()


def csv_columns(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> dict[str, pa.ChunkedArray]:
    """These columns of a CSV file with a header, as text; others are ignored. Every row must have all fields."""
    kinds = pa.csv.ConvertOptions(
        include_columns=[], column_types={}, strings_can_be_null=False, check_utf8=True, auto_dict_encode=False,
    )  # fmt: skip
    with reading(path) as f:
        header = _header(f, path)
        missing = [c for c in columns if c not in header]
        if missing:
            raise TraceError(f"{path}: column {missing[0]}: missing; has {', '.join(header)}")
        wanted = [*columns, *(c for c in optional if c in header)]
        kinds.column_types = dict.fromkeys(header, pa.string())
        kinds.include_columns = wanted
        table = _parse(f, path, kinds, len(header))
    return {name: table.column(name) for name in wanted}


def _header(f: BinaryIO, path: Path) -> list[str]:
    first = f.readline(1 << 16)
    f.seek(0)
    try:
        names = first.decode("utf-8-sig").rstrip("\r\n").split(",")
    except UnicodeDecodeError as e:
        raise TraceError(f"{path}: line 1: not UTF-8 text: {e}") from e
    names = [n.strip().strip('"') for n in names]
    twice = {n for n in names if names.count(n) > 1}
    if twice:
        raise TraceError(f"{path}: column {sorted(twice)[0]}: stands there twice")
    return names


def _parse(f: BinaryIO, path: Path, kinds: pa.csv.ConvertOptions, fields: int) -> pa.Table:
    try:
        return pa.csv.read_csv(
            f, pa.csv.ReadOptions(use_threads=False, block_size=_BLOCK), pa.csv.ParseOptions(ignore_empty_lines=False), kinds
        )
    except (pa.ArrowException, KeyError, UnicodeDecodeError) as e:
        told = str(e).splitlines()[0]
        ragged = re.search(r"Row #(\d+): Expected \d+ columns, got (\d+)", told)
        if ragged:
            raise TraceError(f"{path}: line {ragged[1]}: has {ragged[2]} fields instead of {fields} (truncated?)") from e
        raise TraceError(f"{path}: not a readable CSV file: {told}") from e


def ends_whole(path: Path) -> bool:
    """Whether the last line has its line feed; where not, its last number may have been cut."""
    last = b"\n"
    with reading(path) as f:
        while block := f.read(_BLOCK):
            last = block[-1:]
    return last == b"\n"


def whole_numbers(column: pa.ChunkedArray, path: Path, name: str, low: int = 0, high: int = INT32_MAX) -> NDArray[np.int64]:
    """A text column as integers low..high; "12.0" counts as 12. Names the line of the first one that is none."""
    _match(column, r"^\d{1,18}(\.0*)?$", path, name, "a whole number")
    values: NDArray[np.int64] = pc.cast(pc.replace_substring_regex(column, r"\.0*$", ""), pa.int64()).to_numpy()
    _between(values, path, name, low, high)
    return values


def seconds(column: pa.ChunkedArray, path: Path, name: str) -> NDArray[np.int64]:
    """A text column of seconds as nanoseconds, exactly: the decimals are not read as a float."""
    _match(column, r"^\d{1,9}(\.\d{0,12})?$", path, name, "a time in seconds, 0 or more")
    parts = pc.extract_regex(column, r"^(?P<whole>\d+)(?:\.(?P<part>\d*))?$")
    whole = pc.cast(pc.struct_field(parts, "whole"), pa.int64()).to_numpy()
    part = pc.utf8_slice_codeunits(pc.utf8_rpad(pc.struct_field(parts, "part"), 9, "0"), 0, 9)
    return np.asarray(whole * 1_000_000_000 + pc.cast(part, pa.int64()).to_numpy())


def dates(column: pa.ChunkedArray, path: Path, name: str) -> NDArray[np.int64]:
    """A text column such as "2023-11-16 18:17:03.9799600" (UTC, "+00:00" and "Z" allowed) as nanoseconds since 1970."""
    right = "a UTC time such as 2023-11-16 18:17:03.9799600"
    _match(column, r"^\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,9})?(Z|\+00:00)?$", path, name, right)
    plain = pc.replace_substring_regex(column, r"(Z|\+00:00)$", "")
    try:
        return np.asarray(pc.cast(plain, pa.timestamp("ns")).cast(pa.int64()).to_numpy())
    except pa.ArrowException as e:
        raise TraceError(f"{path}: column {name}: {str(e).splitlines()[0]}; must be {right}") from e


def _match(column: pa.ChunkedArray, pattern: str, path: Path, name: str, right: str) -> None:
    good = pc.match_substring_regex(column, pattern)
    if len(column) and not pc.all(good).as_py():
        row = int(np.argmin(good.to_numpy()))
        raise TraceError(f"{path}: line {row + 2}, column {name}: has {column[row].as_py()[:60]!r}; must be {right}")


def _between(values: NDArray[np.int64], path: Path, name: str, low: int, high: int) -> None:
    bad = (values < low) | (values > high)
    if bad.any():
        row = int(np.argmax(bad))
        raise TraceError(f"{path}: line {row + 2}, column {name}: has {values[row]}; must be {low} to {high}")


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def parse_json(text: str | bytes, where: str) -> Any:
    """One JSON value; refuses NaN and Infinity."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise TraceError(f"{where}: not readable as JSON (truncated or damaged?): {str(e) or type(e).__name__}") from e


def json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, object) of each line of a JSON Lines file."""
    with reading(path) as f:
        for number, line in enumerate(f, 1):
            where = f"{path}: line {number}"
            if not line.strip():
                raise TraceError(f"{where}: is empty; each line holds one JSON object")
            value = parse_json(line, where)
            if not isinstance(value, dict):
                raise TraceError(f"{where}: holds a {type(value).__name__}; each line holds one JSON object")
            yield where, value


def json_file(path: Path) -> Any:
    """The one value of a JSON file."""
    with reading(path) as f:
        return parse_json(f.read(), str(path))


def field(row: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    """The first of these fields that the object has."""
    for name in names:
        if name in row:
            return row[name]
    raise TraceError(f"{where}: field {' or '.join(names)}: missing; has {', '.join(map(str, row)) or 'none'}")


def count(row: Mapping[str, Any], name: str, where: str, low: int = 0, high: int = INT32_MAX) -> int:
    """A field that holds a whole number low..high."""
    value = field(row, (name,), where)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise TraceError(f"{where}: field {name}: has {str(value)[:60]!r}; must be a whole number {low} to {high}")
    return value


def number(row: Mapping[str, Any], name: str, where: str, low: float = 0.0) -> float:
    """A field that holds a finite number."""
    value = field(row, (name,), where)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < low:
        raise TraceError(f"{where}: field {name}: has {str(value)[:60]!r}; must be a number of {low} or more")
    return float(value)


def whole_array(value: Any, where: str, dimensions: int, low: int = 0, high: int = INT32_MAX) -> NDArray[np.int64]:
    """Nested lists of whole numbers as an array; refuses ragged ones and everything that is no whole number."""
    try:
        found = np.asarray(value)
    except (ValueError, OverflowError) as e:
        raise TraceError(f"{where}: rows of different lengths (truncated?)") from e
    if found.size and not np.issubdtype(found.dtype, np.integer):
        raise TraceError(f"{where}: holds {found.dtype} values; must be whole numbers {low} to {high}")
    if found.ndim != dimensions:
        raise TraceError(f"{where}: has the shape {list(found.shape)}; must have {dimensions} dimensions")
    if found.size and (found.min() < low or found.max() > high):
        wrong = found.min() if found.min() < low else found.max()
        raise TraceError(f"{where}: has {wrong}; must be {low} to {high}")
    return found.astype(np.int64)


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file, or the one of an .npy file under the name ""; objects are refused, sizes checked first."""
    try:
        with reading(path) as f:
            if path.suffix == ".npy":
                data = f.read()
                return {"": _array(io.BytesIO(data), len(data))}
            with zipfile.ZipFile(f) as z:
                return {i.filename.removesuffix(".npy"): _array(io.BytesIO(z.read(i)), i.file_size) for i in z.infolist()}
    except TraceError:
        raise
    except Exception as e:  # zipfile, zlib and numpy's header parser raise about everything for damaged bytes
        raise TraceError(f"{path}: not a readable {path.suffix or 'npz'} file (truncated or damaged?): {e or type(e).__name__}") from e


def _array(data: io.BytesIO, size: int) -> NDArray[Any]:
    version = np.lib.format.read_magic(data)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(data)
    if dtype.hasobject:
        raise ValueError("holds Python objects; plain numbers are needed")
    wanted = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or wanted != size - data.tell():
        raise ValueError(f"an array of shape {shape} needs {wanted} bytes, there are {size - data.tell()}")
    flat = np.frombuffer(data.read(), dtype)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
