"""What can be run on a cluster: MoE layers over so many rows a rank, or a whole model; and the same in a single process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exec import decoder
from exec.cluster import shards
from exec.cluster.job import Order
from exec.cluster.outputs import Floats, Outputs
from exec.products import product
from exec.weights import Weights
from kernels import combine, dispatch, rms_norm
from sim.errors import UserError
from sim.events import Request
from sim.models.spec import ModelSpec
from sim.schedulers.ep import registry
from sim.schedulers.ep.kernels import Kernels, Launches
from sim.schedulers.ep.serving import Serving
from sim.schedulers.policy import Policy

ONE_EACH = Launches()
"""On a CPU the call that launches a stage is the stage: one launch each, not the hundreds of a GPU's kernels."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What is run: an order for the ranks, the requests that the scheduler hears of, and how to make its object."""

    order: Order
    requests: tuple[Request, ...]
    scheduler: str
    layers: int
    chunks: int | None = None

    def fresh(self) -> Any:
        """A scheduler object that has seen nothing yet."""
        made = _kernels(self.scheduler, self.order.model, self.order.ranks, 1 if self.order.serves else self.layers, self.chunks)
        return Serving(made) if self.order.serves else made


def _kernels(name: str, model: ModelSpec, ranks: int, layers: int, chunks: int | None) -> Kernels:
    found = registry.load(name)
    if not issubclass(found, Kernels):
        raise UserError(f"--scheduler {name}: schedules the inside of a GPU kernel; ranks run bulk-sync, chunked or overlapped")
    options: dict[str, Any] = {} if chunks is None else {"chunks": chunks}
    try:
        return found(model, Policy(batch=ranks, microbatch=1), ranks=ranks, layers=layers, launches=ONE_EACH, **options)
    except TypeError as error:
        if "chunks" not in str(error):
            raise
        raise UserError(f"--chunks: scheduler {name} has none") from None


def layers_setup(
    model: ModelSpec, tokens: Sequence[int], scheduler: str, *, layers: int | None = None, skew: float = 0.0, seed: int = 0,
    chunks: int | None = None, threads: int = 1, keep: bool = False, device: str = "",
) -> Setup:  # fmt: skip
    """MoE layers of a model's sizes over `tokens` [ranks] rows. layers: how many one after another; more than the model has
    go through its weights again."""
    order = Order(model, len(tokens), seed, tokens=tuple(tokens), skew=skew, threads=threads, keep=keep, device=device)
    requests = tuple(Request(r, n, 0) for r, n in enumerate(tokens))
    return _sized(Setup(order, requests, scheduler, layers or model.layers, chunks))


def model_setup(
    model: ModelSpec, weights: str, requests: Sequence[Request], lengths: Sequence[int], prompts: Sequence[Sequence[int]], ranks: int,
    scheduler: str, *, seed: int = 0, chunks: int | None = None, threads: int = 1, keep: bool = False,
) -> Setup:  # fmt: skip
    """A whole model that serves `requests`. weights: directory with safetensors, or empty."""
    order = Order(
        model, ranks, seed, weights=weights, requests=tuple(requests), prompts=tuple(map(tuple, prompts)), lengths=tuple(lengths),
        threads=threads, keep=keep,
    )  # fmt: skip
    return _sized(Setup(order, tuple(requests), scheduler, model.layers, chunks))


def _sized(setup: Setup) -> Setup:
    """With the chunks of the scheduler, and room for the largest message that it may send."""
    order = setup.order
    made = _kernels(setup.scheduler, order.model, order.ranks, 1, setup.chunks)
    most = max(order.rows_of(r) for r in range(order.ranks))
    rows = made.shape([most] * order.ranks).most_rows(-(-most // made.chunks))
    return replace(setup, order=replace(order, chunks=made.chunks, most_rows=rows))


# The same in one process ------------------------------------------------------------------------


def single_process(setup: Setup) -> Floats:
    """Activations [tokens of all ranks, hidden] after the layers, computed here, without ranks."""
    order = setup.order
    whole = replace(order, ranks=1, tokens=(sum(order.tokens),))
    weights = shards.shard(whole, 0)
    hidden = np.concatenate([shards.layer_inputs(order, r) for r in range(order.ranks)])
    for i in range(setup.layers):
        moe_layer(order.model, weights, i % order.model.layers, hidden)
    return hidden


def moe_layer(model: ModelSpec, weights: Weights, layer: int, hidden: Floats, forced: NDArray[np.int16] | None = None) -> None:
    """One MoE layer in place, as `decoder.post_attn` does behind attention. forced: experts of each row, where a trace names them."""
    normed, logits = np.empty_like(hidden), np.empty((len(hidden), model.experts), np.float32)
    rms_norm.forward(hidden, weights.layers[layer].ffn_norm, model.norm_eps, normed)
    product(normed, weights.layers[layer].router, logits)
    ids, shares = decoder.route(logits, model.top_k, forced)
    offsets, positions = np.empty(model.experts + 1, np.int32), np.empty(ids.shape, np.int32)
    rows = np.empty((ids.size, model.hidden), np.float32)
    dispatch.forward(normed, ids, offsets, positions, rows)
    space = decoder.Scratch(np.zeros(3 * model.ffn * decoder.EXPERT_ROWS, np.float32))
    decoder.run_experts(model, (weights.experts[layer],), rows, offsets, space)
    combine.forward(rows, positions, shares, hidden)


def single_process_model(setup: Setup) -> tuple[dict[int, list[int]], dict[int, Floats]]:
    """(tokens, logits) by request of the same model under `resident` in this process."""
    from exec import session
    from exec.execute import weights_of
    from exec.local import this_computer
    from sim.schedulers.resident import Resident

    order = setup.order
    scheduler = Resident(order.model, Policy(batch=len(order.requests), microbatch=len(order.requests)))
    weights = weights_of(order.weights or order.model.name, order.model, order.seed)
    out = session.run(
        order.model, weights, this_computer(), scheduler, order.requests, order.prompts, lengths=order.lengths, keep_logits=True
    )
    return out.tokens, out.logits


@dataclass(frozen=True, slots=True)
class Difference:
    """tokens_equal: None where only layers were run. largest: of activations or logits, absolute."""

    largest: float
    tokens_equal: bool | None


def compare(setup: Setup, outputs: dict[int, Outputs]) -> Difference:
    """A kept run against the single process."""
    if not setup.order.serves:
        found = [outputs[r].hidden for r in range(setup.order.ranks)]
        assert all(h is not None for h in found), "the order did not say to keep activations"
        return Difference(float(np.abs(np.concatenate(found) - single_process(setup)).max(initial=0.0)), None)
    tokens, logits = single_process_model(setup)
    mine = {r: t for o in outputs.values() for r, t in o.tokens.items()}
    kept = {r: rows for o in outputs.values() for r, rows in o.logits.items()}
    largest = max(float(np.abs(kept[r][: len(rows)] - rows).max()) for r, rows in logits.items())
    return Difference(largest, mine == tokens)


def weights_directory(model: str) -> str:
    """`model` where it names a directory with weights, else empty: they are drawn then."""
    return str(Path(model)) if Path(model).is_dir() else ""
