"""The guard on buffers: nobody touches what somebody else is writing."""

from __future__ import annotations

from collections.abc import Iterable

from exec.runtime.errors import HazardError, describe
from exec.runtime.records import Record


class BufferGuard:
    """Who reads and who writes each buffer right now."""

    def __init__(self) -> None:
        self._readers: dict[str, dict[int, Record]] = {}
        self._writer: dict[str, Record] = {}

    def enter(self, task: Record) -> None:
        """Note down what `task` touches; raises HazardError where another task in flight is in its way."""
        writer = self._writer
        for name in task.reads:
            if name in writer:
                raise _clash(name, task, "reads", writer[name], "writes")
            readers = self._readers.get(name)
            if readers is None:
                readers = self._readers[name] = {}
            readers[task.number] = task
        for name in task.writes:
            if name in writer:
                raise _clash(name, task, "writes", writer[name], "writes")
            for reader in self._readers.get(name, {}).values():
                if reader is not task:  # a task may update a buffer in place
                    raise _clash(name, task, "writes", reader, "reads")
            writer[name] = task

    def free_of(self, task: Record, others: Iterable[Record]) -> bool:
        """Whether `task` may start beside `others`, which are in flight."""
        touched, written = {*task.reads, *task.writes}, set(task.writes)
        return all(touched.isdisjoint(o.writes) and written.isdisjoint(o.reads) for o in others)

    def leave(self, task: Record) -> None:
        for name in task.reads:
            del self._readers[name][task.number]
        for name in task.writes:
            del self._writer[name]


def _clash(buffer: str, task: Record, does: str, other: Record, did: str) -> HazardError:
    return HazardError(
        f"buffer {buffer!r}: {describe(task)} {does} it while {describe(other)} {did} it; a dependency or a pool is missing between them"
    )
