"""A description as one HTML page that works offline: the figure as SVG and the tables."""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING

from rich.console import Console

from traces.describe import tables
from traces.describe.summary import Description

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 1500px; margin: 1.5rem auto; padding: 0 1rem; }
svg { width: 100%; height: auto; } pre { font: 13px/1.4 ui-monospace, monospace; overflow-x: auto; }
.synthetic { background: #fff3cd; padding: .4rem .8rem; border-left: 4px solid #e69f00; }
"""


def page(d: Description, figure: Figure) -> str:
    """The page; what is synthetic says so at its top."""
    p = d.provenance
    text = io.StringIO()
    tables.show(d, Console(file=text, width=150, color_system=None, force_terminal=False))
    facts = "".join(f"<li>{escape(k)}: {escape(v)}</li>" for k, v in sorted(p.facts.items()))
    warning = "<p class='synthetic'>Synthetic: drawn from a model, not recorded.</p>" if p.made == "synthetic" else ""
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(d.path.name)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{escape(d.path.name)}</h1>{warning}<p>{escape(d.kind)} trace, {escape(p.made)}: {escape(p.origin)}<br>"
        f"made by <code>{escape(p.command)}</code>, version {escape(p.version)}</p>{_svg(figure)}<pre>{escape(text.getvalue())}</pre>"
        f"<ul>{facts}</ul></body></html>\n"
    )


def _svg(figure: Figure) -> str:
    """The figure without prologue and metadata, which name other sites; the same bytes each time."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "tandem", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
