"""What a simulated step says in honest terms: how busy tensor cores and memories were, how much communication was hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.costs import PricedPlan
from sim.engines.run import Run
from sim.ep.costs import EpCosts
from sim.fabric import topology_of
from sim.plan import Plan
from sim.summary import union_ps
from sim.tasks import PS_PER_S

COMPUTE = frozenset({"gate", "gate_tile", "permute", "experts", "unpermute", "gemm0", "gemm1", "combine"})
PERCENTILES = {"median": 0.5, "p95": 0.95, "p99": 0.99}


def latency(samples_s: Sequence[float]) -> dict[str, Any]:
    """Median, 95th and 99th percentile, and for each a 95 % confidence interval from order statistics (binomial, in its normal
    approximation): [least, most]."""
    ordered = np.sort(np.asarray(samples_s))
    found: dict[str, Any] = {name: float(np.quantile(ordered, q)) for name, q in PERCENTILES.items()}
    found["confidence"] = {name: _interval(ordered, q) for name, q in PERCENTILES.items()}
    found["samples"] = len(ordered)
    return found


def _interval(ordered: NDArray[np.float64], q: float) -> list[float]:
    n = len(ordered)
    wide = 1.96 * np.sqrt(n * q * (1 - q))
    low, high = int(np.floor(n * q - wide)), int(np.ceil(n * q + wide))
    return [float(ordered[max(0, low)]), float(ordered[min(n - 1, high)])]


def measure(run: Run, priced: PricedPlan, costs: EpCosts, useful_flops: float) -> dict[str, float]:
    """Figures of one step, means over the ranks.

    tensor_busy: FLOPs that the layer needs, over what the tensor cores do at their peak for its type in the step's time; padding
    and waiting both lower it. hbm_busy: bytes moved between HBM and the SMs, over what HBM moves in that time. comm_hidden: share of
    the time with something on the wire to or from a rank in which that rank also computes; 1 where nothing is sent.
    """
    plan = priced.plan
    ranks = costs.counts.shape[0]
    seconds = run.makespan_ps / PS_PER_S
    peak = topology_of(costs.machine).gpu.peaks["bf16"] / costs.prices.flop
    amounts = costs.amounts(priced)
    hbm = [costs.resource(f"gpu.{r}.hbm") for r in range(ranks)]
    return {
        "tensor_busy": useful_flops / (ranks * peak * seconds) if seconds else 0.0,
        "hbm_busy": float((amounts[hbm] / costs.capacity[hbm]).mean() / seconds) if seconds else 0.0,
        "comm_hidden": hidden(run, plan, ranks),
        "wire_bytes": wire_bytes(plan),
    }


def wire_bytes(plan: Plan) -> int:
    """Bytes that leave a rank, headers and signals included."""
    counts = np.bincount(plan.work, minlength=len(plan.works))
    return int(sum(n * work.bytes for n, work in zip(counts.tolist(), plan.works, strict=True)))


def hidden(run: Run, plan: Plan, ranks: int) -> float:
    """Share of the communication time of all ranks in which the rank computes."""
    computes = np.array([work.op in COMPUTE for work in plan.works])[plan.work]
    sends = np.array([work.bytes > 0 for work in plan.works])[plan.work]
    source, target = ends(plan)
    whole = both = 0
    for rank in range(ranks):
        comm = sends & ((source == rank) | (target == rank))
        busy = computes & (plan.rank == rank)
        on_wire = _union(run, comm)
        computing = _union(run, busy)
        either = _union(run, comm | busy)
        whole += on_wire
        both += on_wire + computing - either
    return both / whole if whole else 1.0


def _union(run: Run, chosen: NDArray[np.bool_]) -> int:
    return union_ps(run.start_ps[chosen], run.end_ps[chosen])


def ends(plan: Plan) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[n], from which rank to which a task sends: by its lane put.A.B, or its variant A.B; -1 where it sends nothing."""
    lanes = np.array([_pair(name, "put.") for name in plan.lanes] + [(-1, -1)])[plan.lane]
    works = np.array([_pair(work.variant) for work in plan.works])[plan.work]
    ends = np.where(lanes >= 0, lanes, works)
    return ends[:, 0], ends[:, 1]


def _pair(text: str, prefix: str = "") -> tuple[int, int]:
    numbers = text.removeprefix(prefix).split(".")
    if not text.startswith(prefix) or len(numbers) != 2 or not all(n.isdecimal() for n in numbers):
        return -1, -1
    return int(numbers[0]), int(numbers[1])
