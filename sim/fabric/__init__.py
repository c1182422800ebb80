"""Fabric: machines with a topology as ranks with lanes of their own, routes as lanes, collectives from puts."""

from sim.fabric.collectives import Collective, all_gather, all_to_all, barrier, exchange, reduce_scatter
from sim.fabric.expand import expand, ranks, topology_of, with_nodes
from sim.fabric.prices import put_price

__all__ = [
    "Collective", "all_gather", "all_to_all", "barrier", "exchange", "expand", "put_price", "ranks", "reduce_scatter",
    "topology_of", "with_nodes",
]  # fmt: skip
