"""What a placement policy is, and the policies by name.

A policy is a frozen dataclass: its fields are its options, `place` is a pure function of the problem (its seed
included). It never looks at a clock, and the same problem gives the same placement.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

from sim import named
from sim.placement.placement import Placement
from sim.placement.problem import Problem

Tell = Callable[[str], None]
"""Hears what a long search is at."""


def silent(text: str) -> None:
    """Nobody listens."""


class Policy(Protocol):
    """`whole_layers`: gives a GPU all experts of some layers, hence is held to its memory and not to slots a layer."""

    whole_layers: ClassVar[bool]

    def place(self, problem: Problem, tell: Tell = silent) -> Placement: ...


NAMES: dict[str, tuple[str, str]] = {
    "round-robin": ("round_robin", "RoundRobin"),
    "greedy": ("greedy", "Greedy"),
    "eplb": ("eplb", "Eplb"),
    "replicate-hot": ("replicate_hot", "ReplicateHot"),
    "consistent-hash": ("consistent_hash", "ConsistentHash"),
    "hierarchical": ("hierarchical", "Hierarchical"),
    "affinity": ("affinity", "Affinity"),
    "joint": ("joint", "Joint"),
    "robust": ("robust", "Robust"),
    "optimal": ("optimal", "Optimal"),
    "petals": ("petals", "Petals"),
    "swarm": ("swarm", "Swarm"),
    "max-flow": ("max_flow", "MaxFlow"),
}
"""Module in this package and class of each, imported when asked for."""


def names() -> tuple[str, ...]:
    return tuple(NAMES)


def load(text: str, flag: str = "--policies") -> Policy:
    """A policy from `NAME` or `NAME:OPTION=VALUE:...`, as in `consistent-hash:replicas=2`.

    flag: where it was said, for errors.
    Raises `UserError` for an unknown name or option (with the nearest one) and for a value of the wrong kind.
    """
    policy: Policy = named.build(flag, text, NAMES, "sim.placement")
    return policy
