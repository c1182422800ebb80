"""Systems: a scheduler with its parameters, and the rows that it adds to a machine's op table.

Every figure that is a system's and not the machine's stands here: launches, tiles, what its kernels reach,
what its collectives cost, what a step of an in-kernel scheduler takes. Rows win over the machine's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from sim.configuration import describe
from sim.errors import UserError, unknown
from sim.machines.parts import OpRate
from sim.schedulers.ep import registry
from sim.schedulers.ep.bulk_sync import VARIANTS
from sim.schedulers.ep.kernels import Launches

TABLE_1 = "FlashDMoE (arXiv 2506.04667), Table 1: GPU operations a layer, 32 experts a GPU"

MEGATRON = "Megatron-LM (token_dispatcher.py sorts received rows by local expert)"

FIGURES = ("latency_s", "flops_efficiency", "bytes_efficiency", "bytes_scale", "bytes_per_s", "sms")
"""Fields of a row that `with_rate` sets."""

SMALL = "guessed: poll of a word in global memory, a fence, a load through the L2 cache"

IN_KERNEL: tuple[OpRate, ...] = (
    OpRate(op="doorbell", lane="scheduler", latency_s=200e-9,
           source="guessed: below the 285 ns a task that the published runs at 16K tokens leave (7.0 ms, 24,576 tasks)"),
    OpRate(op="scan", lane="subscriber", latency_s=0.3e-6, curve=((1, 30e-9), (256, 2.56e-6)),
           source="guessed: half a sweep over the flags, then 10 ns for each descriptor of 128 bytes that one thread writes"),
    OpRate(op="fetch", lane="blocks", latency_s=1.0e-6, source=SMALL),
    OpRate(op="*", lane="blocks", latency_s=0.5e-6, flops_efficiency=0.5, bytes_efficiency=0.9, bytes_scale=0.25,
           source="guessed: fill of a tile's pipeline; tensor cores fed by cp.async; three of four operand bytes found in L2"),
    OpRate(op="*", lane="blocks", dtype="tf32", latency_s=0.5e-6, flops_efficiency=0.16, bytes_efficiency=0.9, bytes_scale=0.25,
           source="0.3 TFLOP/s a block of 263 in the published runs (33.6 MFLOP in 112 us), of 494.5; the rest guessed"),
    OpRate(op="dispatch", lane="blocks", bytes_per_s=3.8e9, latency_s=0.5e-6,
           source="half of an SM's 7.65 GB/s: DeepEP moves 153 GB/s over NVLink with 20 SMs (DeepEP README, H800)"),
)  # fmt: skip
"""FlashDMoE's persistent kernel."""

WAVES: tuple[OpRate, ...] = (
    OpRate(op="*", lane="block", latency_s=0.5e-6, flops_efficiency=0.65, bytes_efficiency=0.9, bytes_scale=0.25,
           source="DeepGEMM grouped GEMMs reach 1.21 to 1.35 of 1.98 PFLOP/s (README @55ab91f); L2 hits guessed"),
    OpRate(op="pull", lane="movers", latency_s=2.5e-6, bytes_per_s=7.65e9,
           source="256-byte get over NVLink, 2.5 us (arXiv 2606.05951, Fig. 4); 153 GB/s by 20 SMs (DeepEP README, H800)"),
)  # fmt: skip
"""DeepGEMM's Mega MoE."""

SPLIT: tuple[OpRate, ...] = (
    OpRate(op="*", lane="blocks", latency_s=0.5e-6, flops_efficiency=0.6, bytes_efficiency=0.9, bytes_scale=0.25,
           source="guessed: CUTLASS grouped GEMM tiles"),
    OpRate(op="*", lane="movers", latency_s=1.3e-6, bytes_per_s=7.65e9,
           source="scalar put over NVLink, 1.3 us (arXiv 2606.05951, Fig. 4); 153 GB/s by 20 SMs (DeepEP README, H800)"),
)  # fmt: skip
"""COMET's two kernels."""

NCCL: tuple[OpRate, ...] = (
    OpRate(op="put", lane="put.nvlink", latency_s=10e-6, bytes_efficiency=0.696, sms=20,
           source="guessed: latency of an NCCL all-to-all; rate as of bulk puts (arXiv 2606.05951, Fig. 4); SMs as many as DeepEP's"),
    OpRate(op="put", lane="put.rdma", latency_s=15e-6, bytes_efficiency=0.9, sms=20,
           source="guessed: latency of an NCCL all-to-all between nodes, and the share of a 400 Gb/s NIC that it reaches"),
)  # fmt: skip
"""Collectives of NCCL, which take SMs."""


LOW_LATENCY: tuple[OpRate, ...] = (
    *(OpRate(op=f"enter.{half}", lane="gpu", latency_s=15e-6,
             source="fitted to DeepEP's low-latency table (docs/legacy.md): half of a dispatch or combine beside its messages")
      for half in ("dispatch-send", "dispatch-recv", "combine-send", "combine-recv")),
)  # fmt: skip
"""DeepEP's low-latency kernels. Rates of links are the machine's."""


@dataclass(frozen=True)
class System:
    """Attributes
    ----------
    scheduler: name in `sim.schedulers.ep.registry`, or FILE.py:CLASS. options: further arguments of its class.
    ops: rows that it adds to the op table. stages: kernels of each stage; None: as many as launches.
    sorts: its dispatcher sorts received rows by expert, where a rank has several, and back. padded: sends and computes each
    expert's capacity, whatever the router chose. dtype: what it stores and sends, where not the layer's own.
    """

    name: str
    scheduler: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    ops: tuple[OpRate, ...] = ()
    stages: Launches | None = None
    tile_rows: int = 128
    sorts: bool = False
    padded: bool = False
    dtype: str | None = None


def _bulk(variant: str, what: str, **more: Any) -> System:
    return System(f"bulk-sync:{variant}", "bulk-sync", f"{what}; {TABLE_1}", {"launches": Launches.of(VARIANTS[variant])}, NCCL, **more)


SYSTEMS: dict[str, System] = {s.name: s for s in (
    _bulk("cutlass", f"{MEGATRON}, CUTLASS grouped GEMMs", sorts=True),
    _bulk("te", f"{MEGATRON}, Transformer Engine", sorts=True),
    _bulk("deepep", f"{MEGATRON}, DeepEP", sorts=True),
    _bulk("deepspeed", "DeepSpeed-MoE, which pads to the capacity", padded=True),
    System("graph-replayed", "graph-replayed", "the kernels of bulk-sync:cutlass captured in one CUDA graph", ops=NCCL,
           stages=Launches.of(VARIANTS["cutlass"]), sorts=True),
    System("chunked:fastermoe", "chunked", "FasterMoE (PPoPP '22)", {"chunks": 2, "launches": Launches.of(30)}, NCCL),
    System("chunked:tutel", "chunked", "Tutel (arXiv 2206.03382), which pads to the capacity",
           {"chunks": 2, "launches": Launches.of(30)}, NCCL, padded=True),
    System("overlapped", "overlapped", "puts with signals, a peer at a time: Flux (arXiv 2406.06858), COMET", {"launches": Launches.of(6)}),
    System("comet", "comet", f"COMET (arXiv 2502.19811); {TABLE_1}", {"launches": 33}, SPLIT),
    System("deepep-ll", "deepep-ll", "DeepEP's low-latency dispatch and combine, two micro-batches (docs/legacy.md)", ops=LOW_LATENCY),
    System("flashdmoe", "flashdmoe", "FlashDMoE (arXiv 2506.04667)", ops=IN_KERNEL),
    System("static-wave", "static-wave", "DeepGEMM Mega MoE (README, PR #304, #383)", ops=WAVES),
)}  # fmt: skip

def with_rate(system: System, text: str, rows: Sequence[OpRate], dtype: str) -> System:
    """The system with one figure of the op table replaced: "LANE:OP:FIELD=VALUE". rows: the machine's own. Raises UserError."""
    where, equals, value = text.partition("=")
    parts = where.split(":")
    if len(parts) != 3 or not equals:
        raise UserError(f"--rate: {text!r}; LANE:OP:FIELD=VALUE is needed, as in scheduler:doorbell:latency_s=285e-9")
    lane, op, name = parts
    if name not in FIGURES:
        raise unknown("--rate: field", name, FIGURES)
    known = [row for row in (*rows, *system.ops) if (row.lane, row.op) == (lane, op) and row.dtype in ("*", dtype)]
    base = known[-1].model_dump() if known else {"op": op, "lane": lane}
    try:
        row = OpRate.model_validate({**base, "dtype": dtype, name: value, "source": "--rate, on the command line"})
    except ValidationError as e:
        raise UserError(f"--rate: {text!r}: {describe(e)}") from None
    return replace(system, ops=(*system.ops, row))


SHORT = {"bulk-sync": "bulk-sync:cutlass", "chunked": "chunked:fastermoe"}


def load(name: str) -> System:
    """By name, or a scheduler of one's own as FILE.py:CLASS. Raises UserError for an unknown one."""
    name = SHORT.get(name, name)
    if ".py:" in name:
        registry.load(name)
        return System(name, name, "a scheduler of your own")
    if name not in SYSTEMS:
        raise unknown("--schedulers", name, (*SHORT, *SYSTEMS))
    return SYSTEMS[name]


def load_all(names: str) -> list[System]:
    """Names separated by commas. Raises UserError."""
    split = [name.strip() for name in names.split(",")]
    if not all(split):
        raise UserError(f"--schedulers: {names!r} has an empty name; names separated by commas are needed")
    return [load(name) for name in split]
