"""Small layers and models that ranks run in the tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from exec.cluster.controller import Cluster
from exec.cluster.execute import Executed, execute
from exec.cluster.profile import Unknown
from exec.cluster.runs import Setup, layers_setup, model_setup
from exec.prompts import byte_prompts
from sim.events import Request
from tests.exec.tiny import spec

SCHEDULERS = ("bulk-sync", "chunked", "overlapped")


def layers(tokens: list[int], scheduler: str, *, keep: bool = True, **options: Any) -> Setup:
    return layers_setup(options.pop("model", None) or spec(), tokens, scheduler, keep=keep, **options)


def serving(count: int, ranks: int, scheduler: str, device: str = "") -> Setup:
    """A whole model that serves so many requests, each a little longer than the one before."""
    requests = [Request(i, 9 + i, 5, 5) for i in range(count)]
    prompts = byte_prompts([r.prompt_tokens for r in requests])
    setup = model_setup(spec(vocab=256), "", requests, [5] * count, prompts, ranks, scheduler, keep=True)
    return replace(setup, order=replace(setup.order, device=device))


def run(cluster: Cluster, setup: Setup) -> Executed:
    cluster.prepare(setup.order)
    scheduler = setup.fresh()
    return execute(cluster, scheduler, setup.requests, Unknown(), scheduler.lanes)
