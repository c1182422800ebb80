"""The HTML report of a swarm study: a map with flows, load over time, and the designs beside each other."""

from sim.swarm.report.page import write_report

__all__ = ["write_report"]
