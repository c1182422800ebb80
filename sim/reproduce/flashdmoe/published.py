"""What was published, and which constants of the simulation were fitted to it."""

from __future__ import annotations

from typing import NamedTuple

BARS_MS: dict[int, dict[str, dict[int, float]]] = {
    2: {"FlashMoE": {8192: 3.3}, "FasterMoE": {8192: 10.3}, "Megatron-CUTLASS": {8192: 4.2}, "Megatron-TE": {8192: 4.4}},
    4: {
        "FlashMoE": {4096: 2.1, 8192: 3.4, 16384: 6.2}, "Comet": {4096: 3.0, 8192: 5.4, 16384: 10.0},
        "FasterMoE": {4096: 7.9, 8192: 12.6, 16384: 22.4}, "Megatron-CUTLASS": {4096: 4.9, 8192: 16.6, 16384: 17.4},
        "Megatron-TE": {4096: 5.1, 8192: 9.0, 16384: 17.2},
    },
    8: {
        "FlashMoE": {4096: 2.1, 8192: 3.7, 16384: 7.0}, "FasterMoE": {4096: 10.3, 8192: 21.3, 16384: 45.3},
        "Megatron-CUTLASS": {4096: 9.9, 8192: 18.9, 16384: 36.9}, "Megatron-TE": {4096: 10.0, 8192: 18.9, 16384: 36.9},
    },
}  # fmt: skip
"""GPUs -> system -> tokens a GPU -> ms: numbers printed on the bars of the repository's plots; H = I = 2048, E = 32, k = 2."""

WEAK_SCALING: dict[str, dict[int, float]] = {
    "FlashMoE": {4: 0.97, 8: 0.90}, "FasterMoE": {4: 0.82, 8: 0.48}, "Megatron-CUTLASS": {4: 0.26, 8: 0.22},
    "Megatron-TE": {4: 0.49, 8: 0.24},
}  # fmt: skip
"""T(2 GPUs) / T(N GPUs) at 8192 tokens a GPU, as printed ("overlap efficiency")."""

OUTLIER = (4, "Megatron-CUTLASS", 8192)
"""Twice the bars beside it of the same system, which double from 4K to 16K tokens only three and a half times."""

GAIN_AT_128 = 6.6
"""Most that FlashMoE is faster than a baseline with 128 experts on 8 GPUs, by the paper's text; single points were not printed."""

RERUN_MS = {"FlashMoE": 3.93, "Megatron-TE": 4.03, "SGLang": 4.90}
"""8 GPUs with 78 SMs, 8192 tokens, H = I = 2048, E = 32, k = 2, bf16 (FlashMoE issue #21)."""

RERUN_TILE = (128, 128)
"""Rows and columns of FlashMoE's tiles in that run's log (bM, bN0 and bN1)."""


class LowLatency(NamedTuple):
    """DeepEP, docs/legacy.md, the newer table: microseconds of 128 tokens a rank, hidden 7168, top-8."""

    ranks: int
    dispatch_us: float
    combine_us: float


LOW_LATENCY = (
    LowLatency(8, 77, 114), LowLatency(16, 118, 195), LowLatency(32, 155, 273), LowLatency(64, 173, 314), LowLatency(128, 192, 369),
    LowLatency(256, 194, 360),
)  # fmt: skip

HIDDEN_IN_PROFILE = 0.96
"""deepseek-ai/profile-data, train.json: 109.3 of 113.4 ms of communication run beside computation."""
