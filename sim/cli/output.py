"""What the commands print: one JSON object, or tables for people; progress goes to stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sim.errors import UserError
from sim.units import size as size


def print_json(value: Mapping[str, Any]) -> None:
    """Exactly one JSON object on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], numeric: Sequence[str] = ()) -> None:
    """A table on stdout; plain lines without colour or folding where stdout is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    terminal = sys.stdout.isatty()
    table = Table(box=box.SIMPLE_HEAD if terminal else box.ASCII2, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numeric else "left", no_wrap=not terminal)
    for row in rows:
        table.add_row(*(str(v) for v in row))
    console = Console() if terminal else Console(width=400, no_color=True)
    console.print(title, style="bold", soft_wrap=True, highlight=False)
    console.print(table)


@contextmanager
def progress(what: str) -> Iterator[Callable[[str], None]]:
    """Tell on stderr what is happening: a spinner on a terminal, silence otherwise. Yields a function that changes the text."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status(what) as status:
        yield lambda text: status.update(text)


def note(text: str) -> None:
    """A remark on stderr."""
    print(f"note: {text}", file=sys.stderr)


@contextmanager
def steps(what: str) -> Iterator[Callable[[str], None]]:
    """As `progress`, for long work: without a terminal, each step is a line on stderr with the time since the start."""
    if sys.stderr.isatty():
        with progress(what) as tell:
            yield lambda text: tell(f"{what}: {text}")
        return
    began = time.monotonic()
    print(what, file=sys.stderr)
    yield lambda text: print(f"  {time.monotonic() - began:5.0f} s  {text}", file=sys.stderr, flush=True)


def check_writable(flag: str, path: Path | None, suffixes: Sequence[str] = ()) -> None:
    """Refuse an output that could not be written, before the work is done. Raises `UserError`."""
    if path is None:
        return
    if suffixes and path.suffix not in suffixes:
        raise UserError(f"{flag}: {path} ends in {path.suffix or 'nothing'}; {' or '.join(suffixes)} is needed")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise UserError(f"{flag}: {path} cannot be written: there is no directory {parent}")
    if path.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{flag}: {path} cannot be written: {'it is a directory' if path.is_dir() else f'{parent} is read-only'}")


def seconds(value: float) -> str:
    """Three significant digits with the unit that fits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)):
        if abs(value) >= scale:
            return f"{value / scale:,.0f} {unit}" if abs(value) >= 1000 * scale else f"{value / scale:.3g} {unit}"
    return "0 s"
