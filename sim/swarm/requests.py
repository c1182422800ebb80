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
from sim.tasks import Cancel, Command, Task, Time

TOKEN_BYTES = 4
RESEND_S = 1.0
"""Silence after which a message is said again (RFC 6298's first timeout)."""


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
        self._forwards: dict[int, tuple[Job, Group, int]] = {}
        """Message, or the timer until it is said again -> its job, group, and the node that it goes to."""
        self._answers: dict[int, tuple[Group, Job, int]] = {}
        """The same -> its group, job, and the node that it comes from."""
        self._parked: list[Job] = []

    def arrive(self, now: Time, event: Arrived) -> Sequence[Command]:
        r = event.request
        self.closed = self.closed or event.last
        origin = self.origins(r.request_id)
        if origin in self.plant.nodes and self.plant.nodes.index(origin) in self.dead:
            origin = self.plant.cluster.coordinator
        entered = self.desk.tally.entered
        entered[origin] = entered.get(origin, 0) + 1
        job = Job(r.request_id, origin, now, r.prompt_tokens, r.output_tokens or r.max_output_tokens)
        self.jobs[job.number] = job
        self.open += 1
        self.quiet_since = now
        return self.forward(now, job)

    def forward(self, now: Time, job: Job) -> Sequence[Command]:
        """To a group, over the network; waits where none that is up can hold it."""
        group = self.dispatcher.choose(now, job)
        if group is None:
            self._parked.append(job)
            return []
        return [self._forward(job, group)]

    def _forward(self, job: Job, group: Group) -> Task:
        home = group.home

        def came(at: Time, result: Result) -> Sequence[Command]:
            del self._forwards[task.number]
            commands: list[Command] = []
            if result.facts:  # nobody acknowledges: it is said again
                again = self.desk.timer(RESEND_S, lambda later, _: self._forward_again(later, again.number))
                self._forwards[again.number] = (job, group, home)
                commands.append(again)
            if result.facts.get("lost"):
                return commands
            return [*commands, *self._taken(at, job, group)]

        task = self.desk.send(job.origin, self.plant.nodes[home], job.tokens * TOKEN_BYTES, "forward", came)
        self._forwards[task.number] = (job, group, home)
        return task

    def _forward_again(self, now: Time, timer: int) -> Sequence[Command]:
        job, group, _ = self._forwards.pop(timer)
        return [self._forward(job, group)] if self.dispatcher.takes(group, job) else [] if job.taken else self.redirect(now, job)

    def _taken(self, now: Time, job: Job, group: Group) -> Sequence[Command]:
        """A request is at a group; one that has come before is known by its number."""
        if job.taken:
            self.outcome.discarded += 1
            return []
        takes = self.dispatcher.takes(group, job)
        return self.running.started(group, group.add(now, [job])) if takes else self.redirect(now, job)

    def redirect(self, now: Time, job: Job) -> Sequence[Command]:
        job.moves += 1
        self.outcome.handed_over += 1
        return self.forward(now, job)

    def unpark(self, now: Time) -> list[Command]:
        """Requests that found no group, if one is up now."""
        if not any(g.up for g in self.dispatcher.groups):
            return []
        parked, self._parked = self._parked, []
        return [c for job in parked for c in self.forward(now, job)]

    def lengths(self) -> set[int]:
        """KV tokens of each request that waits for a group."""
        return {job.kv_tokens for job in self._parked}

    def lengths_at(self, group: Group) -> set[int]:
        """The same of those that wait at a group or are on their way to it."""
        coming = (job for job, to, _ in self._forwards.values() if to is group and not job.taken)
        return {job.kv_tokens for job in (*group.waiting, *coming)}

    # Steps and answers --------------------------------------------------------------------------

    def step_ended(self, now: Time, event: Finished) -> Sequence[Command]:
        group = self.running.pop(event.task)
        assert group is not None, f"task {event.task} ends no step"
        self.quiet_since = now
        return [*self.answers(group, group.ended(now)), *self.running.started(group, group.start(now))]

    def step_cut(self, now: Time, group: Group, fraction: float) -> Sequence[Command]:
        """A stretch was cut for newcomers; it goes on."""
        self.quiet_since = now
        done, commands = group.cut_short(now, fraction)
        return [*self.answers(group, done), *self.running.started(group, commands)]

    def answers(self, group: Group, jobs: Sequence[Job]) -> list[Command]:
        return [self._answer(group, job) for job in jobs]

    def _answer(self, group: Group, job: Job) -> Task:
        source = group.home

        def home(at: Time, result: Result) -> Sequence[Command]:
            del self._answers[task.number]
            commands: list[Command] = []
            if result.facts:
                again = self.desk.timer(RESEND_S, lambda later, _: [self._answer(*self._answers.pop(again.number)[:2])])
                self._answers[again.number] = (group, job, source)
                commands.append(again)
            if not result.facts.get("lost"):
                self._delivered(at, job)
            return commands

        task = self.desk.send(self.plant.nodes[source], job.origin, job.output * TOKEN_BYTES, "answer", home)
        self._answers[task.number] = (group, job, source)
        return task

    def _delivered(self, now: Time, job: Job) -> None:
        """An answer has come; one that has come before is known by its number."""
        if job.answered >= 0:
            self.outcome.discarded += 1
            return
        job.answered = now
        job.deliveries += 1
        self.open -= 1
        self.quiet_since = now

    def touches(self, node: int) -> bool:
        """Whether a request is on its way to the node or an answer on its way from it."""
        return any(to == node for _, _, to in self._forwards.values()) or any(source == node for _, _, source in self._answers.values())

    # Lost nodes ---------------------------------------------------------------------------------

    def rescue(self, now: Time, node: int) -> list[Command]:
        """Requests on their way to a node that is gone go elsewhere; answers that it had not got out are made again."""
        commands: list[Command] = []
        for task, (job, _, to) in list(self._forwards.items()):
            if to == node:
                commands += [self._drop(task, "its group is gone"), *([] if job.taken else self.redirect(now, job))]
        for task, (_, job, source) in list(self._answers.items()):
            if source == node:
                commands.append(self._drop(task, "its answer is gone"))
                if job.answered < 0:
                    job.produced = job.resident = 0
                    job.taken = False
                    commands += self.redirect(now, job)
        return [*commands, *self._enter_elsewhere(now, node)]

    def _enter_elsewhere(self, now: Time, node: int) -> list[Command]:
        """Users who came in at a node that is gone come in at the coordinator: their requests and answers go that way."""
        here, there = self.plant.cluster.coordinator, self.plant.nodes[node]
        stranded = {j.number for j in self.jobs.values() if j.origin == there and j.answered < 0}
        for number in stranded:
            self.jobs[number].origin = here
        commands: list[Command] = []
        for task, (job, group, _) in list(self._forwards.items()):
            if job.number in stranded:
                again = [self._forward(job, group)] if self.dispatcher.takes(group, job) else self.forward(now, job)
                commands += [self._drop(task, "its entry is gone"), *again]
        for task, (group, job, _) in list(self._answers.items()):
            if job.number in stranded:
                commands += [self._drop(task, "its entry is gone"), self._answer(group, job)]
        return commands

    def _drop(self, task: int, reason: str) -> Cancel:
        self._forwards.pop(task, None)
        self._answers.pop(task, None)
        self.desk.forget(task)
        return Cancel(task, reason)
