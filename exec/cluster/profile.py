"""What a scheduler is told of a machine that nobody has measured."""

from __future__ import annotations

from sim.errors import UserError
from sim.tasks import Task, Time


class Unknown:
    """Implements `sim.events.Profile`, and knows no times."""

    digest = "not measured"

    def estimate(self, task: Task) -> Time:
        """Raises UserError."""
        raise UserError("--machine: missing; this scheduler asks for times, and only a profile from calibrate --ranks has them")
