"""What can end a run of several ranks before its time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.engines.run import Run


class RunStopped(RuntimeError):
    """A run ended early. run: what had happened until then; None: nothing had begun."""

    def __init__(self, why: str, run: Run | None = None) -> None:
        super().__init__(why)
        self.run = run


class RankLost(RunStopped):
    """A rank was killed, or has stalled."""

    def __init__(self, rank: int, why: str, run: Run | None = None) -> None:
        super().__init__(f"rank {rank} was lost: {why}; the other ranks were stopped", run)
        self.rank = rank
