"""What `run --placement` serves: requests through MoE layers with the choices of a trace, on ranks, in the twin and in one process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from exec.cluster import shards
from exec.cluster.losses import RunStopped
from exec.cluster.outputs import Floats
from exec.cluster.placed import PlacedOrder, States
from exec.cluster.prices import SPREAD, HostPrices, _drawn, words_of
from exec.cluster.recovering import Kill, RecoveringEngine, Say
from exec.cluster.runs import moe_layer
from exec.cluster.split import Split
from exec.cluster.standing import StandingCluster
from exec.cluster.watch import Sample, Watch
from sim.costs import PricedPlan
from sim.drive import Log, drive
from sim.engines.intake import Change
from sim.engines.run import Run
from sim.ep import names
from sim.ep.chosen import Chosen
from sim.ep.layer import MoELayer
from sim.ep.placed_costs import PlacedCosts, with_losses
from sim.errors import UserError
from sim.events import Profile, Request
from sim.machines.schema import Machine
from sim.models.spec import ModelSpec
from sim.placement.rebalance import Rebalancer
from sim.plan import Plan
from sim.schedulers.ep.rebalancing import Rebalancing, Settings
from sim.schedulers.ep.seats import Seats
from sim.tasks import PS_PER_S, Work

DRAWS = 5
"""Simulated runs of which the median counts."""


@dataclass(frozen=True)
class Serving:
    """shift: the first request whose hot experts are others. The first placement is made for the load of the requests before it.
    Raises UserError where a rank's rows may be more than a message holds: they could all go to one other rank."""

    model: ModelSpec
    ranks: int
    chosen: Chosen
    shift: int
    rebalancer: Rebalancer
    settings: Settings
    lengths: tuple[int, ...]
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        seats, each, most = self.settings.seats, self.model.top_k, self.settings.most_rows
        if most < seats * each:
            raise UserError(f"most_rows: is {most}; {seats * each} or more is needed, {each} for each of {seats} seats")

    @property
    def requests(self) -> tuple[Request, ...]:
        return tuple(Request(i, 1, n, n) for i, n in enumerate(self.lengths))

    @property
    def steps(self) -> int:
        """Of a run that loses no rank."""
        seats, count = Seats(self.ranks, self.settings.seats), 0
        for request, length in enumerate(self.lengths):
            seats.arrive(request, length)
        while seats.next_step(range(self.ranks)):
            count += 1
        return count

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
    """A run on either clock. answers: row of each answered request, none in the twin. samples: what the computer was like around
    a Plan, by its first number, where that was watched."""

    scheduler: Rebalancing
    run: Run
    log: Log
    answers: States
    replaced_s: Sequence[float]
    samples: Mapping[int, Sample] = field(default_factory=dict)


def serve(
    cluster: StandingCluster, serving: Serving, profile: Profile, kill: Kill | None = None, say: Say = lambda text: None,
    watch: Watch | None = None,
) -> Served:  # fmt: skip
    """Really, on a cluster that is entered. Raises what `StandingCluster` raises but RankGone: with all that
    happened until then, not the last Plan alone."""
    scheduler, log = serving.fresh(), Log()
    cluster.prepare(serving.order(scheduler.held), serving.order(None))
    engine = RecoveringEngine(cluster, profile, serving.requests, scheduler.lanes, serving.first_states(), kill, say, watch)
    try:
        drive(scheduler, engine, log)
    except RunStopped as stopped:
        stopped.run = engine.story()
        raise
    answers = {q: engine.states[q] for q in scheduler.answered}
    return Served(scheduler, engine.run(), log, answers, tuple(engine.replaced_s), engine.samples)


class DrawnCosts(PlacedCosts):
    """What an experts task takes varies from run to run by the profile's spread, and who waits for all ranks waits for the slowest."""

    def __init__(self, machine: Machine, serving: Serving, draw: int) -> None:
        prices = HostPrices(machine, serving.model)
        super().__init__(machine, MoELayer.of(serving.model), serving.ranks, serving.chosen, prices, header_rows=1)
        self._spread = next((row.ratio[0][1] for row in machine.ops if row.op == SPREAD), 0.0)
        self._draw = draw

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(f"{super().digest} {self._draw} {self._spread!r}".encode()).hexdigest()

    def bind(self, plan: Plan) -> PricedPlan:
        priced = super().bind(plan)
        return _drawn(priced, self._spread, (self._draw << 32) + plan.first) if self._spread else priced

    def routed(self, plan: Plan) -> Plan:
        """And with the words between ranks that each task waits for, and that it says to the controller."""
        plan = super().routed(plan)
        table: dict[Work, int] = {}
        column = np.empty_like(plan.work)
        for i, (waited, said) in enumerate(zip(words_of(Split(plan)), plan.notify.tolist(), strict=True)):
            work, words = plan.works[plan.work[i]], waited + said
            column[i] = table.setdefault(work._replace(messages=words) if words else work, len(table))
        return replace(plan, works=tuple(table), work=column)


def simulate(serving: Serving, machine: Machine, changes: Sequence[Change] = (), draws: int = DRAWS) -> list[Served]:
    """The same scheduler on the simulated clock, by the profile of the ranks, `draws` times.
    changes: losses and comings (`sim.ep.names.alive`)."""
    machine = with_losses(machine, serving.ranks)
    return [_simulate(serving, DrawnCosts(machine, serving, draw), changes) for draw in range(draws)]


def _simulate(serving: Serving, costs: PlacedCosts, changes: Sequence[Change]) -> Served:
    from sim.engines.simpy_engine import SimPyEngine  # numba

    scheduler, log = serving.fresh(), Log()
    engine = SimPyEngine(
        costs.lanes, scheduler.pools, costs, profile=costs, arrivals=serving.requests, changes=changes, outcomes=costs.outcome
    )
    drive(scheduler, engine, log)
    return Served(scheduler, engine.run, log, {}, ())


def when_lost(serving: Serving, machine: Machine, kill: Kill | None, replaced_s: Sequence[float]) -> list[Change]:
    """Nothing where no rank really was lost. Else it is in the simulated middle of the step that it was killed in, and replaced as long
    after as it really was. Until then the process that starts in its place takes the share of the cores that it had."""
    if kill is None or not replaced_s:
        return []
    (whole,) = simulate(serving, machine, draws=1)
    plans, each = whole.scheduler.tally.served, serving.settings.steps
    plan = plans[min(kill.step // each, len(plans) - 1)]
    first, last = np.searchsorted(whole.run.number, (plan.first, plan.first + plan.tasks - 1)).tolist()
    start, end = int(whole.run.start_ps[first]), int(whole.run.end_ps[last])
    lost = start + (end - start) * (2 * (kill.step % each) + 1) // (2 * each)
    joined = lost + round(sum(replaced_s) * PS_PER_S)
    changes = [(lost, names.alive(kill.rank), names.GONE), (joined, names.alive(kill.rank), 1.0)]
    for name, resource in machine.resources.items():
        if name.startswith("cores."):
            changes += [(lost, name, resource.capacity * (1 - 1 / serving.ranks)), (joined, name, resource.capacity)]
    return changes


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


def largest_difference(serving: Serving, answers: Sequence[States]) -> float:
    """Of the answers of several runs from those of one process, over the largest number among these."""
    alone = single_process(serving)
    off = (float(np.abs(row - alone[q]).max()) for run in answers for q, row in run.items())
    return max(off, default=0.0) / float(np.abs(alone).max())
