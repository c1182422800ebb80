"""Small traces to write, read and damage."""

from __future__ import annotations

import numpy as np

from traces.files import Provenance
from traces.load import Load
from traces.requests import Requests
from traces.routing import Routing, Shape
from traces.timeline import Timeline

SOURCE = Provenance("recorded", "a test", "measured", command="pytest")


def timeline(n: int = 6, seed: int = 0) -> Timeline:
    r = np.random.default_rng(seed)
    start = r.integers(0, 10**13, n)
    return Timeline(
        task_id=np.arange(n, dtype=np.int64), attempt=np.zeros(n, np.int16), op=r.integers(0, 2, n).astype(np.int32),
        lane=r.integers(0, 3, n).astype(np.int32), rank=np.zeros(n, np.int16), phase=np.full(n, 2, np.int32),
        step=np.arange(1, n + 1, dtype=np.int32), layer=np.full(n, -1, np.int16), microbatch=np.zeros(n, np.int16), start_ps=start,
        end_ps=start + r.integers(0, 10**12, n), bytes=r.integers(0, 2**40, n), flops=r.integers(0, 2**50, n),
        status=r.integers(0, 4, n).astype(np.int32), ops=("post_attn", "page_to_gpu"), lanes=("gpu", "h2d", ""), provenance=SOURCE,
    )  # fmt: skip


def routing(requests: tuple[int, ...] = (3, 5, 8), prompt: int = 4, steps: int = 3, experts: int = 6, k: int = 2) -> Routing:
    """Prompts of `prompt` tokens and `steps` decode steps of each request, experts drawn at random, rows shuffled."""
    r = np.random.default_rng(1)
    layers = 2
    rows = [(s, q, p, layer) for q in requests for p in range(prompt + steps) for layer in range(layers) for s in [max(0, p - prompt + 1)]]
    r.shuffle(rows)
    step, request, position, layer = np.array(rows, np.int32).T
    chosen = np.argsort(r.random((len(rows), experts)), axis=1)[:, :k].astype(np.int16)
    return Routing(
        decode=step > 0, step=step.copy(), request_id=request.copy(), position=position.copy(), layer=layer.astype(np.int16),
        experts=chosen, weights=r.random((len(rows), k), np.float32), shape=Shape("tiny-mixtral", layers, experts, k), provenance=SOURCE,
    )  # fmt: skip


def requests(n: int = 5) -> Requests:
    return Requests(
        request_id=np.arange(n, dtype=np.int64), arrival_ns=np.arange(n, dtype=np.int64) * 10**9, prompt_tokens=np.full(n, 77, np.int32),
        output_tokens=np.full(n, 32, np.int32), provenance=SOURCE,
    )  # fmt: skip


def load(windows: int = 2, layers: int = 3, experts: int = 4) -> Load:
    return Load(np.arange(windows * layers * experts).reshape(windows, layers, experts), SOURCE)
