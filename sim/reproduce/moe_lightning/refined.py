"""The search's policy against the published one, both simulated on the same box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sim import machines, models, workloads
from sim.reproduce.moe_lightning import published
from sim.reproduce.moe_lightning.cells import WORKLOAD, Simulated
from sim.schedulers.policy import Policy

REFINE = 3
"""Candidates that are simulated for one cell."""

SYSTEMS = (published.PADDED, published.UNPADDED)


@dataclass(frozen=True, slots=True)
class Refined:
    """policy: what the search found; tokens_per_s: simulated; bound: no schedule of it is faster."""

    published: Simulated
    policy: Policy
    tokens_per_s: float
    bound: float
    limits: str

    @property
    def gain(self) -> float:
        """How much faster than the published policy."""
        return self.tokens_per_s / self.published.tokens_per_s - 1

    def row(self) -> dict[str, Any]:
        cell = self.published.cell
        return {
            "system": cell.system, "setting": cell.setting, "gen": cell.gen, "published_policy_tokens_per_s": self.published.tokens_per_s,
            "refined_policy_tokens_per_s": self.tokens_per_s, "gain": self.gain, "hrm_bound_tokens_per_s": self.bound,
            "policy": self.policy.model_dump(mode="json", exclude_none=True), "binding_constraint": self.limits,
        }  # fmt: skip


def refine(found: Simulated) -> Refined:
    """Search the best policy for what a MoE-Lightning cell served: its prompts, padded or not, and its box."""
    from sim.policy import search  # numba

    cell = found.cell
    assert cell.system in SYSTEMS, cell
    load = workloads.load(WORKLOAD).with_generation(cell.gen)
    load = load.with_padding() if cell.padded else load
    best = search(models.load(published.MODEL), machines.load(published.MACHINES[cell.setting]), load, refine=REFINE)
    return Refined(found, best.policy, best.predicted_tokens_per_s, best.hrm_bound_tokens_per_s, best.binding_constraint)
