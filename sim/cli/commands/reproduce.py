"""reproduce: published tables, simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim.cli import options

app = typer.Typer(rich_markup_mode=None, help="Simulate what was published, and tell how far it is off.")
Folder = Annotated[Path | None, typer.Option("-o", help="Write the page and its pictures into this directory.", show_default=False)]


@app.command("moe-lightning")
def moe_lightning(output: Folder = None, json: options.Json = False) -> None:
    """MoE-Lightning's tables: systems on a T4 and an L4, ablations, policy map, and better policies."""
    from sim.cli import reproducing

    reproducing.moe_lightning(output, json)


@app.command("flashdmoe")
def flashdmoe(
    calibration: Annotated[str, typer.Option(help="Of the baselines' collectives: paper (fitted to its bars) or healthy.")] = "paper",
    output: Folder = None, json: options.Json = False,
) -> None:  # fmt: skip
    """FlashDMoE's bars, weak scaling, an outside re-run, DeepEP's low-latency table, DeepSeek's profile."""
    from sim.cli import reproducing

    reproducing.flashdmoe(calibration, output, json)
