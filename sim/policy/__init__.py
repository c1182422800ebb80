"""Policy search: the best way to run a model on a machine, proven by a bound and refined by simulation."""

from sim.policy.find import Found, search
from sim.policy.space import Order, Point, Space

__all__ = ["Found", "Order", "Point", "Space", "search"]
