"""`reproduce`: published tables, simulated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sim.cli import compiling, output
from sim.errors import UserError, unknown


def _check(folder: Path | None) -> None:
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UserError(f"-o: {folder} is a file; a directory for the page and its pictures is needed")


def moe_lightning(folder: Path | None, as_json: bool) -> None:
    _check(folder)
    with output.steps("reproducing MoE-Lightning's tables") as say, compiling.told():
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


def flashdmoe(calibration: str, folder: Path | None, as_json: bool) -> None:
    _check(folder)
    if calibration not in ("paper", "healthy"):
        raise unknown("--calibration", calibration, ("paper", "healthy"))
    with output.steps("reproducing FlashDMoE's figures") as say, compiling.told():
        from sim.reproduce.flashdmoe import page
        from sim.reproduce.flashdmoe.reproduction import reproduce
        from sim.reproduce.pages import signed

        found = reproduce(calibration, say)
        if folder is not None:
            say(f"writing {folder}")
            written = page.write(folder, found)
            output.note(f"wrote {', '.join(map(str, written))}")
    if as_json:
        output.print_json(found.as_dict())
        return
    bars = [(b.gpus, b.system, b.tokens, b.published_ms, f"{b.ms:.2f}", signed(b.error or 0.0)) for b in found.bars]
    _table(f"FlashDMoE, ms a layer, {calibration} calibration", ("GPUs", "system", "tokens", "printed", "simulated", "error"), bars)
    again = [(r.system, r.what, r.published_ms, f"{r.ms:.2f}", signed(r.error)) for r in found.rerun]
    _table("outside re-run, ms, nothing fitted", ("system", "simulated as", "measured", "simulated", "error"), again)
    puts = [(x.ranks, x.what, x.published_us, f"{x.us:.0f}", signed(x.error)) for x in found.low_latency]
    _table("DeepEP low latency, us", ("ranks", "what", "published", "simulated", "error"), puts)


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    words = ("system", "simulated as", "what")
    output.print_table(title, columns, rows, numeric=tuple(name for name in columns if name not in words))
