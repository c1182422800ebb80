"""What replicas of the control plane say to each other, signed, and the certificates made of it.

Source: Castro and Liskov, Practical Byzantine Fault Tolerance (OSDI'99), sections 4.2 (three phases), 4.4 (view changes).
Messages carry the value itself, a placement's digest with the request's name, and no separate hash of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeAlias, TypeVar


class Value(NamedTuple):
    """A change to be committed: the request's own name, and the digest of the placement that it asks for. bytes: of the placement
    itself, which travels with the request and with the leader's word."""

    request: str
    placement: str
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """A client's wish, handed to all replicas."""

    value: Value


@dataclass(frozen=True, slots=True)
class PrePrepare:
    """The leader of the view gives an epoch to a value."""

    view: int
    epoch: int
    value: Value


@dataclass(frozen=True, slots=True)
class Prepare:
    view: int
    epoch: int
    value: Value


@dataclass(frozen=True, slots=True)
class Commit:
    view: int
    epoch: int
    value: Value


Body = TypeVar("Body", covariant=True)
Word = TypeVar("Word")


@dataclass(frozen=True, slots=True)
class Signed(Generic[Body]):
    body: Body
    signer: str
    tag: bytes


@dataclass(frozen=True, slots=True)
class Prepared:
    """Proof that nothing else can be prepared in the view: the leader's word and 2f agreeing ones."""

    lead: Signed[PrePrepare]
    votes: tuple[Signed[Prepare], ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """Proof that an epoch is decided: 2f + 1 commits of one view."""

    votes: tuple[Signed[Commit], ...]

    @property
    def epoch(self) -> int:
        return self.votes[0].body.epoch

    @property
    def value(self) -> Value:
        return self.votes[0].body.value


@dataclass(frozen=True, slots=True)
class ViewChange:
    """A replica wants view `view`: it has decided all epochs before `epoch` (last proves it), and has this prepared there."""

    view: int
    epoch: int
    last: Decision | None
    prepared: Prepared | None


@dataclass(frozen=True, slots=True)
class NewView:
    """The new leader begins: 2f + 1 replicas wanted it. What may be proposed first follows from their words."""

    view: int
    wanted: tuple[Signed[ViewChange], ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Somebody asks for all decisions from `epoch` on."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Decided:
    decisions: tuple[Decision, ...]


Said: TypeAlias = Ask | Signed[PrePrepare] | Signed[Prepare] | Signed[Commit] | Signed[ViewChange] | Signed[NewView] | Fetch | Decided

SIGNATURE_BYTES, HEADER_BYTES = 96, 104
"""Guessed: Ed25519 with a key's name; epoch, view, two digests of 32 bytes and framing."""


def size_bytes(said: Said) -> int:
    """On the wire: a header and a signature for every signed word inside, and the placement where it is told first."""
    body = said.body if isinstance(said, Signed) else said
    told = body.value.bytes if isinstance(body, Ask | PrePrepare) else 0
    return HEADER_BYTES + SIGNATURE_BYTES * _signatures(said) + told


def _signatures(said: object) -> int:
    if isinstance(said, Signed):
        return 1 + _signatures(said.body)
    if isinstance(said, Prepared):
        return 1 + len(said.votes)
    if isinstance(said, Decision):
        return len(said.votes)
    if isinstance(said, ViewChange):
        return _signatures(said.last) + _signatures(said.prepared)
    parts = said.wanted if isinstance(said, NewView) else said.decisions if isinstance(said, Decided) else ()
    return sum(_signatures(p) for p in parts)


class Keys:
    """Signatures by keyed hash. A replica is given its own secret only; `verify` stands for the public keys."""

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        self._secrets = dict(secrets)

    @classmethod
    def of(cls, names: Iterable[str], seed: int = 0) -> Keys:
        return cls({name: hashlib.sha256(f"{seed} {name}".encode()).digest() for name in names})

    def sign(self, name: str, body: Word) -> Signed[Word]:
        return Signed(body, name, self._tag(name, body))

    def verify(self, signed: Signed[object]) -> bool:
        return signed.signer in self._secrets and self._tag(signed.signer, signed.body) == signed.tag

    def _tag(self, name: str, body: object) -> bytes:
        return hashlib.blake2b(repr(body).encode(), key=self._secrets[name], digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Committee:
    """n = 3f + 1 replicas, or more; `names` in the order in which they lead."""

    names: tuple[str, ...]
    keys: Keys

    @property
    def f(self) -> int:
        """Faulty replicas that are borne."""
        return (len(self.names) - 1) // 3

    @property
    def quorum(self) -> int:
        """So many that two such groups share a correct replica: 2f + 1 of 3f + 1."""
        return (len(self.names) + self.f) // 2 + 1

    def leader(self, view: int) -> str:
        return self.names[view % len(self.names)]

    def honest(self, signed: Signed[object], signer: str | None = None) -> bool:
        """Signed by a member, by `signer` where one is asked for."""
        return signed.signer in self.names and signer in (None, signed.signer) and self.keys.verify(signed)

    def proves_prepared(self, proof: Prepared, epoch: int) -> bool:
        lead = proof.lead.body
        backups = {v.signer for v in proof.votes} - {self.leader(lead.view)}
        same = all((v.body.view, v.body.epoch, v.body.value) == (lead.view, lead.epoch, lead.value) for v in proof.votes)
        signed = self.honest(proof.lead, self.leader(lead.view)) and all(self.honest(v) for v in proof.votes)
        return lead.epoch == epoch and same and len(backups) >= self.quorum - 1 and signed

    def proves_decision(self, proof: Decision) -> bool:
        if not proof.votes:
            return False
        same = len({v.body for v in proof.votes}) == 1
        return same and len({v.signer for v in proof.votes}) >= self.quorum and all(self.honest(v) for v in proof.votes)

    def proves_wish(self, signed: Signed[ViewChange]) -> bool:
        wish = signed.body
        tip = wish.epoch == 0 or (wish.last is not None and wish.last.epoch == wish.epoch - 1 and self.proves_decision(wish.last))
        ready = wish.prepared is None or (wish.prepared.lead.body.view < wish.view and self.proves_prepared(wish.prepared, wish.epoch))
        return self.honest(signed) and tip and ready

    def opening(self, new: NewView) -> tuple[int, Value | None]:
        """First epoch of a new view, and the value that it must have: the one prepared there in the highest view, if any."""
        epoch = max(w.body.epoch for w in new.wanted)
        proofs = [w.body.prepared for w in new.wanted if w.body.epoch == epoch and w.body.prepared is not None]
        best = max(proofs, key=lambda p: p.lead.body.view, default=None)
        return epoch, best.lead.body.value if best else None

    def proves_view(self, signed: Signed[NewView]) -> bool:
        new = signed.body
        enough = len({w.signer for w in new.wanted}) >= self.quorum
        wished = all(w.body.view == new.view and self.proves_wish(w) for w in new.wanted)
        return self.honest(signed, self.leader(new.view)) and enough and wished
