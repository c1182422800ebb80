"""Why a run takes as long as it does: roofline, critical path, lanes, lower bound, elasticities."""

from sim.explain.explanation import Explanation, explain
from sim.explain.words import as_data, sentence

__all__ = ["Explanation", "as_data", "explain", "sentence"]
