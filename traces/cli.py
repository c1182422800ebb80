"""python -m traces: import, export, describe, synthesize. Modules are loaded only when a command runs: `--help` answers at once."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from traces import entry
from traces.entry import RUN_FAILED
from traces.errors import TraceError

app = typer.Typer(
    name="traces", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Recorded traces of Mixture-of-Experts serving: requests, expert routing, load, timelines.",
)  # fmt: skip


class ExportFormat(StrEnum):
    perfetto = "perfetto"
    csv = "csv"
    jsonl = "jsonl"


Json = Annotated[bool, typer.Option("--json", help="Exactly one JSON object on stdout.")]
Out = Annotated[Path, typer.Option("-o", "--output", help="File to write; appears whole or not at all.", show_default=False)]
Trace = Annotated[Path, typer.Argument(metavar="TRACE", help="A trace file (Parquet).", show_default=False)]


@app.command("import")
def import_(
    format: Annotated[str, typer.Argument(help="The source's format; `python -m traces formats` lists them.", show_default=False)],
    source: Annotated[Path, typer.Argument(metavar="IN", help="The file or folder to import.", show_default=False)],
    output: Out,
    model: Annotated[str | None, typer.Option(help="Name of the model, for the metadata.")] = None,
    experts: Annotated[int | None, typer.Option(min=1, max=32767, help="Experts of a layer, where the source does not tell.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(min=0, help="Length of each prompt, where the source does not tell.")] = None,
    rows: Annotated[int | None, typer.Option(min=0, help="Refuse a source that has not so many rows.")] = None,
    sort: Annotated[bool, typer.Option("--sort", help="Put arrivals in order; else a source out of order is refused.")] = False,
    drop_failed: Annotated[bool, typer.Option("--drop-failed", help="Leave out requests without output tokens.")] = False,
    start_hour: Annotated[float | None, typer.Option(min=0, help="Hour of the day to draw arrivals from.")] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="How many hours of arrivals to draw.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of what is drawn.")] = None,
    json: Json = False,
) -> None:
    """Read somebody else's trace, check it and write it in our schema. The same source gives the same bytes."""
    from traces.importers import Options, import_trace

    options = Options(model, experts, prompt_tokens, rows, sort, drop_failed, start_hour, hours, seed)
    made = import_trace(format, source, output, options)
    p = made.provenance
    _tell(json, {
        "output": str(output), "kind": made.kind, "rows": made.rows, "made": p.made, "origin": p.origin, "metadata": dict(p.facts),
    }, f"{output}: {made.kind} trace of {made.rows:,} rows, {p.made}: {p.origin}")  # fmt: skip
    for name in ("note", "positions", "requests", "arrivals"):
        if name in p.facts:
            print(f"note: {p.facts[name]}", file=sys.stderr)


@app.command()
def formats(json: Json = False) -> None:
    """The formats that `import` reads."""
    from traces.importers import FORMATS

    rows = [
        {"name": name, "makes": f.kind, "about": f.about, "options": [f"--{o.replace('_', '-')}" for o in f.options]}
        for name, f in FORMATS.items()
    ]
    if json:
        return print(jsonlib.dumps({"formats": rows}))
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("name", "makes", "about", "options"):
        table.add_column(column, no_wrap=column == "name")
    for row in rows:
        table.add_row(*(Text(" ".join(v) if isinstance(v, list) else str(v)) for v in row.values()))
    Console().print(table)


@app.command()
def export(
    trace: Trace,
    format: Annotated[ExportFormat, typer.Option(help="perfetto draws timelines; csv and jsonl hold every kind.", show_default=False)],
    output: Out,
    json: Json = False,
) -> None:
    """Write a trace for other tools."""
    from traces.export import export as write

    rows = write(trace, format.value, output)
    _tell(json, {"output": str(output), "format": format.value, "rows": rows}, f"{output}: {rows:,} rows as {format.value}")


@app.command()
def describe(
    trace: Trace,
    plot: Annotated[Path | None, typer.Option(metavar="OUT", help="Draw it too: OUT.png, OUT.svg or OUT.html.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs over which the experts are spread, for the balancedness.")] = 8,
    json: Json = False,
) -> None:
    """Rows, time span, load, locality, prediction, drift, burstiness, lengths: whatever the kind of trace has."""
    if plot is not None and plot.suffix not in (".png", ".svg", ".html"):
        raise TraceError(f"--plot {plot}: must end in .png, .svg or .html")
    from traces.describe import describe as look

    found = look(trace, gpus)
    if plot is not None:
        from traces.describe.plots import save

        save(found, plot)
    if json:
        return print(jsonlib.dumps(found.as_json()))
    from rich.console import Console

    from traces.describe.tables import show

    show(found, Console(width=None if sys.stdout.isatty() else 150))


@app.command()
def synthesize(
    output: Out,
    fit: Annotated[Path | None, typer.Option(metavar="TRACE", help="Routing trace to imitate; else the knobs below.")] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests to draw.")] = 64,
    prompt: Annotated[int, typer.Option(min=0, help="Tokens of each prompt.")] = 128,
    steps: Annotated[int, typer.Option(min=0, help="Decode steps of each request.")] = 128,
    like: Annotated[Path | None, typer.Option(metavar="REQUESTS", help="Request trace with the lengths to draw.")] = None,
    layers: Annotated[int, typer.Option(min=1)] = 32,
    experts: Annotated[int, typer.Option(min=1)] = 8,
    k: Annotated[int, typer.Option("--k", min=1)] = 2,
    skew: Annotated[float, typer.Option(help="Standard deviation of the log popularity.")] = 1.0,
    overlap: Annotated[float, typer.Option(help="How much a token keeps to the experts of the one before.")] = 0.5,
    predictability: Annotated[float, typer.Option(help="How much a layer's choice tells the next one's.")] = 1.0,
    topics: Annotated[float, typer.Option(help="How much requests differ.")] = 1.0,
    persistence: Annotated[float, typer.Option(help="How much of a topic lasts into the next request, 0 to 1.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json: Json = False,
) -> None:
    """Draw routing from a router that is fitted to a trace or set by knobs. The file says that it is synthetic."""
    from traces.routing_file import Shape, read_routing, write_routing
    from traces.synthetic import by_knobs, draw
    from traces.synthetic import fit as fit_to

    if fit is not None:
        router = fit_to(read_routing(fit), seed=seed)
    else:
        try:
            shape = Shape("synthetic", layers, experts, k)
        except ValueError as e:
            raise TraceError(f"--k, --experts, --layers: {e}") from e
        router = by_knobs(
            shape, skew=skew, overlap=overlap, predictability=predictability, topics=topics, persistence=persistence, seed=seed
        )
    prompts, outputs = _lengths(like, requests, prompt, steps)
    drawn = draw(router, prompts, outputs, seed=seed)
    write_routing(output, drawn)
    _tell(json, {"output": str(output), "rows": len(drawn), "made": "synthetic", "origin": drawn.provenance.origin},
          f"{output}: {len(drawn):,} rows, SYNTHETIC: {drawn.provenance.origin}")  # fmt: skip


def _lengths(like: Path | None, requests: int, prompt: int, steps: int) -> tuple[list[int], list[int]]:
    """Prompt lengths and decode steps; the prefill gives a request's first token, so it has one step less than output tokens."""
    if like is None:
        return [prompt] * requests, [steps] * requests
    from traces.requests import read_requests

    found = read_requests(like)
    return found.prompt_tokens.tolist(), (found.output_tokens - 1).tolist()


def _tell(as_json: bool, value: dict[str, Any], line: str) -> None:
    print(jsonlib.dumps(value) if as_json else line)


def main(arguments: Sequence[str] | None = None) -> int:
    return entry.run(app, "python -m traces", arguments, _meaning)


def _meaning(error: Exception) -> tuple[str, int] | None:
    """A full disk, or no memory left, is a failed run; all else is a bug."""
    if isinstance(error, OSError | MemoryError):
        return f"the run failed, nothing was saved: {error or type(error).__name__}", RUN_FAILED
    return None
