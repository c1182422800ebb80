"""What MoE-Lightning published: tokens/s, policies, ablations. Measurements only; nothing here enters a simulation but policies.

[P] the paper, [A] its artifact (branch asplos25), [R] the released optimizer run again.
"""

from __future__ import annotations

from typing import NamedTuple

GENS = (32, 64, 128, 256)

MACHINES = {"S1": "t4", "S2": "l4"}
"""Table 2 [P]: one T4, one L4. Both serve Mixtral 8x7B."""

MODEL = "mixtral-8x7b"

FLEXGEN, FLEXGEN_C, DEEPSPEED, PADDED, UNPADDED = "FlexGen", "FlexGen(c)", "DeepSpeed", "MoE-Lightning(p)", "MoE-Lightning"

SCHEDULERS = {FLEXGEN: "flexgen", FLEXGEN_C: "flexgen-c", DEEPSPEED: "deepspeed", PADDED: "cgopipe", UNPADDED: "cgopipe"}

THROUGHPUT: dict[tuple[str, str], tuple[float, ...]] = {
    ("S1", FLEXGEN): (12.1, 12.3, 9.5, 9.6),
    ("S1", FLEXGEN_C): (9.8, 9.4, 7.2, 6.8),
    ("S1", DEEPSPEED): (7.1, 7.6, 7.8, 6.7),
    ("S1", PADDED): (15.6, 24.0, 30.1, 33.9),
    ("S1", UNPADDED): (63.0, 101.3, 97.73, 96.7),
    ("S2", FLEXGEN): (29.2, 34.9, 37.2, 28.8),
    ("S2", FLEXGEN_C): (17.5, 18.9, 20.0, 15.9),
    ("S2", DEEPSPEED): (12.7, 13.3, 12.1, 11.8),
    ("S2", PADDED): (53.7, 67.4, 79.0, 78.6),
    ("S2", UNPADDED): (203.0, 294.5, 217.5, 167.9),
}
"""Fig. 7, MTBench, tokens/s at each of `GENS` [A plots/main_results/plot_e2e_bar_all.py]."""

OTHER_RUNS: dict[tuple[str, str], tuple[float | None, ...]] = {
    ("S1", UNPADDED): (None, None, 108.62, None),
    ("S2", UNPADDED): (203.7, 289.0, 286.0, 181.6),
}
"""Other runs of the same cells, in older plots and a backup [A]: how far published runs are from each other."""

Sizes = tuple[int, int]
"""Micro-batch (sequences), number of micro-batches."""

POLICIES: dict[tuple[str, str], tuple[Sizes, ...]] = {
    ("S1", FLEXGEN): ((32, 40), (16, 78), (8, 139), (8, 113)),
    ("S2", FLEXGEN): ((64, 21), (64, 20), (64, 18), (32, 30)),
    ("S1", PADDED): ((36, 14),) * 4,
    ("S2", PADDED): ((68, 16), (68, 15), (68, 13), (68, 11)),
    ("S1", UNPADDED): ((164, 19), (164, 19), (164, 14), (100, 15)),
    ("S2", UNPADDED): ((324, 14), (228, 16), (164, 16), (132, 12)),
}
"""FlexGen's [A benchmarks/flexgen] also hold for FlexGen(c); MoE-Lightning's: [P Table 5], [R], [A README].
FlexGen's 7 to 14 % of weights on the GPU move norms only, as whole tensors are placed by their midpoints:
nothing. MoE-Lightning's w_g is less than one expert of eight: nothing either. DeepSpeed's batches were
not published, see `batches`."""

FITTED: dict[tuple[str, str], tuple[int, ...]] = {
    ("S1", PADDED): (64, 256),
    ("S2", PADDED): (128, 256),
    ("S1", FLEXGEN): (64, 256),
    ("S2", FLEXGEN): (128, 256),
    ("S2", FLEXGEN_C): (64,),
    ("S1", DEEPSPEED): (64,),
    ("S2", DEEPSPEED): (64,),
    ("S1", UNPADDED): (32,),
}
"""Generation lengths of the cells that a constant was fitted to; all others are predictions."""

CONSTANTS: tuple[tuple[str, str, str], ...] = (
    ("rate of the copying thread, pageable to pinned", "T4 7.4, L4 10.9 GB/s", "MoE-Lightning(p): S1 gen 64, 256; S2 gen 128, 256"),
    ("share of peak FLOP/s in prefill", "T4 11.9 %, L4 23.8 %", "those; on S1 together with FlexGen gen 64, 256 and MoE-Lightning gen 32"),
    ("rate of FlexGen's copies through pin_memory()", "T4 7.2, L4 8.1 GB/s", "FlexGen: S1 gen 64, 256; S2 gen 128, 256"),
    ("share of HBM bandwidth reached by experts", "T4 43.5 %", "FlexGen: S1 gen 64, 256"),
    ("share of DRAM bandwidth in FlexGen(c)'s attention", "40 %, both boxes", "FlexGen(c): S2 gen 64"),
    ("what fills the GPU in DeepSpeed's prefill", "parameters in use, logits, scores, 0.8 GB of context", "DeepSpeed: S1, S2 gen 64"),
)
"""Constant, value, cells that it was fitted to. The L4's experts, both boxes' CPU attention and pinned
links come from other measurements: Fig. 9 and DeepSpeed's passes [P], [A]."""


class Ablation(NamedTuple):
    """A row of Table 5 (S1, MTBench, gen 128) [P 6.1]."""

    name: str
    system: str
    sizes: Sizes
    tokens_per_s: float


TABLE_5_GEN = 128
TABLE_5 = (
    Ablation("FlexGen, its own policy", FLEXGEN, (8, 139), 9.5),
    Ablation("FlexGen, MoE-Lightning's policy", FLEXGEN, (36, 14), 16.816),
    Ablation("FlexGen, that micro-batch and a larger batch", FLEXGEN, (36, 31), 20.654),
    Ablation("MoE-Lightning(p)", PADDED, (36, 14), 30.12),
)

FIG_9_CONTEXTS = (128, 256, 512, 1024, 2048)
FIG_9: dict[int, tuple[tuple[float, ...], tuple[float, ...], float]] = {
    32: ((1.41, 2.74, 5.46, 10.9, 21.8), (0.44, 0.67, 1.73, 3.00, 5.94), 12.2),
    64: ((2.74, 5.46, 10.9, 21.76, 43.51), (0.74, 1.48, 2.98, 5.89, 11.6), 12.3),
    128: ((5.46, 10.92, 21.78, 43.50, 86.99), (1.57, 2.98, 6.32, 11.4, 23.2), 12.5),
    256: ((10.89, 21.77, 43.49, 86.97, 173.88), (3.71, 6.73, 11.78, 22.06, 44.58), 13.0),
}
"""Milliseconds of one layer on the L4 box, by micro-batch: KV transfer and CPU attention at each context, MoE
FFN [A plots/ablation/ablation_2.py]."""

CPU_ATTENTION_WINS: dict[int, dict[int, tuple[int, ...]]] = {
    32: {1: (), 3: (), 5: (), 6: (500,), 7: (500,), 8: (100, 200, 500), 10: (100, 200, 300, 400, 500)},
    128: {1: (), 2: (), 3: (), 4: (), 5: (), 6: (), 7: (500,), 8: (100, 500), 10: (100, 200, 300, 400, 500)},
}
"""Fig. 10 [R plots/performance_model/cost_model.py]: by generation length and host ratio, the links (GB/s) at which
attention on the CPU wins. The paper says that it generates 32 tokens, its code 128."""
