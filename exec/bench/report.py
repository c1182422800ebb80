"""Rows of a bench as Markdown, CSV, JSON or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from sim.cli.output import seconds

KERNELS = ("op", "shape", "dtype", "threads", "variant", "time", "spread", "GFLOP/s", "of peak", "GB/s", "of bandwidth", "ours is")
TESTS = ("model", "scheduler", "device", "batch", "test", "t/s")


def text(found: dict[str, Any], form: str) -> str:
    """`found`: as `run.bench` returns it; form: md, csv, json or jsonl."""
    if form == "json":
        return json.dumps(found, indent=2) + "\n"
    rows = [*found["kernels"], *found["tests"]]
    if form == "jsonl":
        facts = {"made": found["made"]}
        return "".join(json.dumps({**row, **facts}) + "\n" for row in rows)
    if form == "csv":
        return _csv(rows)
    return "\n".join(_markdown(columns, cells) for columns, cells in _tables(found) if cells)


def _tables(found: dict[str, Any]) -> list[tuple[Sequence[str], list[Sequence[str]]]]:
    return [(KERNELS, [_kernel(r) for r in found["kernels"]]), (TESTS, [_test(r) for r in found["tests"]])]


def _kernel(r: dict[str, Any]) -> Sequence[str]:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.0%}"

    faster = "" if r["ours_faster"] == 1.0 else f"{r['ours_faster']:.2f} x as fast"
    return (
        r["op"], r["shape"], r["dtype"], str(r["threads"]), r["variant"], seconds(r["median_s"]), f"{r['stddev_s'] / r['mean_s']:.0%}",
        f"{r['flops_per_s'] / 1e9:.3g}", share(r["of_flops_ceiling"]), f"{r['bytes_per_s'] / 1e9:.3g}", share(r["of_bytes_ceiling"]),
        faster,
    )  # fmt: skip


def _test(r: dict[str, Any]) -> Sequence[str]:
    return (
        r["model"], r["scheduler"], r["device"] + (", graphs" if r["graphs"] else ""), str(r["batch"]), r["test"],
        f"{r['tokens_per_s']:.2f} ± {r['stddev_tokens_per_s']:.2f}",
    )  # fmt: skip


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    width = [max(len(c), *(len(r[i]) for r in rows)) for i, c in enumerate(columns)]
    lines = [columns, ["-" * w for w in width], *rows]
    return "".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, width, strict=True)) + " |\n" for line in lines)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    return out.getvalue()
