"""`calibrate`."""

from __future__ import annotations

import time
from pathlib import Path

from sim.cli import output as out


def calibrate(rig: str, output: Path) -> None:
    from exec.calibration import profile
    from sim.machines import load_rig

    out.check_writable("-o", output, (".yaml", ".yml"))
    found = load_rig(rig)
    began = time.perf_counter()
    with out.steps("calibrating (about a minute; keep the computer otherwise idle)") as say:
        machine = profile.calibrate(found, say)
    profile.write(machine, output)
    r = machine.resources
    rows = [
        ("profile", output), ("rig", machine.rig), ("computer", machine.description),
        ("cores at once", f"{r['cores'].capacity:.3g}"), ("memory bandwidth", f"{out.size(r['memory'].capacity)}/s"),
        *((f"link {n}", f"{out.size(r[f'link.{n}'].capacity)}/s, {'paced' if machine.lane[n].paced_bytes_per_s else 'native'}")
          for n in ("h2d", "d2h")),
        ("op table", f"{len(machine.ops)} rows"), ("took", out.seconds(time.perf_counter() - began)),
    ]  # fmt: skip
    out.print_table(f"calibrated {machine.name}", ("", "value"), rows)
