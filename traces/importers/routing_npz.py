"""Per-token routing as arrays: `experts` [tokens, layers, k] with the offsets of the sequences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.errors import TraceError
from traces.importers.base import RoutingStream, Source, check_rows, request_rows, router
from traces.importers.source import INT32_MAX, arrays, count, json_file

_TOKENS = 1 << 14
"""Tokens handed on at a time."""


def npz(source: Source) -> RoutingStream:
    """An .npz with `experts` and `seq_offsets` [sequences + 1], or a folder with such a routes.npz.

    Beside it, sequences.json may tell the length of each sequence's prompt (first_decode_pos) and
    its number of tokens, and probs_subset.npz the gate weights x 255 of some of the sequences
    (probs_u8, seq_index, seq_offsets). Without prompt lengths (and without `--prompt-tokens`) each
    sequence is taken for decode tokens from position 0 on, and the metadata says so.
    """
    folder = source.path if source.path.is_dir() else source.path.parent
    path = source.path / "routes.npz" if source.path.is_dir() else source.path
    held = arrays(path)
    experts, offsets = _experts(held, path)
    lengths = np.diff(offsets)
    prompts = _prompts(source, folder / "sequences.json" if source.path.is_dir() else None, lengths)
    weights, at = _weights(folder / "probs_subset.npz" if source.path.is_dir() else None, lengths, experts.shape)
    tokens, layers, k = experts.shape
    check_rows(source, tokens * layers)
    shape = router(source, layers, int(experts.max(initial=0)), k, source.path.stem)
    provenance = source.provenance(f"per-token routing of {shape.model}", facts={"sequences": str(len(lengths))})

    def parts() -> Iterator[Any]:
        for s, (a, b) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
            for first in range(a, b, _TOKENS):
                last = min(first + _TOKENS, b)
                w = None if s not in at else weights[at[s] + first - a : at[s] + last - a].astype(np.float32) / np.float32(255)
                position = prompts[s] + first - a
                yield request_rows(shape, provenance, s, position, prompts[s], experts[first:last], w)

    return RoutingStream(shape, provenance, parts())


def _experts(held: dict[str, NDArray[Any]], path: Path) -> tuple[NDArray[Any], NDArray[np.int64]]:
    for name, dimensions in (("experts", 3), ("seq_offsets", 1)):
        if name not in held:
            raise TraceError(f"{path}: array {name}: missing; has {', '.join(held) or 'none'}")
        found = held[name]
        if found.ndim != dimensions or not np.issubdtype(found.dtype, np.integer):
            shown = f"is {found.dtype} {list(found.shape)}"
            raise TraceError(f"{path}: array {name}: {shown}; must be whole numbers in {dimensions} dimensions")
    experts, offsets = held["experts"], held["seq_offsets"].astype(np.int64)
    tokens = len(experts)
    if experts.size and (experts.min() < 0 or experts.max() > 32766):
        raise TraceError(f"{path}: array experts: has {experts.min()} to {experts.max()}; must be 0 to 32766")
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != tokens or (np.diff(offsets) < 0).any():
        raise TraceError(f"{path}: array seq_offsets: must rise from 0 to the {tokens} tokens of experts (truncated?)")
    return experts, offsets


def _prompts(source: Source, path: Path | None, lengths: NDArray[np.int64]) -> list[int]:
    """Prompt length of each sequence."""
    if path is None or not path.exists():
        said = source.options.prompt_tokens
        if said is None:
            source.notes["positions"] = "the source tells no prompt lengths: all tokens taken for decode, from position 0 on"
        return [said or 0] * len(lengths)
    rows = json_file(path)
    if not isinstance(rows, list) or len(rows) != len(lengths):
        raise TraceError(f"{path}: must be a list of the {len(lengths)} sequences of routes.npz (truncated?)")
    prompts = []
    for i, row in enumerate(rows):
        where = f"{path}: sequence {i}"
        if not isinstance(row, dict):
            raise TraceError(f"{where}: holds a {type(row).__name__}; an object is needed")
        prompts.append(count(row, "first_decode_pos", where, 0, INT32_MAX - int(lengths[i])))
        if "tokens" in row and count(row, "tokens", where) != lengths[i]:
            raise TraceError(f"{where}: field tokens: has {row['tokens']}, routes.npz has {lengths[i]} (truncated?)")
    return prompts


def _weights(path: Path | None, lengths: NDArray[np.int64], shape: tuple[int, ...]) -> tuple[NDArray[Any], dict[int, int]]:
    """Gate weights x 255 [tokens, layers, k] and sequence -> where in them it begins."""
    if path is None or not path.exists():
        return np.empty((0, *shape[1:]), np.uint8), {}
    held = arrays(path)
    missing = [n for n in ("probs_u8", "seq_index", "seq_offsets") if n not in held]
    if missing:
        raise TraceError(f"{path}: array {missing[0]}: missing; has {', '.join(held)}")
    weights, index, offsets = (held[n] for n in ("probs_u8", "seq_index", "seq_offsets"))
    fits = weights.dtype == np.uint8 and weights.shape[1:] == shape[1:] and offsets.shape == (len(index) + 1,) and index.ndim == 1
    if not fits or (len(index) and (index.min() < 0 or index.max() >= len(lengths))) or len(np.unique(index)) != len(index):
        raise TraceError(f"{path}: arrays probs_u8, seq_index, seq_offsets: do not fit each other or routes.npz")
    if offsets[0] != 0 or offsets[-1] != len(weights) or not np.array_equal(np.diff(offsets), lengths[index]):
        raise TraceError(f"{path}: array seq_offsets: its sequences are not as long as in routes.npz (truncated?)")
    return weights, dict(zip(index.tolist(), offsets[:-1].tolist(), strict=True))
