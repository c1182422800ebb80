"""The Hierarchical Roofline Model of one job (MoE-Lightning, arXiv 2411.11217, 3.2), in numbers.

Data of decode live at level j (the host), and a kernel runs at level i (the device) or where the data
are. An op x has an intensity I, FLOPs per byte, towards each level. The device does x at
min(P_i, B_i I_i) at most (eq. 5, 7), and, with the data fetched over the link, at B_ji I_j (eq. 6).
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.costs import CostModel
from sim.machines.schema import Lane, Machine
from sim.models.spec import ModelSpec
from sim.ops import Component, components
from sim.schedulers.policy import Policy
from sim.tasks import PS_PER_S, Work

DEVICE, HOST, LINK = "gpu", "cpu", "h2d"
"""Lanes that stand for level i, level j and the link between them."""
LARGE = 4096
"""Tokens of a kernel that shows a unit's peak where the machine states measured times and no peak."""


@dataclass(frozen=True, slots=True)
class Level:
    """peak_flops: P, FLOP/s; bytes_per_s: B, of the memory beside it. measured: P is the best that the op table reaches."""

    peak_flops: float
    bytes_per_s: float
    measured: bool


@dataclass(frozen=True, slots=True)
class Turning:
    """One op on the roofline.

    intensity_host: I_j, FLOPs per byte that must come from the host. intensity_device: I_i, per byte of
    device memory; intensity_kernel_host: of the host's own kernel, per byte of its memory. device_flops:
    min(P_i, B_i I_i), the device's kernel alone; attainable_flops: with the link too, min(P_i, B_i I_i, B_ji I_j).
    p1: eq. 9, the I_j below which fetching is not worth it against computing at the host with the host's own
    kernel. p2: eq. 10, the I_j below which the link limits. balance_tokens: eq. 11, the tokens of a pass whose
    I_j makes link and device memory equally slow; None where more tokens do not change I_j. attained_flops:
    what the run did, over all of its decoding.
    """

    op: str
    intensity_host: float
    intensity_device: float
    intensity_kernel_host: float
    device_flops: float
    attainable_flops: float
    p1: float
    p2: float
    balance_tokens: float | None
    attained_flops: float

    @property
    def verdict(self) -> str:
        """Where the op stands by the turning points."""
        if self.intensity_host < self.p1:
            return "left of P1: compute it where the data are"
        return "between P1 and P2: the link limits it" if self.intensity_host < self.p2 else "right of P2: the device limits it"


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a run did in its decode phase: seconds; rows, tokens summed over layers; entries, KV entries read by attention;
    context: entries of a sequence, on average."""

    seconds: float
    rows: int
    entries: int
    context: float


@dataclass(frozen=True, slots=True)
class Roofline:
    """tokens, microbatch: rows of a pass and of a kernel (N, mu of Definitions 3.2 and 3.3)."""

    device: Level
    host: Level
    link_bytes_per_s: float
    tokens: int
    microbatch: int
    ops: tuple[Turning, ...]


def roofline(machine: Machine, model: ModelSpec, policy: Policy, decoded: Decoded) -> Roofline | None:
    """The model of a run's decode phase; None where it has none, or the machine has not two levels and a link."""
    if not decoded.rows or not {DEVICE, HOST, LINK} <= set(machine.lane):
        return None
    costs = CostModel(machine, model)
    device, host = (_level(costs, machine.lane[name]) for name in (DEVICE, HOST))
    if device is None or host is None:
        return None
    link = min(machine.resources[r].capacity for r in machine.lane[LINK].path)
    ops = [_attention(model, policy, decoded, device, host, link)]
    if model.experts and policy.streamed_experts(model):
        ops.append(_experts(model, policy, decoded, device, host, link))
    return Roofline(device, host, link, policy.batch, policy.microbatch, tuple(ops))


def _level(costs: CostModel, lane: Lane) -> Level | None:
    if lane.memory is None:
        return None
    bandwidth = costs.machine.resources[lane.memory].capacity
    if lane.compute is not None:
        return Level(costs.machine.resources[lane.compute].capacity, bandwidth, False)
    m = costs.model
    work = {DEVICE: Work("post_attn", LARGE, LARGE, experts=m.experts), HOST: Work("attn_decode", 32, 32, 32 * 1024)}[lane.name]
    seconds = costs.solo_ps(lane.name, work) / PS_PER_S
    return Level(sum(p.cost.flops for p in components(m, work)) / seconds, bandwidth, True)


def _turning(op: str, on_host: float, on_device: float, at_host: float, attained: float, device: Level, host: Level, link: float,
             balance: float | None = None) -> Turning:  # fmt: skip
    """at_host: intensity of the kernel that the host would run itself."""
    reached = min(device.peak_flops, device.bytes_per_s * on_device)
    there = min(host.peak_flops, host.bytes_per_s * at_host)
    return Turning(op, on_host, on_device, at_host, reached, min(reached, link * on_host), there / link, reached / link, balance, attained)


def _attention(model: ModelSpec, policy: Policy, decoded: Decoded, device: Level, host: Level, link: float) -> Turning:
    """Decode attention: every KV entry is used once, so no batch raises its intensity."""
    rows = policy.microbatch
    entries = round(rows * decoded.context)
    (part,) = components(model, Work("attn_decode", rows, rows, entries))
    intensity = part.cost.flops / part.cost.bytes
    attained = part.cost.flops / entries * decoded.entries / decoded.seconds
    return _turning("attention", intensity, intensity, intensity, attained, device, host, link)


def _experts(model: ModelSpec, policy: Policy, decoded: Decoded, device: Level, host: Level, link: float) -> Turning:
    """Expert FFNs: streamed weights are fetched once a pass of N tokens and read once a kernel of mu tokens."""
    def ffn(tokens: int) -> list[Component]:
        parts = components(model, Work("post_attn", tokens, tokens, experts=model.experts))
        return [p for p in parts if p.op.startswith("expert_ffn")]

    def flops(tokens: int) -> float:
        return sum(p.cost.flops for p in ffn(tokens))

    streamed = policy.streamed_experts(model) * model.expert_bytes
    kernel = flops(policy.microbatch) / sum(p.cost.bytes for p in ffn(policy.microbatch))
    on_host = flops(policy.batch) / streamed
    at_host = flops(policy.batch) / sum(p.cost.bytes for p in ffn(policy.batch))
    per_token = flops(policy.batch) / policy.batch
    balance = device.bytes_per_s * kernel / link * streamed / per_token
    return _turning("expert FFN", on_host, kernel, at_host, per_token * decoded.rows / decoded.seconds, device, host, link, balance)
