"""A routing trace as whole tokens: experts [tokens, layers, k] in the order of each request's positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from traces.routing_file import Routing


@dataclass(frozen=True, eq=False, slots=True)
class Tokens:
    """Tokens that have a row in every routed layer, by (request, position).

    Attributes
    ----------
    experts [tokens, layers, k]; layers [layers]: the model's numbers of the routed layers.
    request, position [tokens]; decode [tokens] bool.
    most: experts of a layer. left_out: tokens without a row in some layer, or with two.
    """

    experts: NDArray[np.int16]
    layers: NDArray[np.int16]
    request: NDArray[np.int32]
    position: NDArray[np.int32]
    decode: NDArray[np.bool_]
    most: int
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.request)

    @property
    def k(self) -> int:
        return int(self.experts.shape[2])

    def take(self, rows: NDArray[np.bool_]) -> Tokens:
        """The tokens of a mask."""
        return replace(
            self, experts=self.experts[rows], request=self.request[rows], position=self.position[rows], decode=self.decode[rows]
        )

    def chosen(self, layer: int) -> NDArray[np.bool_]:
        """Whether a token went to an expert of the layer at this index [tokens, experts]."""
        found = np.zeros((len(self), self.most), np.bool_)
        np.put_along_axis(found, self.experts[:, layer].astype(np.intp), True, axis=1)
        return found

    def counts(self) -> NDArray[np.int64]:
        """Tokens of each expert [layers, experts]."""
        held = len(self.layers)
        place = np.arange(held)[None, :, None] * self.most + self.experts
        return np.bincount(place.ravel(), minlength=held * self.most).reshape(held, self.most)

    def sequence(self) -> NDArray[np.int64]:
        """Index of each token's request among the requests [tokens]."""
        return np.cumsum(np.concatenate([[0], np.diff(self.request) != 0]))[: len(self)]

    def follows(self) -> NDArray[np.bool_]:
        """Whether token i + 1 is the next position of the same request [tokens - 1]."""
        return np.asarray((np.diff(self.request) == 0) & (np.diff(self.position) == 1))

    def stretches(self) -> Iterator[tuple[int, int]]:
        """Ranges of tokens that follow each other without a gap."""
        if len(self):
            cuts = np.flatnonzero(~self.follows()) + 1
            edges = [0, *cuts.tolist(), len(self)]
            yield from zip(edges[:-1], edges[1:], strict=True)


def tokens_of(routing: Routing) -> Tokens:
    """The whole tokens of a trace in any order of rows."""
    layers = np.unique(routing.layer)
    order = np.lexsort((routing.layer, routing.position, routing.request_id))
    request, position, layer = (getattr(routing, n)[order] for n in ("request_id", "position", "layer"))
    new = np.concatenate([[True], (np.diff(request) != 0) | (np.diff(position) != 0)])[: len(order)]
    token = np.cumsum(new) - 1
    sizes = np.bincount(token) if len(token) else np.empty(0, np.int64)
    right = np.searchsorted(layers, layer) == np.arange(len(order)) - np.flatnonzero(new)[token] if len(token) else new
    whole = (sizes == len(layers)) & (np.bincount(token, weights=right) == len(layers)) if len(token) else sizes.astype(np.bool_)
    kept = order[whole[token]].reshape(-1, max(1, len(layers)))
    first = kept[:, 0] if len(layers) else np.empty(0, np.int64)
    return Tokens(
        routing.experts[kept] if len(layers) else np.empty((0, 0, routing.shape.k), np.int16), layers, routing.request_id[first],
        routing.position[first], routing.decode[first], routing.shape.experts, int((~whole).sum()),
    )  # fmt: skip
