"""Routing that a serving engine returned with each request: `routed_experts` [tokens, layers, k].

vLLM (`enable_return_routed_experts`) and SGLang return the experts of every token that passed the
model: the prompt, and the output but its last token.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.errors import TraceError
from traces.importers.base import RoutingStream, Source, check_rows, request_rows, router
from traces.importers.source import arrays, field, json_file, json_lines, whole_array

_SUFFIXES = (".npz", ".npy", ".json", ".jsonl")


@dataclass(frozen=True, slots=True)
class _Request:
    where: str
    experts: NDArray[np.int64]
    prompt: int


def routed_experts(source: Source) -> RoutingStream:
    """A file, or a folder with one file a request (.npz, .npy, .json) or several (.jsonl), in the order of their names.

    Each request has `routed_experts` [tokens, layers, k] and says where its prompt ends:
    `prompt_token_ids` (or `prompt_tokens`, their number), or `--prompt-tokens` for all. With
    `output_token_ids` (or vLLM's `outputs: [{token_ids, routed_experts}]`) the number of rows is
    checked: prompt + output, or one less. Layers whose rows are all 0 are dense and left out.
    """
    held: NDArray[np.int64] | None = None
    rows, largest, shape3 = 0, 0, None
    for r in _requests(source):
        _, layers, k = r.experts.shape
        shape3 = shape3 or (layers, k)
        if (layers, k) != shape3:
            raise TraceError(f"{r.where}: has {layers} layers and k = {k}, the requests before it {shape3[0]} and {shape3[1]}")
        routed = np.flatnonzero(r.experts.any(axis=(0, 2))) if k > 1 else np.arange(layers)
        held = routed if held is None else np.union1d(held, routed)
        largest = max(largest, int(r.experts.max(initial=0)))
        rows += len(r.experts)
    if held is None or shape3 is None or not len(held):
        raise TraceError(f"{source.path}: holds no routed_experts")
    check_rows(source, rows * len(held))
    shape = router(source, shape3[0], largest, shape3[1], source.path.stem)
    provenance = source.provenance(f"routing of {shape.model} as its serving engine returned it", facts={"moe_layers": str(len(held))})

    def parts() -> Iterator[Any]:
        for i, r in enumerate(_requests(source)):
            yield request_rows(shape, provenance, i, 0, r.prompt, r.experts[:, held], layers=held)

    return RoutingStream(shape, provenance, parts())


def _requests(source: Source) -> Iterator[_Request]:
    paths = [source.path]
    if source.path.is_dir():
        paths = sorted(p for p in source.path.iterdir() if p.suffix in _SUFFIXES)
        if not paths:
            raise TraceError(f"{source.path}: has no files with {', '.join(_SUFFIXES)}")
    for path in paths:
        if path.suffix in (".npz", ".npy"):
            held = arrays(path)
            yield _request({("routed_experts" if n == "" else n): a for n, a in held.items()}, str(path), source)
        elif path.suffix == ".jsonl" or path.name.endswith(".jsonl.gz"):
            for where, row in json_lines(path):
                yield _request(row, where, source)
        else:
            value = json_file(path)
            for i, row in enumerate(value if isinstance(value, list) else [value]):
                yield _request(row, f"{path}: request {i}", source)


def _request(row: Any, where: str, source: Source) -> _Request:
    if not isinstance(row, Mapping):
        raise TraceError(f"{where}: holds a {type(row).__name__}; an object with routed_experts is needed")
    output = row
    if "routed_experts" not in row and isinstance(row.get("outputs"), list) and row["outputs"] and isinstance(row["outputs"][0], Mapping):
        output = row["outputs"][0]
    experts = _experts(field(output, ("routed_experts",), where), row, f"{where}: field routed_experts")
    prompt = _length(row, ("prompt_token_ids",), "prompt_tokens", where)
    if prompt is None:
        prompt = source.options.prompt_tokens
    if prompt is None:
        raise TraceError(f"{where}: tells no prompt length; prompt_token_ids, prompt_tokens or --prompt-tokens is needed")
    made = _length(output, ("output_token_ids", "token_ids"), "output_tokens", where)
    if made is not None and len(experts) not in (prompt + made, prompt + made - 1):
        raise TraceError(f"{where}: has {len(experts)} rows for {prompt} prompt and {made} output tokens (truncated?)")
    if made is None and len(experts) < prompt:
        raise TraceError(f"{where}: has {len(experts)} rows, fewer than the {prompt} tokens of the prompt (truncated?)")
    return _Request(where, experts, prompt)


def _length(row: Mapping[str, Any], ids: tuple[str, ...], number: str, where: str) -> int | None:
    for name in ids:
        if name in row:
            value = row[name]
            if isinstance(value, np.ndarray) and value.ndim == 1 or isinstance(value, list):
                return len(value)
            raise TraceError(f"{where}: field {name}: must be a list of token ids")
    if number not in row:
        return None
    return int(whole_array(row[number], f"{where}: field {number}", 0))


def _experts(value: Any, row: Mapping[str, Any], where: str) -> NDArray[np.int64]:
    if isinstance(value, str):
        value = _packed(value, row, where)
    return whole_array(value, where, 3, 0, 32766)


def _packed(value: str, row: Mapping[str, Any], where: str) -> NDArray[np.int32]:
    """SGLang's base64 of little-endian int32, flat: its shape is in the field routed_experts_shape."""
    shape = whole_array(field(row, ("routed_experts_shape",), where), f"{where}_shape", 1, 1)
    try:
        flat = np.frombuffer(base64.b64decode(value, validate=True), "<i4")
    except (binascii.Error, ValueError) as e:
        raise TraceError(f"{where}: no base64 of 32-bit numbers (truncated?): {e}") from e
    if len(shape) != 3 or int(np.prod(shape)) != len(flat):
        raise TraceError(f"{where}: has {len(flat)} numbers, its shape says {shape.tolist()} (truncated?)")
    return flat.reshape(shape)
