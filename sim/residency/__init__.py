"""Which experts are where: the table of slots, its policies, and what a trace makes of them."""

from sim.residency.table import Grant, Load, Refusal, Residency

__all__ = ["Grant", "Load", "Refusal", "Residency"]
