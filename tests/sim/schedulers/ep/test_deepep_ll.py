"""DeepEP's low-latency scheduler: every row is sent once and comes back once, in two micro-batches that overlap."""

from __future__ import annotations

import numpy as np
import pytest

from sim import machines
from sim.ep import routing, study, systems
from sim.ep.layer import MoELayer
from sim.plan import Plan
from sim.schedulers.ep.deepep_ll import DeepEPLowLatency
from sim.schedulers.policy import Policy

LAYER = MoELayer(7168, 2048, 64, 8, dtype="bf16")
TOKENS = [128] * 8
COUNTS = routing.drawn(LAYER, TOKENS, seed=3)


def plan(chunks: int) -> Plan:
    return DeepEPLowLatency(LAYER.model(), Policy(batch=8, microbatch=1), chunks=chunks, rows=COUNTS).plan(TOKENS)


def puts(found: Plan, variant: str) -> np.ndarray:
    rows = np.zeros((8, 8), np.int64)
    for task in found.tasks():
        if task.work.op == "put" and task.work.variant == variant:
            rows[task.rank, task.page] += task.work.tokens
            assert task.work.messages == max(1, task.work.tokens)
    return rows


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_every_row_goes_out_and_comes_back(chunks: int) -> None:
    sent = COUNTS.reshape(8, 8, 8).sum(axis=2)
    np.fill_diagonal(sent, 0)
    assert (puts(plan(chunks), "dispatch") == sent).all()
    assert (puts(plan(chunks), "combine") == sent.T).all()


def test_bytes_of_a_row() -> None:
    """fp8 with a scale of 4 bytes for 128 values and 16 bytes of header out, bf16 back (DeepEP, docs/legacy.md)."""
    for task in plan(1).tasks():
        if task.work.op == "put":
            assert task.work.bytes == task.work.tokens * (7408 if task.work.variant == "dispatch" else 14336)


def test_the_second_micro_batch_hides_messages_of_the_first() -> None:
    def hidden(chunks: int) -> float:
        system = systems.System("ll", "deepep-ll", "test", {"chunks": chunks}, systems.LOW_LATENCY)
        prepared = study.prepare(system, machines.load("8xh800"), LAYER, TOKENS, COUNTS)
        return float(study.study(prepared, study.Jitter.named("none")).row["comm_hidden"])

    assert hidden(1) < 0.05 < hidden(2)
