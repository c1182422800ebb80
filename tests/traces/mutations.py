"""Damaged trace files by the thousand, and what may come of reading one.

Reading a damaged file must end in a `TraceError` that names the file, or in the right data: what was
written where checksums cover the bytes, what an independent reading of the damaged text gives where
they cannot. Case i depends on i alone, so a failure is repeated by its number.
"""

from __future__ import annotations

import csv
import io
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.traces import samples, sources
from traces.errors import TraceError
from traces.importers import Options, import_trace
from traces.load import Load, read_load, write_load
from traces.requests import read_requests, write_requests
from traces.routing_file import read_routing, write_routing
from traces.scan import expert_load, kind_of
from traces.timeline import read_timeline, write_timeline

READERS: dict[str, Callable[[Path], Any]] = {
    "routing": read_routing, "requests": read_requests, "load": read_load, "timeline": read_timeline,
}  # fmt: skip
ODD = (
    "-1", "NaN", "Infinity", "1e999", "99999999999999999999", "4294967301", "2147483648", "0", "", "null", '"7"', "[]", "{}", "true", "1.5",
    "32767", "0x10", " 3", "-0", "1e3",
)  # fmt: skip
TIME_LIMIT_S = 20


@dataclass(frozen=True)
class Case:
    """A damaged file: where it comes from, its name, its bytes, and what was done to it."""

    label: str
    name: str
    data: bytes
    source: Any
    done: str


def case(number: int, torch_too: bool = False) -> Case:
    """The damaged file of this number."""
    rng = np.random.default_rng([20260801, number])
    kind = number % 3
    if kind == 0:
        name = list(READERS)[int(rng.integers(len(READERS)))]
        data, done = damage(rng, written(name), text=False)
        return Case(f"parquet {name}", f"{name}.parquet", data, name, done)
    if kind == 1 and number % 2:
        name = list(READERS)[int(rng.integers(len(READERS)))]
        data, done = forged(rng, name)
        return Case(f"forged {name}", f"{name}.parquet", data, ("forged", name), done)
    chosen = sources.SAMPLES + (sources.TORCH_SAMPLES if torch_too else [])
    sample = chosen[int(rng.integers(len(chosen)))]
    plain = sample.name.endswith((".csv", ".json", ".jsonl"))
    data, done = damage(rng, made(sample.format, sample.name), text=plain)
    return Case(f"{sample.format} {sample.name}", sample.name, data, sample, done)


@cache
def made(format: str, name: str) -> bytes:
    return next(s for s in sources.SAMPLES + sources.TORCH_SAMPLES if (s.format, s.name) == (format, name)).make()


@cache
def original(name: str) -> Any:
    """The undamaged trace of a kind."""
    made = {"routing": samples.routing, "requests": samples.requests, "load": samples.load, "timeline": lambda: samples.timeline(20)}
    return made[name]()


@cache
def written(name: str) -> bytes:
    """The undamaged file of a kind, with several row groups."""
    import tempfile

    from traces import files

    write = {"routing": write_routing, "requests": write_requests, "load": write_load, "timeline": write_timeline}[name]
    rows, files.ROW_GROUP = files.ROW_GROUP, 9
    try:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / "t.parquet", original(name))  # type: ignore[operator]
            return (Path(folder) / "t.parquet").read_bytes()
    finally:
        files.ROW_GROUP = rows


def damage(rng: np.random.Generator, data: bytes, *, text: bool) -> tuple[bytes, str]:
    """One way in which bytes go wrong: cut, flipped, overwritten, moved; in text also a number or a line replaced."""
    ways = ["cut", "flip", "flips", "byte", "drop", "double", "insert", "empty"]
    ways += ["number", "number", "number", "line", "swap"] if text else []
    way = ways[int(rng.integers(len(ways)))]
    at, other = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    out = bytearray(data)
    if way == "cut":
        del out[at:]
    elif way in ("flip", "flips"):
        for i in rng.integers(0, len(data), 1 if way == "flip" else 5).tolist():
            out[i] ^= 1 << int(rng.integers(8))
    elif way == "byte":
        out[min(at, len(out) - 1)] = int(rng.integers(256))
    elif way == "drop":
        del out[at : min(other, at + 64)]
    elif way == "double":
        out[at:at] = out[at : min(other, at + 64)]
    elif way == "insert":
        out[at:at] = rng.bytes(int(rng.integers(1, 9)))
    elif way == "empty":
        out = bytearray(b"" if rng.integers(2) else b"\n")
    else:
        out = bytearray(_in_text(rng, data, way))
    return bytes(out), f"{way} at {at}"


def _in_text(rng: np.random.Generator, data: bytes, way: str) -> bytes:
    import re

    text = data.decode()
    if way == "number":
        spots = list(re.finditer(r"-?\d+(\.\d+)?", text))
        spot = spots[int(rng.integers(len(spots)))]
        return (text[: spot.start()] + ODD[int(rng.integers(len(ODD)))] + text[spot.end() :]).encode()
    lines = text.splitlines(keepends=True)
    i, j = rng.integers(0, len(lines), 2).tolist()
    if way == "line":
        del lines[i]
    else:
        lines[i], lines[j] = lines[j], lines[i]
    return "".join(lines).encode()


def forged(rng: np.random.Generator, name: str) -> tuple[bytes, str]:
    """A well-formed Parquet file with our metadata and a wrong column: missing, of another type, with a value out of range."""
    table = pq.read_table(io.BytesIO(written(name)))
    metadata = {k: v for k, v in pq.read_metadata(io.BytesIO(written(name))).metadata.items() if k.startswith(b"tandem.")}
    metadata.pop(b"tandem.digest"), metadata.pop(b"tandem.rows")
    column = int(rng.integers(table.num_columns))
    title = table.column_names[column]
    way = ["missing", "type", "null", "value", "fact", "rows", "double"][int(rng.integers(7))]
    if way == "missing":
        table = table.drop_columns([title])
    elif way == "type":
        table = table.set_column(column, title, pa.array([str(v) for v in table.column(title).to_pylist()]))
    elif way == "null":
        values = table.column(title).to_pylist()
        values[int(rng.integers(len(values)))] = None
        table = table.set_column(column, pa.field(title, table.schema.field(title).type), pa.array(values, table.schema.field(title).type))
    elif way == "value":
        table = table.set_column(column, table.schema.field(title), _wrong_value(rng, table.column(title), table.schema.field(title)))
    elif way == "fact":
        key = sorted(metadata)[int(rng.integers(len(metadata)))]
        metadata[key] = [b"", b"-1", b"x", b"999999999999"][int(rng.integers(4))]
    elif way == "rows":
        table = table.slice(0, 0)
    else:
        table = pa.concat_tables([table, table.slice(0, 1)])
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), out)
    return out.getvalue(), f"{way} of {title}"


def _wrong_value(rng: np.random.Generator, column: pa.ChunkedArray, field: pa.Field) -> pa.Array:
    values = column.to_pylist()
    i = int(rng.integers(len(values)))
    if isinstance(values[i], list):
        wrong = [float("nan"), -1.0, float("inf")] if pa.types.is_floating(field.type.value_type) else [-1, 6, 32767, values[i][0]]
        values[i] = [*values[i][:-1], wrong[int(rng.integers(len(wrong)))]]
    elif isinstance(values[i], str):
        values[i] = ["", "what", "PREFILL"][int(rng.integers(3))]
    else:
        values[i] = [-1, -2, 32767, 0][int(rng.integers(4))]
    return pa.array(values, field.type)


def judge(c: Case, folder: Path) -> str:
    """What came of reading the case: "refused" or "read"; raises `AssertionError` where it came out wrong."""
    path, out = folder / c.name, folder / "out.parquet"
    path.write_bytes(c.data)
    out.unlink(missing_ok=True)
    try:
        with within(TIME_LIMIT_S):
            if isinstance(c.source, sources.Sample):
                import_trace(c.source.format, path, out, Options(**c.source.options))  # type: ignore[arg-type]
            else:
                name = c.source if isinstance(c.source, str) else c.source[1]
                found = READERS[name](path)
                if name == "routing":
                    expert_load(path)
    except TraceError as e:
        told = str(e)
        assert str(path) in told or str(folder) in told, f"{c.label}, {c.done}: the message names no file: {told}"
        assert not out.exists(), f"{c.label}, {c.done}: refused, but {out} is there"
        return "refused"
    if isinstance(c.source, str):
        assert same(found, original(c.source)), f"{c.label}, {c.done}: read, but it is other data"
    elif isinstance(c.source, tuple):
        _check_forged(c, found)
    else:
        _check_import(c, READERS[kind_of(out)](out))
    return "read"


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail where it takes longer: a hang is as wrong as a crash."""

    def late(*_: object) -> None:
        raise AssertionError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def same(a: Any, b: Any) -> bool:
    """All fields alike; provenance by what a reader acts on, for the footer's digest is not part of it."""
    for name in type(a).__dataclass_fields__:
        x, y = getattr(a, name), getattr(b, name)
        if name == "provenance":
            alike = (x.made, x.origin, x.clock, x.command, x.version) == (y.made, y.origin, y.clock, y.command, y.version)
        elif isinstance(x, np.ndarray):
            alike = x.dtype == y.dtype and np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        elif name in ("ops", "lanes", "phases", "statuses", "op", "lane", "phase", "status"):
            alike = True
        else:
            alike = x == y
        if not alike:
            return False
    return _strings(a) == _strings(b)


def _strings(a: Any) -> list[Any]:
    from traces.timeline import TEXT_COLUMNS, Timeline, strings

    return [strings(a, n).tolist() for n in TEXT_COLUMNS] if isinstance(a, Timeline) else []


def _check_forged(c: Case, found: Any) -> None:
    """What was accepted holds what the file holds: as many rows, and no value that its kind forbids."""
    rows = pq.read_metadata(io.BytesIO(c.data)).num_rows
    if isinstance(found, Load):
        assert int((found.counts > 0).sum()) <= rows and (found.counts >= 0).all(), f"{c.label}, {c.done}"
    else:
        assert len(found) == rows, f"{c.label}, {c.done}: {len(found)} rows of {rows}"
    for name, low in (("step", -1), ("layer", -1), ("arrival_ns", 0), ("prompt_tokens", 1), ("experts", 0), ("position", 0), ("bytes", 0)):
        if hasattr(found, name):
            assert (getattr(found, name) >= low).all(), f"{c.label}, {c.done}: {name} below {low}"


def _check_import(c: Case, found: Any) -> None:
    """The imported trace against the undamaged one where checksums hold, else against an independent reading of the text."""
    if c.source.checked and c.data != made(c.source.format, c.source.name):
        assert _columns(found) == _pristine(c.source.format, c.source.name), f"{c.label}, {c.done}: read, but it is other data"
    independent = _INDEPENDENT.get((c.source.format, c.name.rsplit(".", 1)[-1]))
    if independent is not None:
        want = independent(c.data)
        got = _columns(found)
        assert all(got[n] == want[n] for n in want), f"{c.label}, {c.done}: imported {got}, the file says {want}"


def _columns(found: Any) -> dict[str, Any]:
    names = ("arrival_ns", "prompt_tokens", "output_tokens", "request_id", "position", "layer", "step", "experts", "counts")
    return {n: getattr(found, n).tolist() for n in names if hasattr(found, n)}


@cache
def _pristine(format: str, name: str) -> dict[str, Any]:
    import tempfile

    sample = next(s for s in sources.SAMPLES + sources.TORCH_SAMPLES if (s.format, s.name) == (format, name))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(made(format, name))
        import_trace(format, Path(folder) / name, Path(folder) / "out.parquet", Options(**sample.options))  # type: ignore[arg-type]
        return _columns(READERS[kind_of(Path(folder) / "out.parquet")](Path(folder) / "out.parquet"))


def _table(prompt: str, output: str) -> Callable[[bytes], dict[str, Any]]:
    def lengths(data: bytes) -> dict[str, Any]:
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig", "replace"))))
        return {"prompt_tokens": [float(r[prompt]) for r in rows], "output_tokens": [float(r[output]) for r in rows]}

    return lengths


def _mooncake(data: bytes) -> dict[str, Any]:
    rows = [json.loads(line) for line in data.splitlines()]
    return {"prompt_tokens": [r["input_length"] for r in rows], "output_tokens": [r["output_length"] for r in rows]}


def _tokens(data: bytes) -> dict[str, Any]:
    rows = [json.loads(line) for line in data.split(b"\n") if line]
    names = {n: i for i, n in enumerate(dict.fromkeys(str(r.get("request_id", "")) for r in rows))}
    rows.sort(key=lambda r: (names[str(r.get("request_id", ""))], r["token_idx"], r["layer_idx"]))
    names_of = {"position": "token_idx", "layer": "layer_idx", "experts": "selected_ids"}
    return {ours: [r[theirs] for r in rows] for ours, theirs in names_of.items()}


_INDEPENDENT: dict[tuple[str, str], Callable[[bytes], dict[str, Any]]] = {
    ("azure", "csv"): _table("ContextTokens", "GeneratedTokens"), ("burstgpt", "csv"): _table("Request tokens", "Response tokens"),
    ("vidur", "csv"): _table("num_prefill_tokens", "num_decode_tokens"), ("mooncake", "jsonl"): _mooncake,
    ("token-jsonl", "jsonl"): _tokens,
}  # fmt: skip
