"""This computer as a machine without measured op times: enough to run, not to predict."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from exec.calibration.host import threads_of_lanes
from exec.devices import DeviceName
from sim.errors import UserError
from sim.machines.schema import Lane, Machine, Memory, Resource

CUDA_RIG = "cuda"
"""What profiles of a GPU name as their rig."""

SHARE = 0.8
"""Part of the free memory that a run may take."""


def this_computer(device: DeviceName = DeviceName.cpu) -> Machine:
    """Native lanes, and budgets that follow from the memory that is free now (on a GPU, of its own)."""
    gpu_threads, cpu_threads = threads_of_lanes()
    gpu = Lane(name="gpu", kind="compute", memory="memory", cores="cores", threads=gpu_threads, home="gpu")
    resources = {
        "cores": Resource(kind="cores", capacity=float(os.cpu_count() or 1), source="as many as the system counts"),
        "memory": Resource(kind="memory", capacity=10e9, source="not measured; a run does not need it"),
    }
    if device is DeviceName.cuda:
        from exec.backends.cuda.torch_device import blocks

        resources["gpu"], gpu = compute_stream(blocks())
    free = free_bytes()
    half = Memory(bytes=int(free * SHARE / 2), source="half of the memory that was free at the start")
    return Machine(
        name=platform.node() or "this-computer", clock="measured", resources=resources,
        memories={"gpu": _device_memory() if device is DeviceName.cuda else half, "cpu": half, "pinned": half},
        lanes=(
            gpu,
            Lane(name="cpu", kind="compute", memory="memory", cores="cores", threads=cpu_threads, home="cpu"),
            *(Lane(name=n, kind="copy", path=("memory",), cores="cores", threads=1) for n in ("h2d", "d2h", "pin", "nvme")),
        ),
        ops=(),
    )  # fmt: skip


def compute_stream(blocks: int) -> tuple[Resource, Lane]:
    """Resource and lane `gpu` of a GPU that holds so many blocks of a persistent kernel: any other task has all of them."""
    unit = Resource(kind="cores", capacity=float(blocks), source="blocks of a persistent kernel that the device runs at once")
    return unit, Lane(name="gpu", kind="compute", cores="gpu", threads=blocks, home="gpu")


def _device_memory() -> Memory:
    import torch

    free, _ = torch.cuda.mem_get_info()
    return Memory(bytes=int(0.9 * free), source="nine tenths of the device memory that was free at the start")


def check_runs_here(machine: Machine, device: DeviceName = DeviceName.cpu) -> None:
    """Refuse a machine that is only a description, or a profile of the other device: real runs need a profile of this computer."""
    if machine.rig is None:
        raise UserError(
            f"--machine {machine.name}: describes a machine to simulate, not this computer; "
            "run: python -m exec calibrate -o PROFILE.yaml, then --machine PROFILE.yaml"
        )
    if (machine.rig == CUDA_RIG) != (device is DeviceName.cuda):
        raise UserError(
            f"--machine {machine.name}: was calibrated for rig {machine.rig}, not for --device {device}; "
            f"run: python -m exec calibrate --device {device} -o PROFILE.yaml"
        )


def free_bytes() -> int:
    """Memory that is free now, as the system estimates it (Linux: MemAvailable)."""
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    # Not Linux: all of the memory is the best known bound.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
