"""Plan: a task graph frozen into arrays, and the builder that makes one.

A Plan says *what* is to be done in which order; what it costs is priced per machine from its work
table. Task `i` of a Plan has the number `first + i`. Offsets of ragged columns are CSR pointers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.tasks import Task, Work

PHASES = ("", "prefill", "decode")


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Plan:
    """Structure of arrays over n tasks.

    A row may have a body, a Plan in its turn: one kernel launch whose tiles are the body's tasks. Nobody outside
    refers to them, and a body holds no pool, tells nobody and has no bodies. What is known inside only (tokens
    of an expert) is an upper bound there; tasks that turn out to be surplus end as skipped.

    Attributes
    ----------
    lanes, pools, buffers, works, groups: tables that the columns index.
    lane [n] int32: -1 for joins and timers. work [n] int32.
    dep_ptr [n + 1], dep: absolute numbers of the tasks waited for; below `first`: tasks of earlier
        commands.
    take_ptr [n + 1], take_pool, take_units: what a task acquires at its start.
    release_ptr [n + 1], release: absolute numbers of the tasks whose holds end with this one.
    buffer_ptr [n + 1], buffer, buffer_write: buffers touched; write where `buffer_write`.
    group [n] int32: row of `groups`, the sequences worked on; -1 for none.
    body [n] int32: row of `bodies`, what happens inside the task; -1 for most.
    phase [n] int8 (see PHASES), step, layer, microbatch, page, rank, priority, attempt, notify [n]: labels as in Task.
    """

    first: int
    lanes: tuple[str, ...]
    pools: tuple[str, ...]
    buffers: tuple[str, ...]
    works: tuple[Work, ...]
    groups: tuple[tuple[int, ...], ...]
    bodies: tuple[Plan, ...]
    lane: NDArray[np.int32]
    work: NDArray[np.int32]
    dep_ptr: NDArray[np.int32]
    dep: NDArray[np.int32]
    take_ptr: NDArray[np.int32]
    take_pool: NDArray[np.int16]
    take_units: NDArray[np.int64]
    release_ptr: NDArray[np.int32]
    release: NDArray[np.int32]
    buffer_ptr: NDArray[np.int32]
    buffer: NDArray[np.int32]
    buffer_write: NDArray[np.bool_]
    group: NDArray[np.int32]
    body: NDArray[np.int32]
    phase: NDArray[np.int8]
    step: NDArray[np.int32]
    layer: NDArray[np.int16]
    microbatch: NDArray[np.int16]
    page: NDArray[np.int16]
    rank: NDArray[np.int16]
    priority: NDArray[np.int32]
    attempt: NDArray[np.int16]
    notify: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.lane)

    def __repr__(self) -> str:
        return f"Plan({len(self)} tasks from {self.first} on, {self.digest()})"

    @property
    def nbytes(self) -> int:
        """Bytes of all columns, those of bodies included."""
        own = sum(v.nbytes for f in fields(self) if isinstance(v := getattr(self, f.name), np.ndarray))
        return own + sum(body.nbytes for body in self.bodies)

    def digest(self) -> str:
        """Content hash: equal Plans, and only those, share it."""
        h = hashlib.sha256()
        for f in fields(self):
            v = getattr(self, f.name)
            h.update(f.name.encode())
            h.update(v.tobytes() if isinstance(v, np.ndarray) else repr(v).encode())
        return h.hexdigest()

    def on(self, lane: str) -> NDArray[np.bool_]:
        """[n], the tasks on a lane that some are on."""
        return np.asarray(self.lane == self.lanes.index(lane))

    def task(self, i: int) -> Task:
        """The i-th task as an object."""
        lane = int(self.lane[i])
        group, body = int(self.group[i]), int(self.body[i])
        takes = range(self.take_ptr[i], self.take_ptr[i + 1])
        touched = range(self.buffer_ptr[i], self.buffer_ptr[i + 1])
        return Task(
            number=self.first + i,
            work=self.works[self.work[i]],
            lane=self.lanes[lane] if lane >= 0 else None,
            deps=tuple(self.dep[self.dep_ptr[i] : self.dep_ptr[i + 1]].tolist()),
            reads=tuple(self.buffers[self.buffer[j]] for j in touched if not self.buffer_write[j]),
            writes=tuple(self.buffers[self.buffer[j]] for j in touched if self.buffer_write[j]),
            takes=tuple((self.pools[self.take_pool[j]], int(self.take_units[j])) for j in takes),
            releases=tuple(self.release[self.release_ptr[i] : self.release_ptr[i + 1]].tolist()),
            priority=int(self.priority[i]),
            attempt=int(self.attempt[i]),
            notify=bool(self.notify[i]),
            phase=PHASES[self.phase[i]],
            step=int(self.step[i]),
            layer=int(self.layer[i]),
            microbatch=int(self.microbatch[i]),
            page=int(self.page[i]),
            rank=int(self.rank[i]),
            requests=self.groups[group] if group >= 0 else (),
            body=self.bodies[body] if body >= 0 else None,
        )

    def tasks(self) -> Iterator[Task]:
        return (self.task(i) for i in range(len(self)))


_SCALARS = ("lane", "work", "group", "body", "phase", "step", "layer", "microbatch", "page", "rank", "priority", "attempt", "notify")
_RAGGED = {"dep": ("dep",), "take": ("take_pool", "take_units"), "release": ("release",), "buffer": ("buffer", "buffer_write")}
_DTYPES: dict[str, Any] = {
    "lane": np.int32, "work": np.int32, "group": np.int32, "body": np.int32, "phase": np.int8, "step": np.int32, "layer": np.int16,
    "microbatch": np.int16, "page": np.int16, "rank": np.int16, "priority": np.int32, "attempt": np.int16,
    "notify": np.bool_, "dep": np.int32, "take_pool": np.int16, "take_units": np.int64, "release": np.int32,
    "buffer": np.int32, "buffer_write": np.bool_,
}  # fmt: skip


class _Table(dict[Any, int]):
    """Interns values: the index of each in order of first use."""

    def __missing__(self, value: Any) -> int:
        index = self[value] = len(self)
        return index


class PlanBuilder:
    """Collects tasks, then freezes them.

    `add` costs a few microseconds a task; `repeat` tiles what was added last in numpy, which is how
    the hundreds of steps of a decode become a Plan in milliseconds.
    """

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self._lanes, self._pools, self._buffers, self._works, self._groups, self._bodies = (_Table() for _ in range(6))
        self._rows: list[tuple[Any, ...]] = []
        self._chunks: list[dict[str, NDArray[Any]]] = []
        self._count = 0

    @property
    def next(self) -> int:
        """The number that the next task will have."""
        return self.first + self._count

    def __len__(self) -> int:
        return self._count

    def add(
        self,
        work: Work,
        lane: str | None = None,
        deps: Iterable[int] = (),
        *,
        reads: Iterable[str] = (),
        writes: Iterable[str] = (),
        takes: Iterable[tuple[str, int]] = (),
        releases: Iterable[int] = (),
        requests: tuple[int, ...] = (),
        phase: str = "",
        step: int = -1,
        layer: int = -1,
        microbatch: int = -1,
        page: int = -1,
        rank: int = 0,
        priority: int = 0,
        attempt: int = 0,
        notify: bool = False,
        body: Plan | None = None,
    ) -> int:
        """Append a task; returns its number. A release may name the task itself (`builder.next`). Tasks that
        share a body share its object."""
        buffers = [(self._buffers[b], False) for b in reads] + [(self._buffers[b], True) for b in writes]
        self._rows.append((
            -1 if lane is None else self._lanes[lane],
            self._works[work],
            self._groups[requests] if requests else -1,
            -1 if body is None else self._bodies[body],
            PHASES.index(phase), step, layer, microbatch, page, rank, priority, attempt, notify,
            tuple(deps), [(self._pools[p], n) for p, n in takes], tuple(releases), buffers,
        ))  # fmt: skip
        self._count += 1
        return self.first + self._count - 1

    def _flush(self) -> None:
        if not self._rows:
            return
        n = len(self._rows)
        chunk: dict[str, NDArray[Any]] = {}
        for c, name in enumerate(_SCALARS):
            chunk[name] = np.fromiter((r[c] for r in self._rows), _DTYPES[name], n)
        for c, (name, columns) in enumerate(_RAGGED.items(), start=len(_SCALARS)):
            chunk[name + "_len"] = np.fromiter((len(r[c]) for r in self._rows), np.int32, n)
            flat = [v for r in self._rows for v in r[c]]
            for k, column in enumerate(columns):
                values = flat if len(columns) == 1 else (v[k] for v in flat)
                chunk[column] = np.fromiter(values, _DTYPES[column], len(flat))
        self._chunks.append(chunk)
        self._rows = []

    def mark(self) -> int:
        """Start a block for `repeat`: everything added from here on belongs to it. Returns the next number."""
        self._flush()
        return self.next

    def repeat(
        self,
        since: int,
        times: int,
        *,
        steps: int = 1,
        advance: Callable[[Work, int], Work] | None = None,
    ) -> None:
        """Append `times` copies of the block of tasks numbered `since` and up.

        Every number that a copy refers to (deps, releases) moves with it, so the block's references
        to the block before it become references to the copy before. `steps` is the number of decode
        steps in the block; `advance(work, s)` gives the work row `s` steps later (growing contexts).
        The block must be what was added since one `mark()`.
        """
        self._flush()
        if times <= 0:
            return
        block = self._chunks[-1]
        n = len(block["lane"])
        assert since == self.next - n, f"repeat(since={since}) must be the last mark, {self.next - n}"
        out = {k: np.tile(v, times) for k, v in block.items()}
        shift = np.repeat(np.arange(1, times + 1, dtype=np.int32), n)
        out["step"] = out["step"] + np.where(out["step"] >= 0, shift * steps, 0).astype(np.int32)
        for name in ("dep", "release"):
            out[name] = out[name] + np.repeat(np.arange(1, times + 1, dtype=np.int32) * n, len(block[name]))
        if advance is not None:
            works = list(self._works)
            rows = np.unique(block["work"])
            moved = np.zeros(int(rows.max()) + 1, np.int32)
            columns = []
            for t in range(1, times + 1):
                moved[rows] = [self._works[advance(works[r], t * steps)] for r in rows]
                columns.append(moved[block["work"]])
            out["work"] = np.concatenate(columns)
        self._chunks.append(out)
        self._count += n * times

    def build(self) -> Plan:
        self._flush()
        columns: dict[str, Any] = {}
        for name in _SCALARS:
            columns[name] = _concat([c[name] for c in self._chunks], _DTYPES[name])
        for name, names in _RAGGED.items():
            lengths = _concat([c[name + "_len"] for c in self._chunks], np.int32)
            columns[name + "_ptr"] = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
            for column in names:
                columns[column] = _concat([c[column] for c in self._chunks], _DTYPES[column])
        return Plan(
            first=self.first, lanes=tuple(self._lanes), pools=tuple(self._pools), buffers=tuple(self._buffers),
            works=tuple(self._works), groups=tuple(self._groups), bodies=tuple(self._bodies), **columns,
        )  # fmt: skip


def _concat(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def plan_of(tasks: Sequence[Task]) -> Plan:
    """Freeze task objects whose numbers are consecutive and ascending."""
    builder = PlanBuilder(tasks[0].number if tasks else 0)
    for t in tasks:
        number = builder.add(
            t.work, t.lane, t.deps, reads=t.reads, writes=t.writes, takes=t.takes, releases=t.releases,
            requests=t.requests, phase=t.phase, step=t.step, layer=t.layer, microbatch=t.microbatch, page=t.page,
            rank=t.rank, priority=t.priority, attempt=t.attempt, notify=t.notify, body=t.body,
        )  # fmt: skip
        assert number == t.number, f"tasks must be numbered consecutively: {t.number} stands where {number} would"
    return builder.build()
