"""DeepSeek's training profile: how much communication two overlapping micro-batches hide.

The order is DualPipe's (DeepSeek-V3, arXiv 2412.19437, Fig. 4): one layer forward of one micro-batch beside one layer backward of
another, on a compute stream and a communication stream. Durations are medians of the profile; what was not published is
which kernels belong to which block, so kernels that are in no block by name are spread over all in proportion. The
schedule, hence the share that is hidden, is simulated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.costs import PricedPlan, pack
from sim.demands import Row
from sim.engines.compiled import run_compiled
from sim.machines.parts import Lane
from sim.plan import PlanBuilder
from sim.summary import union_ps
from sim.tasks import Work

LAYERS = 4
COMPUTE_MS_PER_LAYER = 124.3 / LAYERS
"""Busy time of the compute stream."""

BLOCKS_MS = {
    "mlp_b": 0.85 + 1.90,  # two grouped GEMMs for the gradient of the input
    "mlp_w": 4 * 0.647 + 2.0,  # gradients of the experts' weights, and half of those of stream 7
    "mlp_f": 1.90 + 1.07,
    "attn_b": 3.835,
    "attn_w": 2.0,
    "attn_f": 1.235,
}  # fmt: skip
"""Kernels that belong to a block by name, in the order of the compute stream."""

MOVED_MS = {"dispatch_f": 4.312, "dispatch_b": 6.063, "combine_f": 6.063, "combine_b": 3.448}
"""Backward, a dispatch is a combine and the other way round."""

WAITED_MS = {"dispatch_f": 1.999, "dispatch_b": 1.374, "combine_f": 1.374, "combine_b": 1.374}
"""Kernels that wait for the counts of peers."""

MOVED_MS_PER_LAYER, WAITED_MS_PER_LAYER = 80.5 / LAYERS, 33.0 / LAYERS

COMM_MS = {
    name: MOVED_MS[name] * MOVED_MS_PER_LAYER / sum(MOVED_MS.values()) + WAITED_MS[name] * WAITED_MS_PER_LAYER / sum(WAITED_MS.values())
    for name in MOVED_MS
}  # fmt: skip
"""Medians, in proportion to the totals of the profile: waits have a long tail."""

NEEDS = {
    "mlp_b": ("combine_b",), "mlp_w": (), "mlp_f": ("dispatch_f",), "attn_b": ("dispatch_b",), "attn_w": (), "attn_f": ("combine_f",),
    "dispatch_f": ("attn_f",), "dispatch_b": ("mlp_b",), "combine_f": ("mlp_f",), "combine_b": ("attn_b",),
}  # fmt: skip
"""What each waits for beside its stream: of the same layer where it stands before, else of the layer before."""

ORDER = ("mlp_b", "dispatch_f", "mlp_w", "dispatch_b", "mlp_f", "combine_f", "attn_b", "attn_w", "combine_b", "attn_f")


@dataclass(frozen=True, slots=True)
class Profile:
    window_ms: float
    comm_ms: float
    hidden: float


def simulate() -> Profile:
    """Of the layers between the first and the last, which have neighbours on both sides."""
    builder, last = PlanBuilder(), dict[str, int]()
    lanes = (Lane(name="gpu.0", kind="compute"), Lane(name="comm.0", kind="copy"))
    scale = COMPUTE_MS_PER_LAYER / sum(BLOCKS_MS.values())
    rows: list[Row] = []
    for layer in range(LAYERS + 2):
        for name in ORDER:
            deps = [last[need] for need in NEEDS[name] if need in last]
            ms = COMM_MS[name] if name in COMM_MS else BLOCKS_MS[name] * scale
            rows.append((round(ms * 1e9), []))
            last[name] = builder.add(Work(name), "comm.0" if name in COMM_MS else "gpu.0", deps, layer=layer)
    plan = builder.build()
    priced = PricedPlan(plan, np.arange(len(plan), dtype=np.int32), pack(rows), (), np.zeros(0))
    run = run_compiled(priced, lanes, {})
    inner = (plan.layer > 0) & (plan.layer <= LAYERS)
    comm = inner & (np.array([w.op in COMM_MS for w in plan.works])[plan.work])
    compute = ~np.array([w.op in COMM_MS for w in plan.works])[plan.work]
    both = union_ps(run.start_ps[comm], run.end_ps[comm])
    either = union_ps(run.start_ps[comm | compute], run.end_ps[comm | compute])
    alone = either - union_ps(run.start_ps[compute], run.end_ps[compute])
    window = int(run.end_ps[inner].max() - run.start_ps[inner].min())
    return Profile(window / 1e9, both / 1e9, 1.0 - alone / both)
