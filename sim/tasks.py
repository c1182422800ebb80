"""Task, its work, and the other two commands a scheduler may give.

A task lives in three lines: it is *submitted* to a lane, *starts* when it is its turn, its
dependencies have ended and its pools have room, and *ends* as done, failed, cancelled or skipped.
Then its dependents may start, and the holds that it releases go back to their pools.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from sim.plan import Plan

Time: TypeAlias = int
"""Picoseconds on the engine's clock; ends are rounded up."""

PS_PER_S = 10**12


class Work(NamedTuple):
    """What a task asks of the hardware, independent of any machine.

    One row of a Plan's work table: thousands of tasks share a row, so pricing a Plan for another
    machine prices rows, not tasks.
    """

    op: str
    """Name of a model-level op, see `sim.ops.OPS`; "timer" and "join" cost no hardware."""
    tokens: int = 0
    """Rows of the activation matrix [tokens, hidden]."""
    sequences: int = 0
    context: int = 0
    """Decode: KV entries read, summed over sequences. Prefill: causal query-key pairs, summed."""
    experts: int = 0
    """Upper bound of experts touched; 0 for an op without routed experts."""
    bytes: int = 0
    """Bytes that a copy moves."""
    latency_ps: int = 0
    """Time that passes before any demand, on top of the op table's own latency (timers)."""
    expert_tokens: tuple[int, ...] = ()
    """Rows of each expert [experts] where a routing trace tells them; empty: expected values."""
    columns: int = 0
    """Columns of its result that a tile makes (see `kernels.fused_moe.tiles`)."""
    variant: str = ""
    """How a system does this op, where others do it otherwise ("pinned", "expanded"): the machine's op
    table may price it apart, in a row `op.variant`. What is computed or moved is the same."""
    messages: int = 0
    """Messages that a put is cut into: a NIC sends only so many a second. 0 is one."""


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work.

    Attributes
    ----------
    number: unique, ascending in order of submission; chosen by the scheduler.
    lane: the lane it queues on; None for a join (no cost) or a timer (`work.latency_ps` only).
    deps: numbers of tasks that must be done before this one starts.
    reads, writes: names of the buffers it touches from start to end.
    takes: (pool, units) acquired together at its start, all or nothing.
    releases: numbers of tasks whose holds end when this task ends, however it ends. A task that
        should hold only while it runs names itself.
    priority: smaller is more urgent; lanes of order "ready" and "priority" look at it.
    notify: whether its end raises `Finished`; failures are always raised.
    requests: the sequences it works on, in row order.
    body: what happens inside, where one can look: its work proper comes first, then the body runs, and the
        task ends when the last of it has. See `sim.plan.Plan.bodies`.
    """

    number: int
    work: Work
    lane: str | None = None
    deps: tuple[int, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    takes: tuple[tuple[str, int], ...] = ()
    releases: tuple[int, ...] = ()
    priority: int = 0
    attempt: int = 0
    notify: bool = False
    phase: str = ""
    step: int = -1
    layer: int = -1
    microbatch: int = -1
    rank: int = 0
    page: int = -1
    requests: tuple[int, ...] = ()
    body: Plan | None = None

    @property
    def op(self) -> str:
        return self.work.op


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give a task up: it ends as "cancelled", at once where it runs, and so do its dependents."""

    task: int
    reason: str = "cancelled"


Command: TypeAlias = "Task | Plan | Cancel"
