"""`reproduce`: published tables, simulated."""

from __future__ import annotations

from pathlib import Path

from sim.cli import output
from sim.errors import UserError


def moe_lightning(folder: Path | None, as_json: bool) -> None:
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UserError(f"-o: {folder} is a file; a directory for the page and its pictures is needed")
    with output.steps("reproducing MoE-Lightning's tables (the first run compiles the engine, about 10 s)") as say:
        from sim.reproduce.moe_lightning import page, score
        from sim.reproduce.moe_lightning.reproduction import reproduce
        from sim.reproduce.pages import percent, signed

        found = reproduce(say)
        if folder is not None:
            say(f"writing {folder}")
            written = page.write(folder, found)
            output.note(f"wrote {', '.join(map(str, written))}")
    if as_json:
        output.print_json(found.as_dict())
        return
    columns = ("box", "system", "gen", "published", "simulated", "error", "")
    rows = [
        (s.cell.setting, s.cell.system, s.cell.gen, s.cell.tokens_per_s, f"{s.tokens_per_s:.1f}", signed(s.error),
         "fitted" if s.cell.fitted else "predicted")
        for s in found.cells
    ]  # fmt: skip
    output.print_table("MoE-Lightning, Fig. 7: tokens/s, Mixtral 8x7B, MTBench", columns, rows, numeric=columns[2:6])
    kinds = ("all", "fitted", "predicted")
    errors = [(name, *(percent(e[kind]) for kind in kinds)) for name, e in score.mean_errors(found.cells).items()]
    output.print_table("mean absolute error", ("system", *kinds), errors, numeric=kinds)
