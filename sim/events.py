"""What a scheduler is told. Events carry facts only; `now` is passed beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from sim.tasks import Task, Time


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to serve.

    `output_tokens` is the length a scheduler may rely on (every sequence generates exactly that
    many); None where it ends on its own, at most `max_output_tokens` after the prompt.
    """

    request_id: int
    prompt_tokens: int
    max_output_tokens: int
    output_tokens: int | None = None
    arrival_ps: Time = 0


class Profile(Protocol):
    """A frozen view of the machine; the same object on both clocks."""

    @property
    def digest(self) -> str: ...
    def estimate(self, task: Task) -> Time:
        """Shortest time in picoseconds that one server of its lane can do `task` in."""
        ...


@dataclass(frozen=True, slots=True)
class Started:
    profile: Profile


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request came in; `last` says that no other will follow."""

    request: Request
    last: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What a policy may react to when a task is done.

    ended: sequences whose last token this task sampled.
    experts: tokens per expert that the router chose [experts], empty where the op has no router.
    facts: anything else, by name (a cache miss, a measured size).
    """

    ended: tuple[int, ...] = ()
    experts: tuple[int, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finished:
    task: int
    result: Result = Result()


@dataclass(frozen=True, slots=True)
class Failed:
    task: int
    reason: str
    fraction_done: float = 0.0


@dataclass(frozen=True, slots=True)
class Changed:
    """A resource has another capacity now; 0 stalls its users."""

    resource: str
    capacity: float


@dataclass(frozen=True, slots=True)
class Report:
    """State of another node, as old as the network makes it."""

    node: str
    state: dict[str, Any]
    sent_at: Time


Event: TypeAlias = Started | Arrived | Finished | Failed | Changed | Report
