"""The control plane: replicas agree on one placement change for each epoch, although f of 3f + 1 may lie or fall silent.

A replica is a `sim.swarm.mail.Member`, a pure state machine. Normal case in three phases (pre-prepare, prepare, commit); a leader
that brings nothing to a decision in time is replaced by a view change; words are said again while something is open, so
that lost messages only cost time. Source: Castro and Liskov (OSDI'99), with one open epoch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sim.swarm.ballots import (
    Ask,
    Commit,
    Committee,
    Decided,
    Decision,
    Fetch,
    NewView,
    Prepare,
    PrePrepare,
    Said,
    Signed,
    Value,
    ViewChange,
    size_bytes,
)
from sim.swarm.mail import Act, Alarm, Heard, Message, Send
from sim.swarm.votes import Votes, Wishes
from sim.tasks import PS_PER_S, Time


@dataclass(frozen=True, slots=True)
class Patience:
    """repeat_s: open words are said again so often. timeout_s: a view that decides nothing for so long ends; the next ones get twice
    the time of the one before, up to `longest_s`."""

    repeat_s: float = 1.0
    timeout_s: float = 3.0
    longest_s: float = 60.0


class Replica:
    """One replica.

    acceptable: whether it would vote for a value (a placement within every memory's budget).
    decided: epoch -> value, the log without holes. view: the present one, wanted or agreed.
    """

    def __init__(
        self, name: str, committee: Committee, patience: Patience | None = None, acceptable: Callable[[Value], bool] = lambda value: True
    ) -> None:
        self.name = name
        self.committee = committee
        self.patience = patience or Patience()
        self.acceptable = acceptable
        self.view = 0
        self.changing = False
        self.decisions: list[Decision] = []
        self.decided_at: list[Time] = []
        self.pending: dict[str, Value] = {}
        self._opening: tuple[int, Value | None] = (0, None)
        self._votes = Votes(committee)
        self._wishes = Wishes(committee)
        self._new_view: Signed[NewView] | None = None
        self._mine: list[Said] = []
        """Own words on what is open, to be said again."""
        self._since: Time = 0
        self._tries = 0
        """View changes since the last decision."""
        self._ticking = False
        self._life = 0
        """Starts of the node: an alarm that was set before a crash does not count after it."""

    @property
    def decided(self) -> dict[int, Value]:
        return {d.epoch: d.value for d in self.decisions}

    @property
    def epoch(self) -> int:
        """The epoch that is open."""
        return len(self.decisions)

    def start(self, now: Time) -> Sequence[Act]:
        return []

    def propose(self, now: Time, value: Value) -> list[Act]:
        """A client asks this replica: it tells all."""
        return [*self._say(Ask(value)), *self._ask(now, value)]

    def recover(self, now: Time) -> list[Act]:
        """Back after a crash, with its log: it asks what it missed, and what it said before is open still."""
        self._ticking = False
        self._life += 1
        self._since = now
        return [*self._say(Fetch(self.epoch)), *self._tick(now)]

    def on(self, now: Time, heard: Heard) -> Sequence[Act]:
        if isinstance(heard, Alarm):
            return self._alarm(now) if heard.token == self._life else []
        return self._hear(now, heard)

    def _hear(self, now: Time, message: Message) -> list[Act]:
        said: Any = message.payload
        if isinstance(said, Ask):
            return self._ask(now, said.value)
        if isinstance(said, Fetch):
            return self._answer(message.sender, said.epoch)
        if isinstance(said, Decided):
            return self._catch_up(now, said)
        if not isinstance(said, Signed) or not self.committee.honest(said):
            return []
        body = said.body
        if isinstance(body, ViewChange):
            return self._wish(now, said)
        if isinstance(body, NewView):
            return self._enter(now, said)
        if not isinstance(body, PrePrepare | Prepare | Commit):
            return []
        if body.epoch < self.epoch:
            return self._answer(message.sender, body.epoch)
        if body.epoch > self.epoch:
            return [*self._to(message.sender, Fetch(self.epoch)), *self._tick(now)]
        if isinstance(body, PrePrepare):
            return self._pre_prepare(now, said)
        return self._prepare(now, said) if isinstance(body, Prepare) else self._commit(now, said)

    # Normal case --------------------------------------------------------------------------------

    def _ask(self, now: Time, value: Value) -> list[Act]:
        if not self._may_vote(value):
            return []
        if not self.pending:
            self._since = max(self._since, now)
        self.pending.setdefault(value.request, value)
        return [*self._lead_on(now), *self._tick(now)]

    def _may_vote(self, value: Value) -> bool:
        """Not decided in an earlier epoch, and acceptable."""
        return self.acceptable(value) and all(value.request != d.value.request for d in self.decisions)

    def _lead_on(self, now: Time) -> list[Act]:
        """The leader opens the epoch with what must or may come next."""
        if self.changing or self.committee.leader(self.view) != self.name or self._votes.lead is not None:
            return []
        first, required = self._opening
        value = required if required is not None and first == self.epoch else next(iter(self.pending.values()), None)
        if value is None or self.epoch < first:
            return []
        lead = self.committee.keys.sign(self.name, PrePrepare(self.view, self.epoch, value))
        return [*self._say(lead, keep=True), *self._pre_prepare(now, lead)]

    def _pre_prepare(self, now: Time, lead: Signed[PrePrepare]) -> list[Act]:
        body = lead.body
        first, required = self._opening
        if body.view != self.view or self.changing or self._votes.lead is not None or lead.signer != self.committee.leader(self.view):
            return []
        wrong = body.epoch < first or (body.epoch == first and required is not None and body.value != required)
        if wrong or not self._may_vote(body.value):
            return []
        self._votes.lead = lead
        vote = self.committee.keys.sign(self.name, Prepare(body.view, body.epoch, body.value))
        return [*self._say(vote, keep=True), *self._prepare(now, vote), *self._tick(now)]

    def _prepare(self, now: Time, vote: Signed[Prepare]) -> list[Act]:
        self._votes.prepare(vote)
        proof = self._votes.newly_prepared()
        if proof is None:
            return self._tick(now)
        commit = self.committee.keys.sign(self.name, Commit(self.view, proof.lead.body.epoch, proof.lead.body.value))
        return [*self._say(commit, keep=True), *self._commit(now, commit), *self._tick(now)]

    def _commit(self, now: Time, vote: Signed[Commit]) -> list[Act]:
        decision = self._votes.commit(vote)
        return self._tick(now) if decision is None else self._decide(now, decision)

    def _decide(self, now: Time, decision: Decision) -> list[Act]:
        assert decision.epoch == self.epoch, f"{self.name}: decision of epoch {decision.epoch}, {self.epoch} is open"
        self.decisions.append(decision)
        self.decided_at.append(now)
        self.pending.pop(decision.value.request, None)
        self._votes.close()
        if not self.changing:
            self._mine.clear()
        self._since, self._tries = now, 0
        return self._lead_on(now)

    # Catching up --------------------------------------------------------------------------------

    def _answer(self, to: str, epoch: int) -> list[Act]:
        found = tuple(self.decisions[epoch:])
        acts = self._to(to, Decided(found)) if found and to != self.name else []
        if self._new_view is not None and not self.changing and to != self.name:
            acts += self._to(to, self._new_view)
        return acts

    def _catch_up(self, now: Time, said: Decided) -> list[Act]:
        acts: list[Act] = []
        for decision in said.decisions:
            if self.committee.proves_decision(decision) and decision.epoch == self.epoch:
                acts += self._decide(now, decision)
        return acts

    # View change --------------------------------------------------------------------------------

    def _alarm(self, now: Time) -> list[Act]:
        """Say open words again; give the view up when its time is over."""
        self._ticking = False
        if not self._open:
            return []
        waited = min(self.patience.timeout_s * 2.0 ** min(self._tries, 30), self.patience.longest_s)
        if self._waits and self._may_give_up and now - self._since >= waited * PS_PER_S:
            return self._want(now, self.view + 1)
        first = list(self.pending.values())[:1]  # one epoch is open: the others wait their turn, however many there are
        words = [*map(Ask, first), *self._mine, *([Fetch(self.epoch)] if self._votes.overheard else [])]
        return [*(act for said in words for act in self._say(said)), *self._tick(now)]

    @property
    def _waits(self) -> bool:
        """Whether something waits for a decision here. A view change with nothing to decide can wait for the next request."""
        return bool(self.pending or self._votes.prepared is not None or (self._mine and not self.changing))

    @property
    def _may_give_up(self) -> bool:
        """A view that is only wished for is given up once a quorum has wished for it (section 4.5.2): else one replica could run a view
        ahead of the others for ever."""
        return not self.changing or bool(self._wishes.quorum(self.view))

    @property
    def _open(self) -> bool:
        return self._waits or self._votes.overheard

    def _want(self, now: Time, view: int) -> list[Act]:
        self.view, self.changing, self._since = view, True, now
        self._tries += 1
        self._votes.lead = None
        last = self.decisions[-1] if self.decisions else None
        wish = self.committee.keys.sign(self.name, ViewChange(view, self.epoch, last, self._votes.prepared))
        self._mine.clear()
        return [*self._say(wish, keep=True), *self._wish(now, wish), *self._tick(now)]

    def _wish(self, now: Time, signed: Signed[ViewChange]) -> list[Act]:
        """Count wishes for a view: f + 1 for later ones take this replica along, a quorum lets the new leader begin."""
        view = signed.body.view
        if view < self.view or (view == self.view and not self.changing):
            return self._answer(signed.signer, signed.body.epoch)
        if not self.committee.proves_wish(signed):
            return []
        if self._wishes.add(signed) and view == self.view:
            self._since = now  # from here on its new leader is waited for
        acts: list[Act] = self._answer(signed.signer, signed.body.epoch)
        if signed.body.last is not None and signed.body.last.epoch > self.epoch:
            acts += self._to(signed.signer, Fetch(self.epoch))
        elif signed.body.last is not None and signed.body.last.epoch == self.epoch:
            acts += self._decide(now, signed.body.last)
        ahead = self._wishes.ahead(self.view)
        if ahead is not None:
            return [*acts, *self._want(now, ahead)]
        wishes = self._wishes.quorum(view)
        if self.changing and view == self.view and self.committee.leader(view) == self.name and wishes:
            new = self.committee.keys.sign(self.name, NewView(view, wishes))
            return [*acts, *self._say(new), *self._enter(now, new)]
        return [*acts, *self._tick(now)]

    def _enter(self, now: Time, signed: Signed[NewView]) -> list[Act]:
        new = signed.body
        if new.view < self.view or (new.view == self.view and not self.changing) or not self.committee.proves_view(signed):
            return []
        self.view, self.changing, self._since = new.view, False, now
        self._new_view = signed
        self._votes.lead = None
        self._mine.clear()
        self._opening = self.committee.opening(new)
        self._wishes.forget(new.view)
        acts: list[Act] = []
        if self.epoch < self._opening[0]:
            acts += self._say(Fetch(self.epoch))
        if self.committee.leader(self.view) == self.name:
            self._mine.append(signed)
        return [*acts, *self._lead_on(now), *self._tick(now)]

    # Talking ------------------------------------------------------------------------------------

    def _say(self, said: Said, keep: bool = False) -> list[Act]:
        """To all others; `keep`: again and again while it is open."""
        if keep:
            self._mine.append(said)
        return [act for name in self.committee.names if name != self.name for act in self._to(name, said)]

    @staticmethod
    def _to(name: str, said: Said) -> list[Act]:
        return [Send(name, said, size_bytes(said))]

    def _tick(self, now: Time) -> list[Act]:
        """See to it that an alarm is set while something is open."""
        if self._ticking or not self._open:
            return []
        self._ticking = True
        return [Alarm(round(self.patience.repeat_s * PS_PER_S), self._life)]
