"""DeepEP's low-latency table: dispatch and combine alone, through the fabric, by one set of link constants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sim import machines
from sim.engines.compiled import run_compiled
from sim.ep import routing
from sim.ep.costs import EpCosts
from sim.ep.layer import MoELayer
from sim.ep.prices import Kernels
from sim.ep.systems import LOW_LATENCY
from sim.fabric import expand, with_nodes
from sim.plan import PlanBuilder
from sim.reproduce.flashdmoe import published
from sim.schedulers.ep.base import shape_of
from sim.schedulers.ep.deepep_ll import Exchange
from sim.schedulers.ep.kernels import Launches, Layer
from sim.tasks import Work

TOKENS = 128
LAYER = MoELayer(7168, 2048, 256, 8, dtype="bf16")
GRAPHED = Launches(0, 0, 0, 0, 0, 0)
"""Times of kernels: no launch is waited for."""


@dataclass(frozen=True, slots=True)
class Exchanged:
    ranks: int
    what: str
    published_us: float
    us: float

    @property
    def error(self) -> float:
        return self.us / self.published_us - 1.0


def table(say: Callable[[str], None]) -> Iterator[Exchanged]:
    for row in published.LOW_LATENCY:
        say(f"DeepEP low latency, EP {row.ranks}")
        costs = _costs(row.ranks)
        for what, us in (("dispatch", row.dispatch_us), ("combine", row.combine_us)):
            yield Exchanged(row.ranks, what, us, exchange_us(costs, what))


def _costs(ranks: int) -> EpCosts:
    node = machines.load("8xh800")
    machine = expand(with_nodes(node, ranks // 8) if ranks > 8 else node)
    machine = machine.model_copy(update={"ops": (*machine.ops, *LOW_LATENCY)})
    return EpCosts(machine, LAYER, routing.even(LAYER, [TOKENS] * ranks), Kernels({}))


def exchange_us(costs: EpCosts, what: str) -> float:
    """Microseconds of one dispatch or combine of all ranks."""
    tokens = [TOKENS] * len(costs.counts)
    builder = PlanBuilder()
    exchange = Exchange(Layer(shape_of(LAYER.model(), tokens), GRAPHED, 1, builder), costs.counts)
    ready = [builder.add(Work("join"), rank=rank) for rank in range(len(tokens))]
    exchange.receive(what, 0, exchange.send(what, 0, ready))
    return run_compiled(costs.bind(builder.build()), costs.lanes, {}).makespan_ps / 1e6
