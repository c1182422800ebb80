"""Requests on their way: admitted, forwarded to a group, answered once, and sent elsewhere when a node is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sim.events import Arrived, Finished, Result
from sim.swarm.desk import Desk
from sim.swarm.dispatch import Dispatcher
from sim.swarm.group import Group
from sim.swarm.jobs import Job
from sim.swarm.plant import Plant
from sim.swarm.settings import Outcome
from sim.tasks import Cancel, Command, Time

TOKEN_BYTES = 4


class Running:
    """Which group's step a task ends."""

    def __init__(self) -> None:
        self._steps: dict[int, Group] = {}

    def __contains__(self, task: int) -> bool:
        return task in self._steps

    def started(self, group: Group, commands: Sequence[Command]) -> Sequence[Command]:
        """Remember whose step the new tasks are."""
        if commands and not isinstance(commands[-1], Cancel) and group.running is not None:
            self._steps[group.running.last] = group
        return commands

    def pop(self, task: int) -> Group | None:
        return self._steps.pop(task, None)

    def stop(self, group: Group) -> list[Command]:
        """Give up what the group does now."""
        for number in [n for n, g in self._steps.items() if g is group]:
            del self._steps[number]
        return group.abandon()


class Requests:
    """origins: where requests come in, by number. dead: nodes that are taken for dead."""

    def __init__(
        self, plant: Plant, desk: Desk, dispatcher: Dispatcher, running: Running, outcome: Outcome, origins: Callable[[int], str],
        dead: set[int],
    ) -> None:  # fmt: skip
        self.plant, self.desk, self.dispatcher, self.running = plant, desk, dispatcher, running
        self.outcome, self.origins, self.dead = outcome, origins, dead
        self.jobs: dict[int, Job] = {}
        self.open = 0
        self.closed = False
        self.quiet_since: Time = 0
        self._forwards: dict[int, tuple[Job, int]] = {}
        self._answers: dict[int, tuple[Job, Group, int]] = {}
        """Task -> its job, the group that it comes from, and the node that it comes from."""
        self._parked: list[Job] = []

    def arrive(self, now: Time, event: Arrived) -> Sequence[Command]:
        r = event.request
        self.closed = self.closed or event.last
        origin = self.origins(r.request_id)
        if origin in self.plant.nodes and self.plant.nodes.index(origin) in self.dead:
            origin = self.plant.cluster.coordinator
        job = Job(r.request_id, origin, now, r.prompt_tokens, r.output_tokens or r.max_output_tokens)
        self.jobs[job.number] = job
        self.open += 1
        return self.forward(now, job)

    def forward(self, now: Time, job: Job) -> Sequence[Command]:
        """To a group, over the network; waits where none is up."""
        group = self.dispatcher.choose(job)
        if group is None:
            self._parked.append(job)
            return []

        def came(at: Time, result: Result) -> Sequence[Command]:
            del self._forwards[task.number]
            return self.running.started(group, group.add(at, [job])) if group.up else self.redirect(at, job)

        task = self.desk.send(job.origin, self.plant.nodes[group.home], job.tokens * TOKEN_BYTES, "forward", came)
        self._forwards[task.number] = (job, group.home)
        return [task]

    def redirect(self, now: Time, job: Job) -> Sequence[Command]:
        job.moves += 1
        self.outcome.handed_over += 1
        return self.forward(now, job)

    def unpark(self, now: Time) -> list[Command]:
        """Requests that found no group up, if one is now."""
        if not any(g.up for g in self.dispatcher.groups):
            return []
        parked, self._parked = self._parked, []
        return [c for job in parked for c in self.forward(now, job)]

    # Steps and answers --------------------------------------------------------------------------

    def step_ended(self, now: Time, event: Finished) -> Sequence[Command]:
        group = self.running.pop(event.task)
        assert group is not None, f"task {event.task} ends no step"
        return [*self.answers(group, group.ended(now)), *self.running.started(group, group.start(now))]

    def step_cut(self, now: Time, group: Group, fraction: float) -> Sequence[Command]:
        """A stretch was cut for newcomers; it goes on."""
        done, commands = group.cut_short(now, fraction)
        return [*self.answers(group, done), *self.running.started(group, commands)]

    def answers(self, group: Group, jobs: Sequence[Job]) -> list[Command]:
        return [self._answer(group, job) for job in jobs]

    def _answer(self, group: Group, job: Job) -> Command:
        def home(at: Time, result: Result) -> Sequence[Command]:
            del self._answers[task.number]
            if job.answered >= 0:
                self.outcome.duplicates += 1
                return []
            job.answered = at
            self.open -= 1
            self.quiet_since = at
            return []

        task = self.desk.send(self.plant.nodes[group.home], job.origin, job.output * TOKEN_BYTES, "answer", home)
        self._answers[task.number] = (job, group, group.home)
        return task

    # Lost nodes ---------------------------------------------------------------------------------

    def rescue(self, now: Time, node: int) -> list[Command]:
        """Requests on their way to a node that is gone go elsewhere; answers that it had not got out are made again."""
        commands: list[Command] = []
        for task, (job, to) in list(self._forwards.items()):
            if to == node:
                commands += [self._drop(task, "its group is gone"), *self.redirect(now, job)]
        for task, (job, _, source) in list(self._answers.items()):
            if source == node:
                job.produced = job.resident = 0
                commands += [self._drop(task, "its answer is gone"), *self.redirect(now, job)]
        return [*commands, *self._enter_elsewhere(now, node)]

    def _enter_elsewhere(self, now: Time, node: int) -> list[Command]:
        """Users who came in at a node that is gone come in at the coordinator: their requests and answers go that way."""
        here, there = self.plant.cluster.coordinator, self.plant.nodes[node]
        stranded = {j.number for j in self.jobs.values() if j.origin == there and j.answered < 0}
        for number in stranded:
            self.jobs[number].origin = here
        commands: list[Command] = []
        for task, (job, _) in list(self._forwards.items()):
            if job.number in stranded:
                commands += [self._drop(task, "its entry is gone"), *self.forward(now, job)]
        for task, (job, group, _) in list(self._answers.items()):
            if job.number in stranded:
                commands += [self._drop(task, "its entry is gone"), self._answer(group, job)]
        return commands

    def _drop(self, task: int, reason: str) -> Cancel:
        self._forwards.pop(task, None)
        self._answers.pop(task, None)
        self.desk.forget(task)
        return Cancel(task, reason)
