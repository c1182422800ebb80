"""Places: where in which safetensors file each tensor lies, and each matrix of each expert.

The format (safetensors README, "Format"): 8 bytes little-endian length N, N bytes of JSON that give each
tensor its dtype, shape and [begin, end) behind the header, then the tensors' bytes. Offsets are needed
because reads go around the page cache; the `safetensors` package gives views of a mapped file only, and a
mapped file that is cut short kills its reader.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from exec.checkpoint import SINGLE, index_of
from sim.errors import UserError

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""dtypes that are computed with; a header may name others."""

_HEADER_LIMIT = 100_000_000
"""As the format's own readers have it."""


class Place(NamedTuple):
    """One tensor: `nbytes` from byte `offset` of `file`."""

    name: str
    file: Path
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def parts(self) -> int:
        """Equal parts that have checksums of their own: the experts of a fused tensor [E, rows, columns]."""
        return self.shape[0] if len(self.shape) == 3 and self.shape[0] else 1


class Piece(NamedTuple):
    """Part `part` of tensor `place`, which belongs at element `at` of an array."""

    place: Place
    part: int
    at: int

    @property
    def nbytes(self) -> int:
        return self.place.nbytes // self.place.parts

    @property
    def offset(self) -> int:
        return self.place.offset + self.part * self.nbytes

    @property
    def elements(self) -> int:
        return self.nbytes // ITEM_BYTES[self.place.dtype]


@dataclass(frozen=True, slots=True)
class Header:
    """One file. nbytes: of the whole file as its header tells; digest: SHA-256 of the header."""

    file: Path
    nbytes: int
    digest: str
    places: Mapping[str, Place]


def read_header(file: Path) -> Header:
    """Raises UserError naming the file where it is missing, cut short or no safetensors file."""
    try:
        with file.open("rb", buffering=0) as f:
            size = int.from_bytes(f.read(8), "little")
            if not 2 <= size <= _HEADER_LIMIT:
                raise UserError(f"{file}: not a safetensors file (its header would have {size:,} bytes); download or write it again")
            raw = f.read(size)
    except OSError as e:
        raise UserError(f"{file}: cannot be read ({e.strerror}); a safetensors file is needed") from None
    if len(raw) < size:
        raise UserError(f"{file}: truncated in its header ({len(raw):,} of {size:,} bytes); download or write it again")
    try:
        table = json.loads(raw)
        table.pop("__metadata__", None)
        places = {name: _place(name, file, 8 + size, entry) for name, entry in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{file}: its header is damaged ({e!r}); download or write it again") from None
    nbytes = max((p.offset + p.nbytes for p in places.values()), default=8 + size)
    return Header(file, nbytes, hashlib.sha256(raw).hexdigest(), places)


def _place(name: str, file: Path, data: int, entry: Mapping[str, Any]) -> Place:
    begin, end = entry["data_offsets"]
    dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
    nbytes = end - begin
    if begin < 0 or nbytes < 0 or (dtype in ITEM_BYTES and nbytes != math.prod(shape) * ITEM_BYTES[dtype]):
        raise ValueError(f"tensor {name}: {nbytes} bytes for {dtype} {list(shape)}")
    return Place(name, file, data + begin, nbytes, dtype, shape)


def headers_of(directory: Path) -> dict[Path, Header]:
    """Headers of the checkpoint's files, single or sharded.

    Raises UserError for what `read_header` raises, and for a file that is shorter than its header says.
    """
    files = sorted(set(index_of(directory).values())) or [directory / SINGLE]
    headers = {file: read_header(file) for file in files}
    for file, header in headers.items():
        found = file.stat().st_size
        if found < header.nbytes:
            cut = [p.name for p in header.places.values() if p.offset + p.nbytes > found]
            raise UserError(
                f"{file}: truncated: has {found:,} of {header.nbytes:,} bytes, so tensor {cut[0]} is not whole; download or write it again"
            )
    return headers


class Places:
    """All tensors of a checkpoint by name; `expert` tells an expert's pieces."""

    def __init__(self, directory: Path, headers: Mapping[Path, Header]) -> None:
        self.directory = directory
        self._places = {name: place for header in headers.values() for name, place in header.places.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def of(self, name: str, shape: tuple[int, ...]) -> Place:
        """Raises UserError where the tensor is missing, misshaped, or of a dtype that is not computed with."""
        place = self._places.get(name)
        if place is None:
            raise UserError(f"{self.directory}: tensor {name} is missing; it needs shape {list(shape)}")
        if place.shape != shape:
            raise UserError(f"{place.file}: tensor {name} has shape {list(place.shape)}; config.json needs {list(shape)}")
        if place.dtype not in ITEM_BYTES:
            raise UserError(f"{place.file}: tensor {name} has dtype {place.dtype}; one of {', '.join(ITEM_BYTES)} is needed")
        return place

    def expert(self, spec: Any, prefix: str, expert: int) -> tuple[Piece, ...]:
        """Pieces of one expert, laid out as `exec.weights.split_expert` cuts it: gate [F, H], up [F, H], down [H, F].

        prefix: that of the layer's MoE block, see `exec.weights.moe_prefix`. Separate w1, w3, w2, or fused
        gate_up_proj [E, 2F, H] and down_proj [E, H, F].
        """
        e, f, h = spec.experts, spec.ffn, spec.hidden
        fused = prefix + "experts.gate_up_proj"
        if fused in self:
            gate_up, down = self.of(fused, (e, 2 * f, h)), self.of(prefix + "experts.down_proj", (e, h, f))
            return Piece(gate_up, expert, 0), Piece(down, expert, 2 * f * h)
        names = [f"{prefix}experts.{expert}.{w}.weight" for w in ("w1", "w3", "w2")]
        shapes = ((f, h), (f, h), (h, f))
        return tuple(Piece(self.of(n, s), 0, i * f * h) for i, (n, s) in enumerate(zip(names, shapes, strict=True)))
