"""`manifest`."""

from __future__ import annotations

from pathlib import Path

from sim.cli import output
from sim.errors import UserError


def manifest(directory: Path, out: Path | None, as_json: bool) -> None:
    from exec.pool.make import make_manifest
    from exec.pool.manifest import ALGORITHM, LEAF_BYTES, NAME

    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; one with config.json and safetensors is needed")
    path = out or directory / NAME
    output.check_writable("-o", path, (".json",))
    with output.progress(f"reading {directory}") as say:
        made = make_manifest(directory, path, lambda place: say(place.name))
    facts = {
        "manifest": str(path), "algorithm": ALGORITHM, "leaf_bytes": LEAF_BYTES, "files": len(made.files), "tensors": len(made.digests),
        "bytes": sum(int(f["bytes"]) for f in made.files.values()),
    }  # fmt: skip
    if as_json:
        output.print_json(facts)
    else:
        rows = [("files", len(made.files)), ("tensors", len(made.digests)), ("bytes", f"{facts['bytes']:,}")]
        output.print_table(f"wrote {path}", ("", "value"), rows, numeric=("value",))
