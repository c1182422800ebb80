"""Paper mode: the policy that MoE-Lightning's released optimiser returns, by its own constants and rules.

Written from the facts of the released artifact (`fastmoe/backend/optimizer.py` and `utils.py`, branch
asplos25; arXiv 2411.11217, section 4.2), for comparison with it: what it leaves out (projections, hidden
states, prefill time) is left out here, and its quirks are kept, each where it stands.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal

from sim.errors import UserError
from sim.machines.schema import Machine
from sim.models.spec import ModelSpec
from sim.policy.find import Found
from sim.schedulers.policy import Policy
from sim.workloads.schema import Workload

GIB = 1 << 30
BYTES_PER_VALUE = 2
"""fp16, whatever the model's own dtype."""
GPU_USABLE, CPU_USABLE = 0.86, 0.8
WORKSPACE_MARGIN = 1.2
MICROBATCH_STEP = 32
"""Micro-batches tried: 1, 2, 3, 4, then 36, 68, 100, ..."""
SIGNIFICANT_DIGITS = 8
"""The solver that it calls (CBC by PuLP) writes its solution with 8 digits. Where the GPU binds, the throughput
of n and n + 1 micro-batches is equal but for that rounding, which then decides where the upward scan stops."""
CPU_BANDWIDTH = 100.0
"""`--cpu-mem-bdw` of the launch scripts."""

Form = Literal["t4", "l4-padding"]


@dataclass(frozen=True, slots=True)
class Hardware:
    """One GPU and its host as the released optimiser sees them, in bytes, bytes/s and FLOP/s."""

    gpu_bytes: float
    gpu_bytes_per_s: float
    gpu_flops: float
    cpu_flops: float
    link_bytes_per_s: float = 16 * GIB


ARTIFACT = {
    "t4": Hardware(15 * GIB, 300 * GIB, 65e12, 0.8e12),
    "l4": Hardware(24 * GIB, 285 * GIB, 104e12, 1.6e12),
}
"""`HardwareConfig` of the artifact; its GB is 2^30."""

GPUS = {"t4": ("t4", 1), "2xt4": ("t4", 2), "4xt4": ("t4", 4), "l4": ("l4", 1)}
"""Machines that the artifact has constants for: the GPU, and how many work tensor parallel."""


@dataclass(frozen=True, slots=True)
class Case:
    """One question to the optimiser.

    Attributes
    ----------
    prompt, gen: tokens (s and n of the artifact). cpu_bytes: its cmem. cpu_bytes_per_s: its c_bdw.
    gpus: tensor-parallel degree; memory, bandwidth and FLOP/s of the GPU count times it, the link does not.
    form: which of its two rules for the GPU's memory in prefill. `t4`, the one in force: the residual of all
    sequences stays on the GPU. `l4-padding`, in a comment: that of one micro-batch does.
    """

    model: ModelSpec
    hardware: Hardware
    gpus: int
    prompt: int
    gen: int
    cpu_bytes: float
    cpu_bytes_per_s: float
    form: Form

    @property
    def h_kv(self) -> int:
        return self.model.hidden // (self.model.heads // self.model.kv_heads)

    @property
    def layer_bytes(self) -> int:
        """wi: experts of one layer."""
        return 6 * self.model.hidden * self.model.ffn * self.model.experts

    @property
    def other_bytes(self) -> int:
        """w_other: Q, K, V and O projections of all layers."""
        h = self.model.hidden
        return (4 * h**2 + 4 * h**2 // (self.model.heads // self.model.kv_heads)) * self.model.layers


@dataclass(frozen=True, slots=True)
class Solution:
    """What its linear program returns for one batch.

    wg: share of expert weights on the GPU. link_s, gpu_s, cpu_s: the three times of one layer and decode step,
    of which step_s is the largest. memory: bytes by memory and consumer.
    """

    microbatch: int
    microbatches: int
    wg: float
    link_s: float
    gpu_s: float
    cpu_s: float
    step_s: float
    tokens_per_s: float
    memory: dict[str, dict[str, int]]


def case(
    model: ModelSpec, machine: Machine, workload: Workload, *, cpu_memory_gib: float | None, cpu_bandwidth: float | None, form: Form
) -> Case:
    """Constants of the artifact for the GPUs that it knows, of the machine's profile for others.

    cpu_memory_gib: host memory that was available at the start; None: all that the machine states.
    cpu_bandwidth: what its flag takes, in its GB of 2^30 bytes. Raises UserError for a generation of one token, whose decode time is 0.
    """
    if workload.longest_generation < 2:
        raise UserError("--gen: is 1; the released optimiser counts decode steps only, of which 2 tokens or more have one")
    name, gpus = GPUS.get(machine.name, ("", 1))
    memory = machine.memories["cpu"].bytes if cpu_memory_gib is None else cpu_memory_gib * GIB
    bandwidth = (CPU_BANDWIDTH if cpu_bandwidth is None else cpu_bandwidth) * GIB
    prompt = workload.longest_prompt if workload.padded else round(workload.prompt.average)
    hardware = ARTIFACT[name] if name else _of_profile(machine)
    return Case(model, hardware, gpus, prompt, workload.longest_generation, memory, bandwidth, form)


def _of_profile(machine: Machine) -> Hardware:
    gpu, cpu, h2d = (machine.lane[name] for name in ("gpu", "cpu", "h2d"))
    capacity = {name: r.capacity for name, r in machine.resources.items()}
    if gpu.compute is None or gpu.memory is None or cpu.compute is None or not h2d.path:
        raise UserError(f"machine {machine.name}: paper mode needs FLOP/s and bytes/s of lanes gpu, cpu and h2d, which it does not state")
    return Hardware(
        machine.memories["gpu"].bytes, capacity[gpu.memory], capacity[gpu.compute], capacity[cpu.compute], capacity[h2d.path[0]]
    )


def optimise(case: Case) -> Solution | None:
    """The released search: for each micro-batch the largest feasible number of them by doubling and bisection,
    a scan upward from 1 that stops at the first drop, and the last of equals. None where nothing fits."""
    best: Solution | None = None
    microbatch = 1
    while (most := most_microbatches(case, microbatch)) > 0:
        before = 0.0
        for count in range(1, most + 1):
            found = solve(case, microbatch, count)
            if found is None or found.tokens_per_s < before:
                break
            before = found.tokens_per_s
            if best is None or found.tokens_per_s >= best.tokens_per_s:
                best = found
        microbatch += 1 if microbatch < 4 else MICROBATCH_STEP
    return best


def found(case: Case, machine: Machine, padded: bool) -> Found:
    """The optimiser's answer. Its own figure stands for both predictions: decode steps only, by its roofline.

    Raises UserError where nothing fits, with the bytes that are missing.
    """
    began = time.perf_counter()
    best = optimise(case)
    if best is None:
        raise _too_big(case, machine)
    share = int(case.model.experts * best.wg)  # its executor places whole experts
    times = {"link": best.link_s, "gpu": best.gpu_s, "cpu": best.cpu_s}
    policy = Policy(
        batch=best.microbatch * best.microbatches, microbatch=best.microbatch, attention="cpu", static_experts=share, padded=padded,
        scheduler="cgopipe",
    )  # fmt: skip
    return Found(
        policy=policy, objective="throughput", predicted_tokens_per_s=best.tokens_per_s, hrm_bound_tokens_per_s=best.tokens_per_s,
        memory=best.memory, binding_constraint=f"decode: {max(times, key=lambda name: times[name])}",
        searched={
            "mode": "paper", "memory_form": case.form, "prompt": case.prompt, "gen": case.gen, "gpus": case.gpus, "wg": best.wg,
            "cpu_bytes": case.cpu_bytes, "cpu_bytes_per_s": case.cpu_bytes_per_s, "layer_s": times,
        },
        wall_s=time.perf_counter() - began,
    )  # fmt: skip


def _too_big(case: Case, machine: Machine) -> UserError:
    """One micro-batch of one sequence does not fit: without static experts on the GPU, or with those in the host."""
    home, work = gpu_fixed(case, 1, 1)
    m, buffer = case.model, 2 * case.layer_bytes
    budget = case.hardware.gpu_bytes * case.gpus * GPU_USABLE
    missing = case.other_bytes + buffer + home + work - budget
    if missing > 0:
        return UserError(
            f"policy: {m.name} does not fit {machine.name} by the released optimiser's rules: memory 'gpu' lacks {math.ceil(missing):,} "
            f"bytes of {math.ceil(budget + missing):,}, usable {int(budget):,}; nearest change: a machine with "
            f"{math.ceil((budget + missing) / GPU_USABLE):,} bytes of it"
        )
    wg = min(1.0, -missing / (case.layer_bytes * m.layers - buffer))
    cache, hidden = 4 * (case.prompt + case.gen) * case.h_kv * m.layers, 2 * m.hidden * case.prompt * case.gpus
    needed = (case.layer_bytes * m.layers + buffer) * (1 - wg) + cache + hidden
    return UserError(
        f"policy: {m.name} does not fit {machine.name} by the released optimiser's rules: memory 'cpu' lacks "
        f"{math.ceil(needed - case.cpu_bytes * CPU_USABLE):,} bytes of {math.ceil(needed):,}, usable {int(case.cpu_bytes * CPU_USABLE):,}; "
        f"nearest change: --cpu-memory {needed / CPU_USABLE / GIB + 0.005:.2f}"
    )


def most_microbatches(case: Case, microbatch: int) -> int:
    """Largest feasible number of micro-batches; 0 where one does not fit."""
    above = 1
    while solve(case, microbatch, above) is not None:
        above *= 2
    below = above // 2
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if solve(case, microbatch, middle) is not None else (below, middle)
    return below


def solve(case: Case, microbatch: int, count: int) -> Solution | None:
    """The linear program of one batch. Its one free variable is wg, on which only the link's time depends and
    falls: the optimum is the largest share that the GPU's memory takes, if the rest fits into the host's."""
    m, batch = case.model, microbatch * count
    gpu_budget, cpu_budget = case.hardware.gpu_bytes * case.gpus * GPU_USABLE, case.cpu_bytes * CPU_USABLE
    home, work = gpu_fixed(case, microbatch, batch)
    cache, hidden = 4 * (case.prompt + case.gen) * case.h_kv * batch * m.layers, 2 * m.hidden * batch * case.prompt * case.gpus
    all_layers, buffer = case.layer_bytes * m.layers, 2 * case.layer_bytes
    most = (gpu_budget - case.other_bytes - home - work - buffer) / (all_layers - buffer)
    least = 1 - (cpu_budget - cache - hidden) / (all_layers + buffer)
    if max(0.0, least) > min(1.0, most):
        return None
    wg = min(1.0, most)
    link_s = case.layer_bytes * (1 - wg) / case.hardware.link_bytes_per_s
    gpu_s, cpu_s = experts_s(case, microbatch) * count, _cpu_s(case, batch)
    step_s = float(f"{max(link_s, gpu_s, cpu_s):.{SIGNIFICANT_DIGITS}g}")
    memory = {
        "gpu": {
            "weights": case.other_bytes + int(all_layers * wg), "weight_buffer": int(buffer * (1 - wg)), "activations": int(home),
            "workspace": int(work),
        },
        "cpu": {"weights": int(all_layers * (1 - wg)), "pages": int(buffer * (1 - wg)), "kv": cache, "activations": hidden},
    }  # fmt: skip
    tokens_per_s = batch * case.gen / (step_s * (case.gen - 1) * m.layers)
    return Solution(microbatch, count, wg, link_s, gpu_s, cpu_s, step_s, tokens_per_s, memory)


def gpu_fixed(case: Case, microbatch: int, batch: int) -> tuple[float, float]:
    """(activations of prefill or decode, workspace of the fused MoE kernel) in bytes: what does not depend on wg."""
    m, s, tp = case.model, case.prompt, case.gpus
    one = 4 * m.hidden * microbatch * s
    residual = tp * (one + 2 * m.hidden * batch * s) if case.form == "t4" else 2 * one
    prefill = residual + 8 * s * case.h_kv * microbatch
    decode = 4 * m.hidden * batch * tp
    return max(prefill, decode), WORKSPACE_MARGIN * 2 * s * microbatch * m.top_k * (m.hidden * tp + 3 * m.ffn)


def experts_s(case: Case, microbatch: int) -> float:
    """MoE FFN of one micro-batch: every one reads all experts."""
    m = case.model
    flops = 2 * microbatch * m.hidden * m.ffn * 3 * m.top_k
    moved = BYTES_PER_VALUE * (microbatch * m.hidden + microbatch * m.ffn + m.hidden * m.ffn * 3 * m.experts)
    return max(flops / (case.hardware.gpu_flops * case.gpus), moved / (case.hardware.gpu_bytes_per_s * case.gpus))


def _cpu_s(case: Case, batch: int) -> float:
    """Attention at the full context s + n; one of its two products is counted."""
    m, context = case.model, case.prompt + case.gen
    width = m.hidden // m.heads
    flops = batch * context * m.heads * (2 * width + 2)
    moved = BYTES_PER_VALUE * batch * (2 * m.heads * width + 2 * context * m.kv_heads * width)
    return max(flops / case.hardware.cpu_flops, moved / case.cpu_bytes_per_s)
