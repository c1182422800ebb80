"""Two calibrations: `paper`, whose constants are fitted to the paper's bars, and `healthy`, with published rates and nothing fitted.

In `paper` all of NCCL's traffic shares one rate, however many GPUs there are: 53 GB/s, 26 a GPU with two and 7 with eight, where
NVLink gives each 450, and each exchange takes a tenth of a millisecond beside its bytes. No NVLink fabric behaves so; a path through
the memory of the host (a VM with 20 cores) would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from sim import machines
from sim.ep.systems import SYSTEMS, System
from sim.machines.parts import OpRate
from sim.machines.schema import Machine
from sim.schedulers.ep.kernels import Launches

NCCL_BYTES_PER_S = 53e9
PIECES_RATE = 1 / 1.1
EXCHANGE_S = 100e-6
COPY_BYTES_PER_S = 0.9e9
TENSOR_EFFICIENCY = 0.19

Of = Callable[[int, int], System]
"""A system on so many GPUs with so many experts."""


class Constant(NamedTuple):
    name: str
    value: str
    scope: str
    fitted_to: str


CONSTANTS = (
    Constant("rate of all NCCL traffic together", "53 GB/s", "shared", "slopes of Megatron-TE from 4K to 16K tokens, 4 and 8 GPUs"),
    Constant("time of an NCCL exchange beside its bytes", "100 us", "shared", "FasterMoE's bars, 4 GPUs: it has 32, the others two"),
    Constant("FasterMoE: rate in point-to-point pieces", "1 / 1.1", "one system", "slopes of FasterMoE, 4 and 8 GPUs"),
    Constant("Comet: copy by one block", "0.9 GB/s", "one system", "Comet's bars"),
    Constant("FlashMoE: share of a block's tf32 peak", "0.19", "one system",
             "FlashMoE's bars (their total at 16K alone gives 0.16, waits included)"),
)


def gpus(machine: str, count: int) -> Machine:
    """The machine with `count` GPUs on its switch."""
    found = machines.load(machine)
    assert found.topology is not None
    return found.model_copy(update={"topology": found.topology.model_copy(update={"gpus": count})})


def _nccl(ranks: int, share: float = 1.0) -> OpRate:
    """Every rank's equal part of the common rate, as a share of its NVLink port (450 GB/s)."""
    return OpRate(
        op="put", lane="put.nvlink", latency_s=EXCHANGE_S, bytes_efficiency=NCCL_BYTES_PER_S * share / ranks / 450e9, sms=20,
        source="fitted to the bars of FlashDMoE (arXiv 2506.04667); SMs as of healthy NCCL",
    )  # fmt: skip


def _fastermoe(ranks: int, experts: int) -> System:
    """One exchange for each expert that a rank holds: its time grows with fewer ranks, as the bars do. The puts are the last."""
    before = experts // ranks - 1
    exchange = OpRate(op="enter", lane="comm", latency_s=EXCHANGE_S, source="fitted to the bars: see the puts")
    stages = Launches(dispatch=before, combine=before)
    return replace(SYSTEMS["chunked:fastermoe"], ops=(_nccl(ranks, PIECES_RATE), exchange), stages=stages)


def _comet(ranks: int, experts: int) -> System:
    return _with_rows("comet", lambda row: {"bytes_per_s": COPY_BYTES_PER_S} if row.lane == "movers" else {})


def _flashmoe(ranks: int, experts: int) -> System:
    found = _with_rows("flashdmoe", lambda row: {"flops_efficiency": TENSOR_EFFICIENCY} if row.dtype == "tf32" else {})
    return replace(found, dtype="tf32")


def _with_rows(name: str, changed: Callable[[OpRate], dict[str, float]]) -> System:
    rows = (row.model_copy(update={**update, "source": "fitted to the bars"}) if (update := changed(row)) else row
            for row in SYSTEMS[name].ops)  # fmt: skip
    return replace(SYSTEMS[name], ops=tuple(rows))


PAPER: Mapping[str, Of] = {
    "FlashMoE": _flashmoe,
    "Comet": _comet,
    "FasterMoE": _fastermoe,
    "Megatron-CUTLASS": lambda ranks, experts: replace(SYSTEMS["bulk-sync:cutlass"], ops=(_nccl(ranks),)),
    "Megatron-TE": lambda ranks, experts: replace(SYSTEMS["bulk-sync:te"], ops=(_nccl(ranks),)),
}
"""FlashMoE stores and computes tf32, the others fp16."""

HEALTHY: Mapping[str, Of] = {
    "FlashMoE": lambda ranks, experts: replace(SYSTEMS["flashdmoe"], dtype="tf32"),
    "Comet": lambda ranks, experts: SYSTEMS["comet"],
    "FasterMoE": lambda ranks, experts: SYSTEMS["chunked:fastermoe"],
    "Megatron-CUTLASS": lambda ranks, experts: SYSTEMS["bulk-sync:cutlass"],
    "Megatron-TE": lambda ranks, experts: SYSTEMS["bulk-sync:te"],
}

CALIBRATIONS = {"paper": PAPER, "healthy": HEALTHY}
