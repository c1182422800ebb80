"""How a task can go wrong: a fault that the scheduler hears of, and an error that ends the run."""

from __future__ import annotations

from exec.runtime.records import Record


class Fault(RuntimeError):
    """Raised by an op for a failure that a scheduler may handle: the task ends as failed, the run goes on.

    `fraction_done` in 0..1 says how much of the task need not be done again.
    """

    def __init__(self, reason: str, fraction_done: float = 0.0) -> None:
        super().__init__(reason)
        self.fraction_done = fraction_done


class Interrupted(Exception):
    """Raised by an op that was asked to stop (see `Interrupt`) and has done `fraction_done` of its work."""

    def __init__(self, fraction_done: float = 0.0) -> None:
        super().__init__(f"interrupted with {fraction_done:.0%} done")
        self.fraction_done = fraction_done


class TaskFailed(RuntimeError):
    """A task raised something else than `Fault` and the run has ended; the cause carries the original traceback."""


class HazardError(RuntimeError):
    """Two tasks in flight touch one buffer and one of them writes it: the plan lacks a dependency or a pool."""


class RuntimeStuck(RuntimeError):
    """A lane thread did not come back from its op after the run was stopped."""


def describe(task: Record) -> str:
    """Name of a task for people: number, op and the labels that it has."""
    labels = [task.work.op]
    if task.phase:
        labels.append(f"{task.phase} step {task.step}" if task.step >= 0 else task.phase)
    labels += [f"{name} {at}" for name, at in (("layer", task.layer), ("micro-batch", task.microbatch), ("page", task.page)) if at >= 0]
    return f"task {task.number} ({', '.join(labels)})"
