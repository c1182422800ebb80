"""Order: what every rank is told of a run before it begins; each takes its own part of it."""

from __future__ import annotations

from dataclasses import dataclass

from sim.events import Request
from sim.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Order:
    """Attributes
    ----------
    weights: directory of safetensors; empty: drawn from `seed`.
    tokens [ranks]: rows that pass the MoE layers on each rank, where no model is served.
    requests, prompts, lengths: what is served otherwise; rank r has the requests whose number modulo `ranks` is r.
    skew: experts are chosen about as often as 1 / (1 + number) ** skew (0: evenly).
    chunks: parts of a rank's rows that are under way at once; most_rows: rows of the largest message.
    threads: of each rank's compute lane. keep: hand back activations (layers) or logits (a model).
    device: what computes, see `exec.cluster.device`; empty: the cores.
    """

    model: ModelSpec
    ranks: int
    seed: int
    weights: str = ""
    tokens: tuple[int, ...] = ()
    requests: tuple[Request, ...] = ()
    prompts: tuple[tuple[int, ...], ...] = ()
    lengths: tuple[int, ...] = ()
    skew: float = 0.0
    chunks: int = 1
    most_rows: int = 1
    threads: int = 1
    keep: bool = False
    device: str = ""

    @property
    def serves(self) -> bool:
        return bool(self.requests)

    @property
    def experts_per_rank(self) -> int:
        return self.model.experts // self.ranks

    def experts_of(self, rank: int) -> range:
        """Experts whose weights `rank` holds."""
        share = self.experts_per_rank
        return range(rank * share, (rank + 1) * share)

    def requests_of(self, rank: int) -> tuple[int, ...]:
        """Places in `requests` of what `rank` serves."""
        return tuple(k for k, r in enumerate(self.requests) if r.request_id % self.ranks == rank)

    def rows_of(self, rank: int) -> int:
        """Most rows that the rank's layers see at a time."""
        if not self.serves:
            return self.tokens[rank]
        return sum(self.requests[k].prompt_tokens for k in self.requests_of(rank))
