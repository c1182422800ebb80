"""python -m sim.report: a page or a picture of timelines that were kept as Parquet."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from traces.errors import TraceError
from traces.timeline import Timeline, read_timeline

PAGE = (".html",)
PICTURE = (".svg", ".png")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m sim.report", description=__doc__)
    parser.add_argument("timelines", nargs="+", type=Path, metavar="TIMELINE.parquet", help="a simulated and a measured run, or one")
    parser.add_argument("-o", dest="out", type=Path, required=True, help="an .html page, or a picture of one decode step: .svg, .png")
    parser.add_argument("--step", type=int, help="decode step of the picture; default: one in the middle")
    parser.add_argument("--title", default="", help="what the run is")
    given = parser.parse_args(arguments)
    try:
        _make(given.timelines, given.out, given.step, given.title)
    except (TraceError, ValueError) as e:
        print(e, file=sys.stderr)
        return 2
    return 0


def _make(paths: list[Path], out: Path, step: int | None, title: str) -> None:
    if out.suffix not in PAGE + PICTURE:
        raise ValueError(f"-o {out}: must end in one of {', '.join(PAGE + PICTURE)}")
    clocks: dict[str, Timeline] = {}
    for path in paths:
        timeline = read_timeline(path)
        clock = "simulated" if timeline.clock == "simulated" else "measured"
        if clock in clocks:
            raise ValueError(f"{path}: is a second {clock} timeline; one simulated and one measured belong together")
        clocks[clock] = timeline
    if out.suffix in PAGE:
        from sim.report.page import write_report

        write_report(out, clocks.get("simulated"), clocks.get("measured"), {"title": title})
    else:
        from sim.report.picture import write_picture

        ordered = {c.capitalize(): clocks[c] for c in ("simulated", "measured") if c in clocks}
        write_picture(out, ordered, step=step, title=title)


if __name__ == "__main__":
    sys.exit(main())
