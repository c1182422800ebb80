"""Importers: other people's traces, read, checked and written in our schemas.

An import names its source by file name and SHA-256 and not by the folder it lay in, so that a
second import gives the same bytes. What a source does not tell is not made up in silence: a note in
the metadata says what was taken for granted.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from traces.errors import TraceError
from traces.files import Provenance
from traces.importers.base import Imported, Options, RoutingStream, Source

__all__ = ["FORMATS", "Format", "Options", "Summary", "import_trace", "read"]


@dataclass(frozen=True, slots=True)
class Format:
    """Where the reader of a format is, what it makes, and which options it knows."""

    function: str
    kind: str
    about: str
    options: tuple[str, ...] = ()

    def load(self) -> Callable[[Source], Imported]:
        module, name = self.function.split(":")
        reader: Callable[[Source], Imported] = getattr(import_module(f"traces.importers.{module}"), name)
        return reader


_ROUTER = ("model", "experts", "rows")
FORMATS: Mapping[str, Format] = {
    "azure": Format("arrivals:azure", "requests", "Azure LLM inference traces 2023 and 2024 (CSV)", ("rows", "sort")),
    "burstgpt": Format("arrivals:burstgpt", "requests", "BurstGPT (CSV)", ("rows", "sort", "drop_failed")),
    "mooncake": Format("arrivals:mooncake", "requests", "Mooncake FAST'25 (JSON Lines)", ("rows", "sort")),
    "servegen": Format(
        "servegen:servegen", "requests", "ServeGen clients, drawn into arrivals (JSON)", ("rows", "start_hour", "hours", "seed")
    ),
    "vidur": Format("arrivals:vidur", "requests", "Vidur processed traces (CSV)", ("rows", "sort")),
    "sglang": Format("sglang:sglang", "routing or load", "SGLang's expert distribution recorder (.pt)", _ROUTER),
    "counts": Format("counts:counts", "load", "a matrix of expert counts (JSON, npz, npy, CSV)", _ROUTER),
    "activations": Format("counts:activations", "load", "CSV layer,expert: one line an activation", _ROUTER),
    "npz": Format("routing_npz:npz", "routing", "experts [tokens, layers, k] and seq_offsets (npz, folder)", (*_ROUTER, "prompt_tokens")),
    "requests": Format(
        "routed_experts:routed_experts", "routing", "one file a request with prompt_token_ids, output_token_ids, routed_experts",
        (*_ROUTER, "prompt_tokens"),
    ),
    "vllm": Format("routed_experts:routed_experts", "routing", "vLLM's routed_experts (npy, npz, JSON)", (*_ROUTER, "prompt_tokens")),
    "token-jsonl": Format("routing_jsonl:tokens", "routing", "JSON Lines layer_idx, token_idx, selected_ids", (*_ROUTER, "prompt_tokens")),
    "batch-jsonl": Format("routing_jsonl:batches", "routing", "JSON Lines layer, batch_id, origin_rows, topk_experts", _ROUTER),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Summary:
    """What was written."""

    path: Path
    kind: str
    rows: int
    provenance: Provenance


def read(format: str, path: str | Path, options: Options | None = None) -> Imported:
    """Read a source; raises `TraceError` naming the file and the line, field, array or column."""
    options = options or Options()
    if format not in FORMATS:
        near = difflib.get_close_matches(format, FORMATS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"have {', '.join(FORMATS)}"
        raise TraceError(f"format {format!r}: unknown; {hint}")
    known = FORMATS[format]
    for name in options.said():
        if name not in known.options:
            raise TraceError(f"--{name.replace('_', '-')}: the format {format} does not use it")
    path = Path(path)
    if not path.exists():
        raise TraceError(f"{path}: no such file")
    source = Source(path, options, _command(format, path, options), _fingerprint(path))
    return known.load()(source)


def import_trace(format: str, path: str | Path, out: str | Path, options: Options | None = None) -> Summary:
    """Read a source and write it as a trace file, whole or not at all."""
    found, out = read(format, path, options), Path(out)
    try:
        return _write(out, found)
    except TraceError as e:  # rows that no router or client can have produced: the source is at fault, not the file to be
        raise TraceError(str(e).replace(f"{out}: written rows", f"{path}: imported rows")) from e


def _write(out: Path, found: Imported) -> Summary:
    if isinstance(found, RoutingStream):
        return Summary(out, "routing", _write_routing(out, found), found.provenance)
    from traces.load import Load, write_load
    from traces.requests import write_requests

    if isinstance(found, Load):
        if not found.counts.any():
            raise TraceError(f"{out}: written rows: there are none; a trace needs one or more")
        write_load(out, found)
        return Summary(out, "load", int((found.counts > 0).sum()), found.provenance)
    if not len(found):
        raise TraceError(f"{out}: written rows: there are none; a trace needs one or more")
    write_requests(out, found)
    return Summary(out, "requests", len(found), found.provenance)


def _write_routing(out: Path, found: RoutingStream) -> int:
    from traces.routing_file import writing_routing

    rows = 0
    with writing_routing(out, found.shape, found.provenance) as writer:
        for part in found.parts:
            writer.collect(part)
            rows += len(part)
        if not rows:
            raise TraceError(f"{out}: written rows: there are none; a trace needs one or more")
    return rows


def _fingerprint(path: Path) -> str:
    from traces.importers.source import fingerprint

    try:
        return fingerprint(path)
    except OSError as e:
        raise TraceError(f"{path}: cannot be read: {e.strerror or e}") from e


def _command(format: str, path: Path, options: Options) -> str:
    """The call that repeats the import, without the places of its files."""
    flags: list[str] = []
    for name, value in options.said().items():
        flags += [f"--{name.replace('_', '-')}"] + ([] if value is True else [_plain(value)])
    return shlex.join(["python", "-m", "traces", "import", format, path.name, *flags])


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
