"""The report's cards and tables as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sim.report.colours import colour
from sim.report.critical import CriticalPath, Share, shares
from sim.report.figures import lane_use, op_errors, seconds_text
from traces.timeline import Timeline

_ACRONYMS = {"ttft_s": "TTFT", "tpot_s": "TPOT"}
_SHOWN_ELSEWHERE = ("title", "simulated", "measured", "lanes")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int], classes: Mapping[int, str] | None = None) -> str:
    """Cells are HTML already; `numbers` are the columns set to the right, `classes` those of single rows."""
    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = [' class="n"' if i in numbers else ' class="first"' if i == 0 else "" for i in range(len(row))]
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    body = "".join(f'<tr class="{(classes or {}).get(i, "")}">{cells("td", row)}</tr>' for i, row in enumerate(rows))
    return f'<div class="scroll"><table><thead><tr>{cells("th", head)}</tr></thead><tbody>{body}</tbody></table></div>'


def percent(value: float | None, signed: bool = False) -> str:
    """A share or an error with one digit; a dash where there is none."""
    if value is None:
        return "&ndash;"
    return f"{value:+.1%}".replace("-", "&minus;") if signed else f"{value:.1%}"


def op_cell(op: str) -> str:
    return f'<span class="swatch" style="background:{colour(op)}"></span>{escape(op)}'


def cards(given: Mapping[str, Timeline], facts: Mapping[str, Any]) -> str:
    """The figures that one looks for first."""
    out = []
    for clock, t in given.items():
        own = facts.get(clock)
        own = own if isinstance(own, Mapping) else facts if len(given) == 1 else {}
        more = [f"{own[name]:,.4g} {unit}" for name, unit in (("tokens_per_s", "tokens/s"),) if own.get(name)]
        more += [f"{label} {seconds_text(own[name])}" for name, label in (("ttft_s", "TTFT"), ("tpot_s", "TPOT")) if own.get(name)]
        name = "Makespan, simulated" if clock == "simulated" else f"Makespan, {t.clock or 'measured'}"
        out.append(_card(name, seconds_text(t.makespan_ps / 1e12), " · ".join(more), "sim" if clock == "simulated" else "exec"))
    if len(given) == 2:
        error = makespan_error(given["simulated"], given["measured"])
        spread = facts.get("repeat_spread")
        more_text = f"repeats spread {spread:.1%}" if isinstance(spread, float) else "simulated against measured"
        out.append(_card("Error of the makespan", percent(error, signed=True), more_text))
    if facts.get("routing"):
        out.append(_card("Routing", escape(str(facts["routing"])), "where the experts' loads come from"))
    return f'<div class="cards">{"".join(out)}</div>'


def _card(label: str, value: str, more: str, kind: str = "") -> str:
    inner = "".join(f'<div class="{part}">{html}</div>' for part, html in (("label", escape(label)), ("value", value), ("more", more)))
    return f'<div class="card {kind}">{inner}</div>'


def makespan_error(simulated: Timeline, measured: Timeline) -> float | None:
    """Simulated / measured - 1."""
    return simulated.makespan_ps / measured.makespan_ps - 1 if measured.makespan_ps else None


def lanes_table(given: Mapping[str, Timeline]) -> str:
    """Busy seconds, utilisation and tasks of each lane, and how far the clocks are apart."""
    uses = {clock: {u.lane: u for u in lane_use(t)} for clock, t in given.items()}
    names = list(dict.fromkeys(lane for found in uses.values() for lane in found))
    head = ["lane", *(what.format(clock) for clock in given for what in ("{} busy", "share"))]
    if len(given) == 2:
        head.append("error")
    rows = []
    for lane in names:
        row = [escape(lane)]
        for found in uses.values():
            u = found.get(lane)
            row += [seconds_text(u.busy_s), percent(u.utilization)] if u else ["&ndash;", "&ndash;"]
        if len(given) == 2:
            a, b = uses["simulated"].get(lane), uses["measured"].get(lane)
            row.append(percent(a.busy_s / b.busy_s - 1 if a and b and b.busy_s else None, signed=True))
        rows.append(row)
    return table(head, rows, range(1, len(head)))


def critical_table(given: Mapping[str, Timeline], paths: Mapping[str, CriticalPath]) -> str:
    """Which ops on which lanes make up the longest chain, with seconds and share of the makespan."""
    found = {clock: {(s.op, s.lane): s for s in shares(t, paths[clock])} for clock, t in given.items()}
    keys = sorted({k for f in found.values() for k in f}, key=lambda k: -max(f[k].share for f in found.values() if k in f))
    head = ["op", "lane", *(name for clock in given for name in (clock, "share")), ""]
    rows = [_critical_row(op, lane, [f.get((op, lane)) for f in found.values()]) for op, lane in keys]
    lengths = ", ".join(f"{len(paths[clock].rows):,} tasks {clock}" for clock in given)
    meaning = "The chain of tasks that each waited for the one before, up to the last end"
    note = f'<p class="note">{meaning}: {lengths}. To make the run faster, shorten what stands on top.</p>'
    return note + table(head, rows, range(2, 2 + 2 * len(given)))


def _critical_row(op: str, lane: str, found: Sequence[Share | None]) -> list[str]:
    row = [op_cell(op) if op else op_cell("") + "between tasks", escape(lane)]
    for s in found:
        row += [seconds_text(s.seconds), percent(s.share)] if s else ["&ndash;", "&ndash;"]
    widest = max(s.share for s in found if s)
    return [*row, f'<span class="share" style="width:{120 * widest:.0f}px;background:{colour(op)}"></span>']


def ops_table(simulated: Timeline, measured: Timeline) -> str:
    """Total and median seconds of each op on both clocks."""
    head = ["op", "phase", "tasks", "simulated total", "measured total", "error", "simulated median", "measured median"]
    rows = []
    for e in op_errors(simulated, measured):
        tasks = f"{e.measured_tasks:,}" if e.simulated_tasks == e.measured_tasks else f"{e.simulated_tasks:,} / {e.measured_tasks:,}"
        both = [seconds_text(v) if n else "&ndash;" for v, n in (
            (e.simulated_s, e.simulated_tasks), (e.measured_s, e.measured_tasks),
            (e.simulated_median_s, e.simulated_tasks), (e.measured_median_s, e.measured_tasks),
        )]  # fmt: skip
        rows.append([op_cell(e.op), e.phase, tasks, both[0], both[1], percent(e.error, signed=True), both[2], both[3]])
    return table(head, rows, range(2, len(head)))


def facts_tables(facts: Mapping[str, Any]) -> str:
    """Everything that is known of the run: plain values together, each nested one as its own table."""
    shown = {k: v for k, v in facts.items() if v is not None and k not in _SHOWN_ELSEWHERE}
    nested = {k: v for k, v in shown.items() if isinstance(v, Mapping | list | tuple)}
    plain = {k: v for k, v in shown.items() if k not in nested}
    parts = [_section("Facts of the run", _pairs(plain))] if plain else []
    for name, value in nested.items():
        if value:
            parts.append(_section(_words(name), _pairs(value if isinstance(value, Mapping) else dict(enumerate(value)), name)))
    return f'<div class="flow">{"".join(parts)}</div>' if parts else ""


def _section(title: str, inner: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inner}</section>"


def _pairs(values: Mapping[Any, Any], parent: str = "") -> str:
    """Key and value; a key inside of another stays as it is, and has that one's unit (`peak_bytes`: {"gpu": ...})."""
    rows = ""
    for key, value in values.items():
        name = str(key)
        unit = name if name.endswith(("_s", "bytes")) else parent
        rows += f'<tr><td class="key">{escape(name.replace("_", " ") if parent else _words(name))}</td><td>{_value(unit, value)}</td></tr>'
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def _words(name: str) -> str:
    """`prompt_tokens` as people write it; names with dots or dashes stay as they are. Seconds show their unit in the value."""
    if not name.isidentifier():
        return name
    if name in _ACRONYMS:
        return _ACRONYMS[name]
    text = name.removesuffix("_s") if not name.endswith("per_s") else name.replace("per_s", "per second")
    return text[:1].upper() + text[1:].replace("_", " ")


def _value(name: str, value: Any) -> str:
    """A value with the unit that its name ends in."""
    if isinstance(value, Mapping):
        return _pairs(value, name)
    if isinstance(value, list | tuple):
        return ", ".join(_value("", v) for v in value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "&ndash;"}[value]
    if isinstance(value, float) and name.endswith(("spread", "error", "utilization")):
        return percent(value)
    if isinstance(value, int | float) and name.endswith("_s") and not name.endswith("per_s"):
        return seconds_text(value)
    if isinstance(value, int | float) and name.endswith("bytes"):
        return bytes_text(value)
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.4g}"
    return escape(f"{value:,}" if isinstance(value, int) else str(value))


def bytes_text(count: float) -> str:
    """Three significant digits with the decimal prefix that fits, as the command line prints them."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:,.0f} {unit}" if abs(count) >= 1000 * scale else f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"
