"""What all schedulers of expert parallelism share: requests in, one Plan for all ranks out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

from sim.errors import UserError
from sim.events import Arrived, Event, Request
from sim.models.spec import ModelSpec
from sim.plan import Plan
from sim.schedulers.policy import Policy
from sim.tasks import Command, Time


class Shape(NamedTuple):
    """What a Plan is made for: `tokens` [ranks] of each rank."""

    tokens: tuple[int, ...]
    hidden: int
    ffn: int
    experts: int
    top_k: int
    dtype_bytes: int

    @property
    def ranks(self) -> int:
        return len(self.tokens)

    @property
    def row_bytes(self) -> int:
        return self.hidden * self.dtype_bytes

    @property
    def experts_per_rank(self) -> int:
        return self.experts // self.ranks

    def most_rows(self, tokens: int) -> int:
        """Rows that so many tokens can send to one rank: each token picks an expert at most once."""
        return tokens * min(self.top_k, self.experts_per_rank)


def shape_of(model: ModelSpec, tokens: Sequence[int]) -> Shape:
    """Raises UserError where the experts cannot be split evenly over the ranks."""
    if model.experts % len(tokens):
        raise UserError(f"{model.name}: has {model.experts} experts; a multiple of the {len(tokens)} ranks is needed")
    return Shape(tuple(tokens), model.hidden, model.ffn, model.experts, model.top_k, model.dtype_bytes)


class ExpertParallel:
    """Hears Started and Arrived, and answers the last arrival with one Plan for all ranks, see `sim.ep`.

    ranks: GPUs that share the experts. layers: MoE layers, one after another. Raises UserError for
    sizes that do not fit together.
    """

    orders: ClassVar[Mapping[str, str]] = {}
    """Order of the lanes of a family (the name before the rank), where it is not "ready"."""

    def __init__(self, model: ModelSpec, policy: Policy, *, seed: int = 0, ranks: int = 8, layers: int = 1) -> None:
        self.model, self.policy, self.seed = model, policy, seed
        self.layers = layers
        self.at_least_one(ranks=ranks, layers=layers)
        self._tokens = [0] * ranks
        self.shape([1] * ranks)

    @staticmethod
    def at_least_one(**sizes: int) -> None:
        for name, value in sizes.items():
            if value < 1:
                raise UserError(f"{name}: is {value}; 1 or more is needed")

    @property
    def ranks(self) -> int:
        return len(self._tokens)

    @property
    def lanes(self) -> tuple[str, ...]:
        raise NotImplementedError

    @property
    def servers(self) -> Mapping[str, int]:
        """Servers of the lanes of a family, where not one."""
        return {}

    @property
    def pools(self) -> Mapping[str, int]:
        return {}

    def shape(self, tokens: Sequence[int]) -> Shape:
        return shape_of(self.model, tokens)

    def on(self, now: Time, event: Event) -> Sequence[Command]:
        if not isinstance(event, Arrived):
            return ()
        self._tokens[event.request.request_id % self.ranks] += event.request.prompt_tokens
        return [self.plan(self._tokens)] if event.last else ()

    def plan(self, tokens: Sequence[int], first: int = 0) -> Plan:
        """All layers over `tokens` [ranks]; tasks numbered from `first`."""
        raise NotImplementedError

    def memory(self, requests: Sequence[Request]) -> dict[str, dict[str, int]]:
        """Bytes on the GPU that holds most: weights of its experts, and each buffer at its upper bound."""
        tokens = [0] * self.ranks
        for request in requests:
            tokens[request.request_id % self.ranks] += request.prompt_tokens
        shape = self.shape(tokens)
        arrive = sum(shape.most_rows(t) for t in tokens)
        most = max(tokens)
        return {"gpu": {
            "weights": self.layers * shape.experts_per_rank * self.model.expert_bytes, "hidden": 2 * most * shape.row_bytes,
            "send": most * shape.top_k * shape.row_bytes, "recv": arrive * shape.row_bytes, "result": arrive * shape.row_bytes,
            "back": most * shape.top_k * shape.row_bytes,
        }}  # fmt: skip
