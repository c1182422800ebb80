"""What a replica has heard of the open epoch and of views to come, and what it proves."""

from __future__ import annotations

from sim.swarm.ballots import Commit, Committee, Decision, Prepare, Prepared, PrePrepare, Signed, ViewChange


class Votes:
    """Of the open epoch. lead: the leader's word in the present view; prepared: the latest proof that a quorum has prepared a value."""

    def __init__(self, committee: Committee) -> None:
        self.committee = committee
        self.lead: Signed[PrePrepare] | None = None
        self.prepared: Prepared | None = None
        self._prepares: dict[Prepare, dict[str, Signed[Prepare]]] = {}
        self._commits: dict[Commit, dict[str, Signed[Commit]]] = {}

    def prepare(self, vote: Signed[Prepare]) -> None:
        self._prepares.setdefault(vote.body, {})[vote.signer] = vote

    def newly_prepared(self) -> Prepared | None:
        """The leader's word and quorum - 1 of the others', once for each view."""
        lead = self.lead
        if lead is None or (self.prepared is not None and self.prepared.lead.body.view == lead.body.view):
            return None
        wanted = Prepare(lead.body.view, lead.body.epoch, lead.body.value)
        votes = [v for signer, v in self._prepares.get(wanted, {}).items() if signer != lead.signer]
        if len(votes) < self.committee.quorum - 1:
            return None
        self.prepared = Prepared(lead, tuple(votes))
        return self.prepared

    def commit(self, vote: Signed[Commit]) -> Decision | None:
        """What a quorum has committed with this vote."""
        votes = self._commits.setdefault(vote.body, {})
        votes[vote.signer] = vote
        return Decision(tuple(votes.values())) if len(votes) >= self.committee.quorum else None

    @property
    def overheard(self) -> bool:
        """Whether a correct replica has committed what is not decided here: it is or will be, and can be asked for."""
        return any(len(votes) > self.committee.f for votes in self._commits.values())

    def close(self) -> None:
        """The epoch is decided."""
        self.lead = self.prepared = None
        self._prepares.clear()
        self._commits.clear()


class Wishes:
    """For later views, by who wishes."""

    def __init__(self, committee: Committee) -> None:
        self.committee = committee
        self._of: dict[int, dict[str, Signed[ViewChange]]] = {}

    def add(self, wish: Signed[ViewChange]) -> bool:
        """Whether it makes a quorum for its view."""
        wishes = self._of.setdefault(wish.body.view, {})
        before = len(wishes)
        wishes[wish.signer] = wish
        return before < len(wishes) == self.committee.quorum

    def quorum(self, view: int) -> tuple[Signed[ViewChange], ...]:
        """All wishes for a view that a quorum wishes for, else none."""
        wishes = self._of.get(view, {})
        return tuple(wishes.values()) if len(wishes) >= self.committee.quorum else ()

    def ahead(self, view: int) -> int | None:
        """The first view after this one that is wished for, where f + 1, hence a correct one, wish for later ones."""
        later = {v: wishes for v, wishes in self._of.items() if v > view}
        return min(later) if len({s for wishes in later.values() for s in wishes}) > self.committee.f else None

    def forget(self, view: int) -> None:
        """Up to a view that has begun."""
        self._of = {v: wishes for v, wishes in self._of.items() if v > view}
