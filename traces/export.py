"""Traces as other tools read them: CSV, JSON Lines, and timelines for Perfetto."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from traces import files
from traces.errors import TraceError
from traces.files import replacing
from traces.scan import kind_of, scan

FORMATS = ("perfetto", "csv", "jsonl")


def export(path: str | Path, format: str, out: str | Path) -> int:
    """Write a trace in another format, whole or not at all; returns the rows written.

    csv: one header; lists as numbers between spaces; an empty field where a value is lacking. jsonl:
    one object a row. perfetto: Chrome's JSON, timelines only. Raises `TraceError`.
    """
    path, out = Path(path), Path(out)
    if format not in FORMATS:
        raise TraceError(f"--format {format}: unknown; must be one of {', '.join(FORMATS)}")
    kind = kind_of(path)
    if format == "perfetto":
        return _perfetto(path, kind, out)
    with replacing(out) as part, part.open("w", encoding="utf-8", newline="") as f:
        rows = 0
        for table in _tables(path, kind):
            if format == "csv":
                writer = csv.writer(f, lineterminator="\n")
                if rows == 0:
                    writer.writerow(table.column_names)
                writer.writerows(zip(*(map(_cell, table.column(n).to_pylist()) for n in table.column_names), strict=True))
            else:
                f.writelines(json.dumps(row) + "\n" for row in table.to_pylist())
            rows += table.num_rows
    return rows


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value


def _perfetto(path: Path, kind: str, out: Path) -> int:
    from traces.chrome import write_chrome
    from traces.timeline import read_timeline

    if kind != "timeline":
        raise TraceError(f"--format perfetto: draws timelines; {path} is a {kind} trace, which csv and jsonl can hold")
    timeline = read_timeline(path)
    write_chrome(out, timeline)
    return len(timeline)


def _tables(path: Path, kind: str) -> Iterator[pa.Table]:
    """Checked rows, in parts where the kind is one that outgrows memory."""
    if kind == "routing":
        with files.opening(path) as f:
            names = f.schema_arrow.names
        yield from scan(path, names)
    elif kind == "requests":
        from traces import requests

        yield requests.to_table(requests.read_requests(path))
    elif kind == "timeline":
        from traces import timeline

        yield timeline.to_table(timeline.read_timeline(path))
    elif kind == "load":
        from traces import load

        yield load.to_table(load.read_load(path))
    else:
        raise TraceError(f"{path}: metadata {files.PREFIX}kind: is {kind!r}; must be routing, requests, timeline or load")
