"""For whoever brings a scheduler: the conformance battery, and Hypothesis strategies (`sim.testing.strategies`)."""

from sim.testing.battery import MORE, RULES, Verdict, check

__all__ = ["MORE", "RULES", "Verdict", "check"]
