"""What the routers choose for each request at each step, as a trace has it: served again with forced choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.errors import UserError
from sim.models.spec import ModelSpec
from sim.placement.placement import Bools
from sim.placement.problem import Floats, Ints


@dataclass(frozen=True, eq=False, slots=True)
class Chosen:
    """table [requests, steps, layers, k] int16: experts of each request's row. experts: of a layer."""

    table: NDArray[np.int16]
    experts: int

    def rows(self, requests: Sequence[int], steps: Sequence[int], layer: int) -> NDArray[np.int16]:
        """Experts [n, k] of these requests' rows, each at its own step."""
        found: NDArray[np.int16] = self.table[np.asarray(requests, np.intp), np.asarray(steps, np.intp), layer]
        return found

    def counts(self, requests: slice) -> Floats:
        """Rows of each expert [layers, experts] over all steps of these requests."""
        part = self.table[requests]
        layers = part.shape[2]
        place = np.arange(layers)[:, None] * self.experts + part
        return np.bincount(place.ravel(), minlength=layers * self.experts).reshape(layers, self.experts).astype(np.float64)

    def shifted(self, first: int, change: Ints) -> Chosen:
        """From request `first` on each expert is another's: change [layers, experts] says whose."""
        table = self.table.copy()
        table[first:] = change[np.arange(len(change))[:, None], table[first:]]
        return Chosen(table, self.experts)


def onto_one_rank(counts: Floats, held: Bools) -> Ints:
    """A hot-expert shift that hits a placement [layers, experts, ranks] hardest: in each layer the experts that one rank holds alone change
    places with the hottest ones, as `Chosen.shifted` takes it [layers, experts]. The rank is the one that holds most alone."""
    change = np.tile(np.arange(held.shape[1]), (len(held), 1))
    for layer, row in enumerate(held):
        alone = row & (row.sum(axis=1) == 1)[:, None]
        mine = np.flatnonzero(alone[:, int(alone.sum(axis=0).argmax())])
        hottest = np.argsort(-counts[layer], kind="stable")[: len(mine)]
        cold = np.setdiff1d(mine, hottest)
        hot = np.setdiff1d(hottest, mine)
        change[layer, hot], change[layer, cold] = cold, hot
    return change


def recorded(path: Path, model: ModelSpec, requests: int, steps: int) -> Chosen:
    """A trace's whole tokens dealt out in the order recorded, so many to each request; from the beginning again where it has fewer.

    Raises UserError for a trace of another shape or without whole tokens, `traces.errors.TraceError` for a file that is none.
    """
    from traces.describe.tokens import tokens_of
    from traces.routing import read_routing

    routing = read_routing(path)
    shape = routing.shape
    for name in ("k", "experts", "layers"):
        found, needed = getattr(shape, name), model.top_k if name == "k" else getattr(model, name)
        if found != needed:
            raise UserError(f"--trace {path}: metadata {name}: is {found}; a trace of {model.name} has {needed}")
    tokens = tokens_of(routing)
    if not len(tokens):
        raise UserError(f"--trace {path}: has no token with a row in every layer; a whole routing trace is needed")
    at = np.arange(requests * steps) % len(tokens)
    return Chosen(tokens.experts[at].reshape(requests, steps, model.layers, model.top_k), model.experts)


def drawn(model: ModelSpec, requests: int, steps: int, skew: float, seed: int) -> Chosen:
    """Choices of a synthetic router (`traces.synthetic`), the logarithms of whose experts' popularity have the deviation `skew`."""
    from traces.describe.tokens import tokens_of
    from traces.routing_file import Shape
    from traces.synthetic import by_knobs, draw

    router = by_knobs(Shape(model.name, model.layers, model.experts, model.top_k), skew=skew, topics=0.5, seed=seed)
    tokens = tokens_of(draw(router, [0] * requests, [steps] * requests, seed=seed))
    return Chosen(tokens.experts.reshape(requests, steps, model.layers, model.top_k), model.experts)
