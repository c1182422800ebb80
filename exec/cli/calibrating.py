"""`calibrate`."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from exec import devices
from exec.devices import DeviceName
from sim.cli import output as out

if TYPE_CHECKING:
    from sim.machines.schema import Machine


def calibrate(rig: str, output: Path, device: DeviceName) -> None:
    from exec.calibration import profile

    out.check_writable("-o", output, (".yaml", ".yml"))
    devices.check(device)
    measure, began = _measurement(rig, device), time.perf_counter()
    with out.steps("calibrating (about a minute; keep the computer otherwise idle)") as say:
        machine = measure(say)
    profile.write(machine, output)
    r = machine.resources
    rows = [
        ("profile", output), ("rig", machine.rig), ("computer", machine.description),
        ("cores at once", f"{r['cores'].capacity:.3g}"), ("memory bandwidth", f"{out.size(r['memory'].capacity)}/s"),
        *((f"link {n}", f"{out.size(r[f'link.{n}'].capacity)}/s, {'paced' if machine.lane[n].paced_bytes_per_s else 'native'}")
          for n in ("h2d", "d2h", "nvme") if n in machine.lane),
        ("op table", f"{len(machine.ops)} rows"), ("took", out.seconds(time.perf_counter() - began)),
    ]  # fmt: skip
    out.print_table(f"calibrated {machine.name}", ("", "value"), rows)


def _measurement(rig: str, device: DeviceName) -> Callable[[Callable[[str], None]], Machine]:
    """A GPU's links are its own; on the CPU the rig says which to keep to. Raises UserError for a rig that cannot be read."""
    if device is DeviceName.cuda:
        from exec.calibration.device import calibrate as measure

        return partial(measure, lambda: devices.opened(device))
    from exec.calibration.profile import calibrate as measure_host
    from sim.machines import load_rig

    return partial(measure_host, load_rig(rig))
