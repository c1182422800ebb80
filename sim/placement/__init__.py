"""Placement: which experts live on which GPU, in how many copies.

`problem` states the task, `placement` holds an answer, `measures` score it, `policy` names the policies; each
policy is a file of its own with its source.
"""

from __future__ import annotations

from sim.placement.placement import Placement
from sim.placement.policy import Policy
from sim.placement.problem import Gpus, Problem, Sample
from sim.placement.round_robin import RoundRobin

__all__ = ["Gpus", "Placement", "Policy", "Problem", "RoundRobin", "Sample"]
