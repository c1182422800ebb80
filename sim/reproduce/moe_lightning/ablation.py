"""Table 5, which part of the gain is whose, and Fig. 9, the times of one layer by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

from sim import machines, models
from sim.reproduce.moe_lightning import published
from sim.reproduce.moe_lightning.cells import Cell
from sim.tasks import PS_PER_S, Work


def table_5() -> Iterator[tuple[str, Cell]]:
    """Name and run of each row. Runs that are cells of Fig. 7 as well are those cells."""
    for row in published.TABLE_5:
        fitted = published.TABLE_5_GEN in published.FITTED["S1", row.system]
        yield row.name, Cell(row.system, "S1", published.TABLE_5_GEN, row.tokens_per_s, row.sizes, fitted)


class LayerTime(NamedTuple):
    """One point of Fig. 9. context: KV entries of each sequence; 0 where none are read."""

    what: str
    microbatch: int
    context: int
    published_ms: float
    simulated_ms: float

    @property
    def error(self) -> float:
        return self.simulated_ms / self.published_ms - 1


KV_TRANSFER, CPU_ATTENTION, EXPERTS = "KV transfer", "CPU attention", "MoE FFN"


def fig_9() -> list[LayerTime]:
    """Solo times of one layer's ops on the L4 box: KV from pinned memory at the rate of the link."""
    from sim.costs import CostModel

    model = models.load(published.MODEL)
    costs = CostModel(machines.load(published.MACHINES["S2"]), model)

    def ms(lane: str, work: Work) -> float:
        return costs.solo_ps(lane, work) / PS_PER_S * 1e3

    out = []
    for mu, (transfers, attentions, ffn) in published.FIG_9.items():
        for context, transfer, attention in zip(published.FIG_9_CONTEXTS, transfers, attentions, strict=True):
            moved = Work("hidden_to_gpu", mu, mu, bytes=mu * context * model.kv_bytes_per_token_layer)
            out.append(LayerTime(KV_TRANSFER, mu, context, transfer, ms("h2d", moved)))
            out.append(LayerTime(CPU_ATTENTION, mu, context, attention, ms("cpu", Work("attn_decode", mu, mu, mu * context))))
        experts = Work("post_attn", mu, mu, experts=model.experts, variant="tiled")
        out.append(LayerTime(EXPERTS, mu, 0, ffn, ms("gpu", experts)))
    return out


def errors(times: list[LayerTime]) -> dict[str, Any]:
    """Median absolute error of each kind and of all."""
    kinds = {what: [abs(t.error) for t in times if t.what == what] for what in (KV_TRANSFER, CPU_ATTENTION, EXPERTS)}
    return {"median": median(abs(t.error) for t in times), **{what: median(found) for what, found in kinds.items()}}
