"""What an importer is given and what it gives back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from traces.errors import TraceError
from traces.files import Made, Provenance
from traces.load import Load
from traces.requests import Requests
from traces.routing_file import Routing, Shape


@dataclass(frozen=True, slots=True)
class Options:
    """What the user says beside the file; None: not said. Each format names those that it uses.

    model: name for the metadata. experts, k: of the router, where the file does not tell.
    prompt_tokens: length of each prompt, where the file does not tell prompt from output.
    rows: how many rows there must be; a file with another number is refused.
    sort: whether arrivals may stand in any order. drop_failed: leave out requests without output.
    hours, seed: how long to draw arrivals, and from which random numbers.
    """

    model: str | None = None
    experts: int | None = None
    prompt_tokens: int | None = None
    rows: int | None = None
    sort: bool = False
    drop_failed: bool = False
    start_hour: float | None = None
    hours: float | None = None
    seed: int | None = None

    def said(self) -> dict[str, object]:
        """The options that were given."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) not in (None, False)}


@dataclass(frozen=True, eq=False, slots=True)
class RoutingStream:
    """A routing trace that arrives in parts, so that none needs to fit into memory whole."""

    shape: Shape
    provenance: Provenance
    parts: Iterator[Routing]


Imported: TypeAlias = Requests | Load | RoutingStream


@dataclass(frozen=True, slots=True)
class Source:
    """A file or folder to import, with the provenance that its import will state."""

    path: Path
    options: Options
    command: str
    digest: str
    notes: dict[str, str] = field(default_factory=dict)

    def provenance(self, origin: str, made: Made = "imported", facts: Mapping[str, str] | None = None) -> Provenance:
        """Names the source by its file name and content, never by the folder it lay in: imports repeat byte for byte."""
        stated = {"source": self.path.name, "source_sha256": self.digest, **self.notes, **(facts or {})}
        return Provenance(made, origin, command=self.command, facts=stated)


def check_rows(source: Source, found: int) -> None:
    """Hold the number of rows against `--rows`, where it was given."""
    wanted = source.options.rows
    if wanted is not None and wanted != found:
        raise TraceError(f"{source.path}: has {found} rows; --rows says {wanted} (truncated?)")


def arrivals(
    source: Source, arrival_ns: NDArray[np.int64], prompt: NDArray[np.int64], output: NDArray[np.int64], origin: str,
    prefix_hashes: tuple[tuple[int, ...] | None, ...] | None = None, first_line: int = 2,
) -> Requests:  # fmt: skip
    """Requests in order of arrival; refuses times that run backwards unless `--sort`."""
    back = np.flatnonzero(np.diff(arrival_ns) < 0)
    order = np.arange(len(arrival_ns))
    if len(back):
        if not source.options.sort:
            raise TraceError(f"{source.path}: line {back[0] + 1 + first_line}: arrives before the line above it; --sort puts them in order")
        order = np.argsort(arrival_ns, kind="stable")
    return Requests(
        request_id=np.arange(len(order), dtype=np.int64), arrival_ns=arrival_ns[order], prompt_tokens=prompt[order].astype(np.int32),
        output_tokens=output[order].astype(np.int32), provenance=source.provenance(origin),
        prefix_hashes=None if prefix_hashes is None else tuple(prefix_hashes[i] for i in order.tolist()),
    )  # fmt: skip


def request_rows(
    shape: Shape, provenance: Provenance, request: int, first: int, prompt: int, experts: NDArray[np.integer],
    weights: NDArray[np.floating] | None = None, layers: NDArray[np.integer] | None = None,
) -> Routing:  # fmt: skip
    """Rows of one request: experts [tokens, layers, k] of the positions `first`, first + 1, ...; the prompt has `prompt` tokens.

    Positions below `prompt` are of the prefill, step 0; position prompt + d - 1 is of decode step d.
    `layers`: the model's numbers of the layers that the array holds, where it leaves some out.
    """
    tokens, held, k = experts.shape
    numbers = np.arange(held) if layers is None else layers
    assert k == shape.k and len(numbers) == held, f"{experts.shape}, {len(numbers)} layers: must be [tokens, layers, {shape.k}]"
    position = np.repeat(np.arange(first, first + tokens), held)
    return Routing(
        decode=position >= prompt, step=np.maximum(position - prompt + 1, 0).astype(np.int32),
        request_id=np.full(len(position), request, np.int32), position=position.astype(np.int32),
        layer=np.tile(numbers.astype(np.int16), tokens), experts=experts.reshape(-1, k).astype(np.int16),
        weights=np.full((len(position), k), np.nan, np.float32) if weights is None else weights.reshape(-1, k).astype(np.float32),
        shape=shape, provenance=provenance,
    )  # fmt: skip


def router(source: Source, layers: int, largest: int, k: int, default_model: str) -> Shape:
    """The router's shape: as many experts as `--experts` says, else as the largest number seen makes necessary."""
    said = source.options.experts
    if said is not None and largest >= said:
        raise TraceError(f"{source.path}: has expert {largest}; --experts says {said}, so they go to {said - 1}")
    try:
        return Shape(source.options.model or default_model, layers, said or largest + 1, k)
    except ValueError as e:
        raise TraceError(f"{source.path}: {e}") from e
