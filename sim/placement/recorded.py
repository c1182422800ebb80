"""Reads what `--load` names: routing traces and count matrices of every form, as windows of counts and recorded tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim.errors import UserError
from sim.placement.problem import Floats, Sample
from traces import files
from traces.errors import TraceError
from traces.importers import read as read_foreign
from traces.importers.base import Imported, RoutingStream
from traces.importers.source import arrays, whole_array
from traces.load import Load, read_load
from traces.routing_file import Routing, concatenate, read_routing

MOST_TOKENS = 1 << 17
"""Recorded tokens that are kept; longer traces are thinned evenly (their counts are taken from all)."""
COUNTS = (".json", ".csv", ".npz", ".npy")


@dataclass(frozen=True, eq=False, slots=True)
class Recorded:
    """windows [windows, layers, experts] of counts; sample: the tokens themselves, where the files tell them."""

    windows: Floats
    sample: Sample | None

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and experts."""
        return self.windows.shape[1], self.windows.shape[2]

    def with_experts(self, experts: int) -> Recorded:
        """With further experts that nobody chose: a routing file tells only those that it saw."""
        extra = experts - self.windows.shape[2]
        return Recorded(np.pad(self.windows, ((0, 0), (0, 0), (0, extra))), self.sample) if extra > 0 else self


def read(paths: Sequence[Path], flag: str = "--load") -> Recorded:
    """One or several recordings of one model; each file's windows stay apart, a routing trace being one window.

    Raises `UserError` or `TraceError` that names the file and what is wrong with it.
    """
    if not paths:
        raise UserError(f"{flag}: missing; give a routing trace or a matrix of expert counts")
    parts = [_one(path, flag) for path in paths]
    experts = max(part.shape[1] for part in parts)
    for path, part in zip(paths, parts, strict=True):
        if part.shape[0] != parts[0].shape[0] or (part.sample is None and part.shape[1] != experts):
            found = f"{path} has {part.shape[0]} layers of {part.shape[1]} experts"
            raise UserError(f"{flag}: {found}; the other files have {parts[0].shape[0]} of {experts}")
    parts = [part.with_experts(experts) for part in parts]
    return Recorded(np.concatenate([part.windows for part in parts]), _joined(parts, flag))


def _joined(parts: Sequence[Recorded], flag: str) -> Sample | None:
    """The tokens of all parts, each with the number of its part's window."""
    first = np.cumsum([0, *(len(part.windows) for part in parts)])
    samples = [(part.sample, window) for part, window in zip(parts, first, strict=False) if part.sample is not None]
    if not samples:
        return None
    if len({s.experts.shape[2] for s, _ in samples}) > 1:
        raise UserError(f"{flag}: the routing traces choose different numbers of experts a token; one model is needed")
    return Sample(np.concatenate([s.experts for s, _ in samples]), np.concatenate([s.window + window for s, window in samples]))


def _one(path: Path, flag: str) -> Recorded:
    if not path.exists():
        raise UserError(f"{flag}: {path}: no such file")
    try:
        if path.suffix == ".parquet":
            return _parquet(path)
        if path.is_dir() or _is_routing(path):
            return _recorded(read_foreign("npz", path), path)
        if path.suffix == ".pt":
            return _recorded(read_foreign("sglang", path), path)
        if Path(path.name.removesuffix(".gz")).suffix in COUNTS:
            return _recorded(read_foreign("counts", path), path)
    except TraceError as e:
        raise UserError(f"{flag}: {e}") from None
    raise UserError(f"{flag}: {path} ends in {path.suffix or 'nothing'}; .parquet, .pt, {', '.join(COUNTS)} or a folder are read")


def _is_routing(path: Path) -> bool:
    """Whether an .npz holds per-token routing rather than counts."""
    return path.suffix == ".npz" and {"experts", "seq_offsets"} <= set(arrays(path))


def _parquet(path: Path) -> Recorded:
    with files.opening(path) as f:
        facts = files.facts_of(f.metadata.metadata, path)
        columns = f.schema_arrow.names
    if facts.get("kind") == "routing":
        return _of_routing(read_routing(path), path)
    if facts or not {"layer", "expert", "count"} <= set(columns):
        return _of_load(read_load(path), path)
    return _plain(path, "window" in columns)


def _plain(path: Path, windowed: bool) -> Recorded:
    """Somebody else's Parquet with the columns (window,) layer, expert, count."""
    import pyarrow as pa

    names = ("window", "layer", "expert") if windowed else ("layer", "expert")
    with files.opening(path) as f:
        table = f.read(columns=[*names, "count"])
    values = {n: files.integers(table, n, str(path)) for n in (*names, "count")}
    for name, column in values.items():
        if not pa.types.is_integer(table.column(name).type):
            raise TraceError(f"{path}: column {name}: has type {table.column(name).type}; whole numbers are needed")
        files.in_range(column, name, str(path), 0, None if name == "count" else 32766)
    shape = [int(values[n].max(initial=0)) + 1 for n in names]
    counts = np.zeros(shape)
    np.add.at(counts, tuple(values[n] for n in names), values["count"])
    return _checked(whole_array((counts if windowed else counts[None]).astype(np.int64), str(path), 3, 0, 1 << 62), path)


def _recorded(found: Imported, path: Path) -> Recorded:
    if isinstance(found, RoutingStream):
        return _of_routing(concatenate(list(found.parts)), path)
    assert isinstance(found, Load), type(found)
    return _of_load(found, path)


def _of_load(load: Load, path: Path) -> Recorded:
    return _checked(load.counts, path)


def _checked(counts: np.ndarray, path: Path) -> Recorded:
    if not counts.any():
        raise TraceError(f"{path}: holds no counts but zeros; a recording of some tokens is needed")
    return Recorded(counts.astype(np.float64), None)


def _of_routing(routing: Routing, path: Path) -> Recorded:
    from traces.describe.tokens import tokens_of

    tokens = tokens_of(routing)
    if not len(tokens):
        raise TraceError(f"{path}: has no token with a row in every layer; a whole routing trace is needed")
    rows = np.unique(np.linspace(0, len(tokens) - 1, min(MOST_TOKENS, len(tokens))).astype(np.int64))
    return Recorded(tokens.counts().astype(np.float64)[None], Sample(tokens.experts[rows], np.zeros(len(rows), np.int64)))
