"""A description as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from traces.describe.summary import Description

_TITLES = {
    "max_over_mean": "busiest expert / mean load", "max_over_mean_worst": "... in the worst layer", "gini": "Gini coefficient of the load",
    "log_spread": "std of ln(share) over experts", "entropy": "load entropy / even", "never_used": "experts never used",
    "rate_per_s": "requests/s", "span_s": "time span [s]", "gap_cv": "CV of arrival gaps (Poisson: 1)",
    "peak_over_mean": "busiest minute / mean",
    "makespan_s": "makespan [s]",
}  # fmt: skip

_SECTIONS = {
    "overlap": "experts shared with the token before", "independent": "... were the tokens independent",
    "working_set": "distinct experts in consecutive tokens", "next_layer_recall": "recall of the next layer's experts",
    "markov": "first-order Markov", "popularity": "popularity alone", "coactivation": "co-activation",
    "drift": "correlation of the load", "prefill_decode_correlation": "correlation of the load: prefill to decode",
}  # fmt: skip


def show(d: Description, console: Console) -> None:
    """Print it: what it is first, then a table of figures, then one for each list of rows."""
    p = d.provenance
    console.print(f"{d.path}: {d.kind} trace, {p.made}" + (f", {p.clock} clock" if p.clock else ""), markup=False, highlight=False)
    console.print(p.origin, markup=False, highlight=False)
    for name in ("note", "positions", "requests", "arrivals"):
        if name in p.facts:
            console.print(f"note: {p.facts[name]}", markup=False, highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in _lines(d.figures):
        table.add_row(Text(name), Text(value))
    console.print(table)
    for name, rows in _lists(d.figures):
        listed = Table(title=name, title_justify="left", box=None, pad_edge=False)
        for column in rows[0]:
            listed.add_column(_words(column), justify="left" if isinstance(rows[0][column], str) else "right")
        for row in rows:
            listed.add_row(*(Text(_text(v)) for v in row.values()))
        console.print(listed)


def _lines(figures: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{within}{_words(name)}: ")
        elif value is None or not isinstance(value, (list, tuple)) and not getattr(value, "ndim", 0):
            title = f"balancedness on {figures['gpus']} GPUs, experts in order" if name == "balancedness" and "gpus" in figures else None
            if name != "gpus":
                yield within + (title or _TITLES.get(name) or _words(name)), _text(value)


def _lists(figures: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _lists(value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield _words(name), value


def _words(name: str) -> str:
    return _SECTIONS.get(name, name.replace("_", " "))


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return "-" if value is None else str(value)
    if isinstance(value, (list, tuple)):
        return " ".join(map(_text, value))
    number = float(value)
    if number != number:
        return "-"
    if number == int(number) and abs(number) < 1e15:
        return f"{int(number):,}"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"
