"""A timeline as Chrome's JSON trace, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

Ranks become processes and lanes threads. The format counts in microseconds; three decimals keep
nanoseconds, and picoseconds below that are cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.files import replacing
from traces.timeline import Timeline

Counter = tuple[NDArray[np.int64], NDArray[np.int64]]
"""times_ps [n] ascending, and the value from each time on [n]: units of a pool in use, say."""


def write_chrome(
    path: str | Path,
    timelines: Timeline | Sequence[Timeline],
    *,
    flows: Iterable[tuple[int, int]] = (),
    counters: Mapping[str, Counter] | None = None,
) -> None:
    """Write one timeline, or several side by side as processes of their own, e.g. a simulated and a measured one.

    flows: (task, task) pairs to draw an arrow between, of the first timeline. counters: curves under
    the first timeline. Raises `traces.errors.TraceError` where the file cannot be written.
    """
    given = [timelines] if isinstance(timelines, Timeline) else list(timelines)
    with replacing(path) as part, part.open("w", encoding="utf-8") as f:
        f.write('{"displayTimeUnit": "ns", "otherData": ' + json.dumps(_about(given)) + ', "traceEvents": [\n')
        events = _events(given, flows, counters or {})
        f.write(next(events))
        for event in events:
            f.write(",\n" + event)
        f.write("\n]}\n")


def _about(given: Sequence[Timeline]) -> dict[str, str]:
    about: dict[str, str] = {}
    for k, t in enumerate(given):
        p = t.provenance
        about |= {f"{k}.{name}": str(getattr(p, name)) for name in ("clock", "made", "origin", "command", "version")}
    return about


def _events(given: Sequence[Timeline], flows: Iterable[tuple[int, int]], counters: Mapping[str, Counter]) -> Iterator[str]:
    first = 0
    for t in given:
        yield from _names(t, first)
        yield from _bars(t, first)
        if first == 0:
            yield from _arrows(t, flows)
            yield from _curves(counters)
        first += _ranks(t)


def _ranks(t: Timeline) -> int:
    return int(t.rank.max(initial=0)) + 1


def _names(t: Timeline, first: int) -> Iterator[str]:
    """Process and thread names, in the order of the machine's lanes."""
    ranks = _ranks(t)
    for rank in range(ranks):
        label = (t.clock or "timeline") + (f", rank {rank}" if ranks > 1 else "")
        yield json.dumps({"ph": "M", "pid": first + rank, "tid": 0, "name": "process_name", "args": {"name": label}})
        yield json.dumps({"ph": "M", "pid": first + rank, "tid": 0, "name": "process_sort_index", "args": {"sort_index": first + rank}})
        for lane, name in enumerate(t.lanes):
            if name:
                place = {"ph": "M", "pid": first + rank, "tid": lane + 1}
                yield json.dumps({**place, "name": "thread_name", "args": {"name": name}})
                yield json.dumps({**place, "name": "thread_sort_index", "args": {"sort_index": lane}})


def _micros(ps: int) -> str:
    """Picoseconds as microseconds with three decimals; floats would lose the last ones of a long run."""
    return f"{ps // 1_000_000}.{ps // 1000 % 1000:03d}"


def _bars(t: Timeline, first: int) -> Iterator[str]:
    ops = [json.dumps(o) for o in t.ops]
    phases, statuses = [json.dumps(p) for p in t.phases], [json.dumps(s) for s in t.statuses]
    shown = np.flatnonzero(t.ran & (t.lane != t.code("lane", "")))
    shown = shown[np.argsort(t.start_ps[shown], kind="stable")]
    names = ("op", "rank", "lane", "start_ps", "end_ps", "phase", "status", "task_id", "step", "layer", "microbatch", "bytes", "flops")
    columns = (getattr(t, n)[shown].tolist() for n in names)
    for op, rank, lane, start, end, phase, status, task, step, layer, mb, moved, flops in zip(*columns, strict=True):
        # Cut both ends alike, so that neighbours that touch still touch.
        duration = end // 1000 * 1000 - start // 1000 * 1000
        yield (
            f'{{"ph": "X", "name": {ops[op]}, "cat": {phases[phase]}, "pid": {first + rank}, "tid": {lane + 1}, '
            f'"ts": {_micros(start)}, "dur": {_micros(duration)}, "args": {{"task": {task}, "step": {step}, '
            f'"layer": {layer}, "microbatch": {mb}, "bytes": {moved}, "flops": {flops}, "status": {statuses[status]}}}}}'
        )


def _arrows(t: Timeline, flows: Iterable[tuple[int, int]]) -> Iterator[str]:
    """An arrow from the end of one task to the start of another."""
    where = {task: i for i, task in enumerate(t.task_id.tolist())}
    for k, (a, b) in enumerate(flows):
        for kind, i, ps in (("s", where[a], int(t.end_ps[where[a]])), ("f", where[b], int(t.start_ps[where[b]]))):
            event: dict[str, Any] = {"ph": kind, "id": k, "name": "after", "cat": "flow", "pid": int(t.rank[i]), "tid": int(t.lane[i]) + 1}
            if kind == "f":
                event["bp"] = "e"
            # Inside the bar: a flow binds to the slice that covers its time, and an end is no longer covered.
            ps = min(max(ps, int(t.start_ps[i])), max(int(t.start_ps[i]), int(t.end_ps[i]) - 1000))
            yield json.dumps(event)[:-1] + f', "ts": {_micros(ps)}}}'


def _curves(counters: Mapping[str, Counter]) -> Iterator[str]:
    for name, (times, values) in counters.items():
        label = json.dumps(name)
        for ps, value in zip(times.tolist(), values.tolist(), strict=True):
            yield f'{{"ph": "C", "name": {label}, "pid": 0, "ts": {_micros(ps)}, "args": {{"units": {value}}}}}'
