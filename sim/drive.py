"""The one loop that runs any scheduler on any clock, its log, and the replay of a log."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sim import events
from sim.events import Event, Started
from sim.plan import Plan
from sim.tasks import Command, Time


@runtime_checkable
class Scheduler(Protocol):
    """A pure state machine. It never waits, reads no clock, owns no thread, tensor or file."""

    def on(self, now: Time, event: Event) -> Sequence[Command]: ...


class Engine(Protocol):
    """A clock: the only thing with several implementations."""

    def submit(self, commands: Sequence[Command]) -> None: ...
    def wait(self) -> tuple[Time, Event] | None:
        """The next thing that happened. None: all is done. Open tasks then raise `Deadlock`, which names them."""
        ...


class Deadlock(RuntimeError):
    """Tasks are open and nothing can ever happen; the message tells the story of the waits."""


def fingerprint(commands: Sequence[Command]) -> str:
    """Content hash of what a scheduler handed out."""
    h = hashlib.sha256()
    for c in commands:
        h.update(c.digest().encode() if isinstance(c, Plan) else repr(c).encode())
    return h.hexdigest()


@dataclass(slots=True)
class Log:
    """Every event with the hash of the commands that answered it. Replayable, see `replay`."""

    entries: list[tuple[Time, Event, str]] = field(default_factory=list)

    def append(self, now: Time, event: Event, commands: Sequence[Command]) -> None:
        self.entries.append((now, event, fingerprint(commands) if commands else ""))

    def digest(self) -> str:
        """Hash over times, events and commands: same seed, same digest on the simulated clock."""
        h = hashlib.sha256()
        for now, event, commands in self.entries:
            h.update(f"{now} {_encode(event)} {commands}\n".encode())
        return h.hexdigest()

    def write(self, path: Path) -> None:
        """One JSON object a line; written beside `path` and renamed."""
        part = path.with_name(path.name + ".part")
        with part.open("w") as f:
            for now, event, commands in self.entries:
                f.write(json.dumps({"now": now, "event": json.loads(_encode(event)), "commands": commands}) + "\n")
        part.replace(path)

    @classmethod
    def read(cls, path: Path, profile: events.Profile) -> Log:
        """Read a log back. `profile` must be the machine that the run saw: its hash is checked."""
        log = cls()
        with path.open() as f:
            for line in f:
                row = json.loads(line)
                log.entries.append((row["now"], _decode(row["event"], profile), row["commands"]))
        return log


class Diverged(AssertionError):
    """A replayed scheduler answered an event with other commands than the logged one."""


def drive(scheduler: Scheduler, engine: Engine, log: Log | None = None) -> None:
    """Run until the engine has nothing more to report."""
    while (happened := engine.wait()) is not None:
        now, event = happened
        commands = scheduler.on(now, event)
        if log is not None:
            log.append(now, event, commands)
        if commands:
            engine.submit(commands)


def replay(log: Log, scheduler: Scheduler) -> None:
    """Feed a log to a fresh scheduler; raises `Diverged` at the first command that differs."""
    for i, (now, event, expected) in enumerate(log.entries):
        commands = scheduler.on(now, event)
        found = fingerprint(commands) if commands else ""
        if found != expected:
            raise Diverged(f"entry {i}, {type(event).__name__} at {now} ps: commands hash {found or 'none'}, logged {expected or 'none'}")


def _columns(value: Any) -> dict[str, Any]:
    """A dataclass by field (their names stand in `__match_args__`), without the copies that `dataclasses.asdict` makes."""
    return {name: getattr(value, name) for name in value.__match_args__}


_JSON = json.JSONEncoder(sort_keys=True, default=_columns)


def _encode(event: Event) -> str:
    if isinstance(event, Started):
        return json.dumps({"kind": "Started", "profile": event.profile.digest})
    return _JSON.encode({"kind": type(event).__name__, **_columns(event)})


def _decode(row: dict[str, Any], profile: events.Profile) -> Event:
    row = dict(row)
    kind = row.pop("kind")
    if kind == "Started":
        if row["profile"] != profile.digest:
            raise ValueError(f"log was made on a machine with digest {row['profile'][:12]}, this one has {profile.digest[:12]}")
        return Started(profile)
    if kind == "Arrived":
        return events.Arrived(events.Request(**row["request"]), row["last"])
    if kind == "Finished":
        r = row["result"]
        return events.Finished(row["task"], events.Result(tuple(r["ended"]), tuple(r["experts"]), r["facts"]))
    plain: dict[str, type[events.Failed] | type[events.Changed] | type[events.Report]]
    plain = {"Failed": events.Failed, "Changed": events.Changed, "Report": events.Report}
    return plain[kind](**row)
