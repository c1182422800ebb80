"""Pages of a reproduction: Markdown tables and pictures, written beside their targets and then renamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from traces.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT, GRID = "#1B1F24", "#5A6370", "#E6E8EC"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """A Markdown table; columns behind the first `left` ones are numbers, to the right."""
    lines = [columns, [":--" if k < left else "--:" for k in range(len(columns))], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def signed(share: float) -> str:
    """+4.2 %"""
    return f"{share:+.1%}".replace("%", " %")


def percent(share: float | None) -> str:
    """4.2 %; a dash where there is none."""
    return "–" if share is None else f"{share:.1%}".replace("%", " %")


def write_page(folder: Path, name: str, text: str, figures: Mapping[str, Callable[[], Figure]]) -> list[Path]:
    """NAME.md and NAME-FIGURE.png into `folder`, which is made. Returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}-{figure}.png" for figure in figures]
    for path, draw in zip(paths, figures.values(), strict=True):
        write_figure(path, draw)
    page = folder / f"{name}.md"
    write_text(page, text)
    return [page, *paths]


def write_text(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text)


def write_figure(path: Path, draw: Callable[[], Figure]) -> None:
    """Draw in the project's style; the suffix of `path` says SVG or PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from sim.report.picture import STYLE

    with plt.rc_context(STYLE), replacing(path) as part:
        figure = draw()
        kind = path.suffix.lstrip(".")
        figure.savefig(part, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
        plt.close(figure)
