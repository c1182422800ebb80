"""Traffic: what `run --placement` and `validate --placement` serve, as it is stated."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from exec.cluster.placing import Serving
from exec.cluster.probes import threads_of
from exec.cluster.recovering import Kill
from exec.execute import spec_of
from sim.ep.chosen import Chosen, drawn, onto_one_rank, recorded
from sim.models.spec import ModelSpec
from sim.placement.policy import load as load_policy
from sim.placement.rebalance import Rebalancer
from sim.schedulers.ep.rebalancing import Settings


class Traffic(BaseModel):
    """Requests with the choices of their routers, and when experts move after the load."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "tiny-mixtral"
    batch: int | None = Field(None, gt=0, description="requests served at a time on all ranks; none: 64 a rank")
    gen: int = Field(16, gt=0, description="steps of each request")
    plan_steps: int = Field(4, gt=0, description="steps of a plan, which counts as a whole or not at all")
    requests: int | None = Field(None, gt=0, description="in all; none: four for each served at a time")
    shift: int | None = Field(None, gt=0, description="the first request whose hot experts are others")
    trace: Path | None = Field(None, description="routing trace whose choices are dealt out; none: they are drawn")
    skew: float = Field(0.0, ge=0, description="deviation of the experts' popularity, where choices are drawn")
    spares: int = Field(4, ge=0, description="copies of a layer's experts beyond one of each")
    rebalance_every: int = Field(2, ge=0, description="plans between looks at the load; 0: never")
    hysteresis: float = Field(0.05, ge=0, description="balancedness that another placement has to gain")
    kill: str | None = Field(None, description="RANK@STEP: a drill")
    seed: int = 0

    def serving(self, ranks: int, placement: str) -> Serving:
        """Raises UserError for what so many ranks cannot serve."""
        spec = spec_of(self.model)
        seats = -(-(self.batch or 64 * ranks) // ranks)
        count = self.requests or 4 * ranks * seats
        at = count if self.shift is None else min(self.shift, count)
        chosen = self._chosen(spec, count)
        slots = -(-(spec.experts + self.spares) // ranks)
        rebalancer = Rebalancer(load_policy(placement, "--placement"), slots, self.hysteresis, self.seed)
        before = chosen.counts(slice(0, at))
        chosen = chosen.shifted(at, onto_one_rank(before, rebalancer.first(before, ranks)))
        settings = Settings(seats, self.plan_steps, self.rebalance_every, most_rows=seats * spec.top_k)
        return Serving(spec, ranks, chosen, at, rebalancer, settings, (self.gen,) * count, seed=self.seed, threads=threads_of(ranks))

    def drill(self, serving: Serving) -> Kill | None:
        """Raises UserError for a rank or a step that there is not."""
        return None if self.kill is None else Kill.of(self.kill, serving.ranks, serving.steps)

    def _chosen(self, spec: ModelSpec, count: int) -> Chosen:
        if self.trace is not None:
            return recorded(self.trace, spec, count, self.gen)
        return drawn(spec, count, self.gen, self.skew, self.seed)
