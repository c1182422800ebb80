"""What `run --placement` serves: requests through MoE layers with the choices of a trace, on ranks, in the twin and in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from exec.cluster import shards
from exec.cluster.outputs import Floats
from exec.cluster.placed import PlacedOrder, States
from exec.cluster.prices import HostPrices
from exec.cluster.recovering import Kill, RecoveringEngine, Say
from exec.cluster.runs import moe_layer
from exec.cluster.standing import StandingCluster
from sim.drive import Log, drive
from sim.engines.intake import Change
from sim.engines.run import Run
from sim.ep.chosen import Chosen
from sim.ep.layer import MoELayer
from sim.ep.placed_costs import PlacedCosts, with_losses
from sim.events import Profile, Request
from sim.machines.schema import Machine
from sim.models.spec import ModelSpec
from sim.placement.rebalance import Rebalancer
from sim.schedulers.ep.rebalancing import Rebalancing, Settings


@dataclass(frozen=True)
class Serving:
    """shift: the first request whose hot experts are others. The first placement is made for the load of those before it."""

    model: ModelSpec
    ranks: int
    chosen: Chosen
    shift: int
    rebalancer: Rebalancer
    settings: Settings
    lengths: tuple[int, ...]
    seed: int = 0
    threads: int = 1

    @property
    def requests(self) -> tuple[Request, ...]:
        return tuple(Request(i, 1, n, n) for i, n in enumerate(self.lengths))

    def fresh(self) -> Rebalancing:
        """A scheduler object that has seen nothing yet."""
        recorded = self.chosen.counts(slice(0, self.shift or len(self.lengths)))
        return Rebalancing(self.model, self.ranks, self.rebalancer, self.settings, recorded)

    def order(self, held: np.ndarray | None) -> PlacedOrder:
        tokens = (self.settings.seats,) * self.ranks
        return PlacedOrder(
            self.model, self.ranks, self.seed, tokens=tokens, most_rows=self.settings.most_rows, threads=self.threads, chosen=self.chosen,
            held=held,
        )  # fmt: skip

    def first_states(self) -> States:
        """What the requests' rows are before their first step, drawn by the seed and the request."""
        drawn = (np.random.default_rng([self.seed, 4, i]) for i in range(len(self.lengths)))
        return {i: rng.standard_normal(self.model.hidden, np.float32) for i, rng in enumerate(drawn)}


@dataclass(frozen=True, slots=True)
class Served:
    """A run on either clock. answers: row of each answered request, none in the twin."""

    scheduler: Rebalancing
    run: Run
    log: Log
    answers: States
    replaced_s: Sequence[float]


def serve(cluster: StandingCluster, serving: Serving, profile: Profile, kill: Kill | None = None, say: Say = lambda text: None) -> Served:
    """Really, on a cluster that is entered. Raises what `StandingCluster` raises but RankGone."""
    scheduler, log = serving.fresh(), Log()
    cluster.prepare(serving.order(scheduler.held), serving.order(None))
    engine = RecoveringEngine(cluster, profile, serving.requests, scheduler.lanes, serving.first_states(), kill, say)
    drive(scheduler, engine, log)
    answers = {q: engine.states[q] for q in scheduler.answered}
    return Served(scheduler, engine.run(), log, answers, tuple(engine.replaced_s))


def simulate(serving: Serving, machine: Machine, changes: Sequence[Change] = ()) -> Served:
    """The same scheduler on the simulated clock, by the profile of the ranks. changes: losses and comings (`sim.ep.names.alive`)."""
    from sim.engines.simpy_engine import SimPyEngine  # numba

    machine = with_losses(machine, serving.ranks)
    layer = MoELayer.of(serving.model)
    costs = PlacedCosts(machine, layer, serving.ranks, serving.chosen, HostPrices(machine, serving.model), header_rows=1)
    scheduler, log = serving.fresh(), Log()
    engine = SimPyEngine(
        costs.lanes, scheduler.pools, costs, profile=costs, arrivals=serving.requests, changes=changes, outcomes=costs.outcome
    )
    drive(scheduler, engine, log)
    return Served(scheduler, engine.run, log, {}, ())


# In one process ---------------------------------------------------------------------------------


def single_process(serving: Serving) -> Floats:
    """The answers [requests, hidden] by one process that holds every expert: all requests together, one step and layer after another."""
    model = serving.model
    weights = shards.shard(replace(serving.order(None), ranks=1), 0)
    states = serving.first_states()
    rows = np.stack([states[i] for i in range(len(serving.lengths))])
    for step in range(max(serving.lengths)):
        going = np.flatnonzero(np.array(serving.lengths) > step)
        hidden = rows[going]
        for layer in range(model.layers):
            moe_layer(model, weights, layer, hidden, serving.chosen.rows(going.tolist(), [step] * len(going), layer))
        rows[going] = hidden
    return rows


def largest_difference(serving: Serving, answers: States) -> float:
    """Of the answers from those of one process, over the largest number among these."""
    alone = single_process(serving)
    return max((float(np.abs(row - alone[q]).max()) for q, row in answers.items()), default=0.0) / float(np.abs(alone).max())
