"""Which experts are where: the table of slots, its policies, and what a trace makes of them."""

from sim.residency.grant import Grant, Load, Refusal
from sim.residency.table import Residency

__all__ = ["Grant", "Load", "Refusal", "Residency"]
