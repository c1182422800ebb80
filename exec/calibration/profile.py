"""From a rig and this computer to a machine profile: the measured curves, then a correction from runs of their own."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from exec.calibration import copies, curves, experts, host, insitu, storage
from exec.weights import random_weights
from sim import models
from sim.machines.schema import Lane, Machine, OpRate, Resource, Rig, RigLink
from traces.files import replacing

MODEL = "tiny-mixtral"
CPU_OPS = ("attn_decode", "expert_ffn")
"""What the CPU lane runs."""

Say = Callable[[str], None]


def calibrate(rig: Rig, say: Say = lambda text: None) -> Machine:
    """Measure this computer in the shape of `rig`. Takes about a minute and a half; nothing else should run meanwhile."""
    spec = models.load(MODEL)
    weights = random_weights(spec, seed=0)
    gpu_threads, cpu_threads = host.threads_of_lanes()
    say("cores and memory bandwidth")
    cores = host.cores()
    _, memory = host.memory_bytes_per_s()
    traffic = host.traffic(spec, weights, gpu_threads, cpu_threads, memory)
    ops: list[OpRate] = []
    for lane, threads, only in (("gpu", gpu_threads, ()), ("cpu", cpu_threads, CPU_OPS)):
        for row in curves.measure(spec, weights, lane, threads, only):
            say(f"{row.op} on lane {lane}")
            scale = traffic[row.op][0] if row.op in traffic else traffic["qkv_proj"][0]
            ops.append(row.model_copy(update={"bytes_scale": scale}))
    say("copies")
    rates = {name: link.bytes_per_s for name, link in rig.links.items()}
    ops += [copies.measure(lane, rates.get(lane)) for lane in ("h2d", "d2h", "pin")]  # type: ignore[call-overload]
    say("loads from disk")
    loads, disk = storage.measure(rates.get("nvme"))
    draft = _machine(rig, cores, memory, gpu_threads, cpu_threads, (*ops, loads), disk)
    say("whole runs")
    return experts.corrected(insitu.corrected(draft, spec, weights, say), spec, say)


def _machine(rig: Rig, cores: float, memory: float, gpu_threads: int, cpu_threads: int, ops: tuple[OpRate, ...], disk: float) -> Machine:
    calibrated = f"calibrated on {processor()}"
    resources = {
        "cores": Resource(kind="cores", capacity=cores, source=f"{calibrated}: all cores at once against one alone"),
        "memory": Resource(kind="memory", capacity=memory, source=f"{calibrated}: most that readers and copiers move together"),
    }
    resources["disk"] = Resource(kind="link", capacity=disk, source=f"{calibrated}: verified reads around the page cache")
    links = {"nvme": RigLink(source="the disk bounds it"), **rig.links}
    for name, link in links.items():
        native = link.bytes_per_s is None and name != "nvme"
        source = f"{calibrated}: a core's own copies bound it" if native else link.source
        resources[f"link.{name}"] = Resource(kind="link", capacity=link.bytes_per_s or memory, source=source)
    paced = {name: link.bytes_per_s for name, link in links.items()}
    lanes = (
        Lane(name="gpu", kind="compute", memory="memory", cores="cores", threads=gpu_threads, home="gpu"),
        Lane(name="cpu", kind="compute", memory="memory", cores="cores", threads=cpu_threads, home="cpu"),
        Lane(name="h2d", kind="copy", path=("link.h2d", "memory"), cores="cores", threads=1, home="gpu", paced_bytes_per_s=paced["h2d"]),
        Lane(name="d2h", kind="copy", path=("link.d2h", "memory"), cores="cores", threads=1, home="cpu", paced_bytes_per_s=paced["d2h"]),
        Lane(name="pin", kind="copy", path=("memory",), cores="cores", threads=1, home="pinned"),
        Lane(name="nvme", kind="copy", path=("link.nvme", "disk", "memory"), cores="cores", threads=1, home="cpu",
             paced_bytes_per_s=paced["nvme"]),
    )
    emulated = any(rate is not None for rate in paced.values())
    return Machine(
        name=f"{rig.name}@{platform.node() or 'this-computer'}", description=f"{rig.description}; {processor()}", rig=rig.name,
        clock="emulated" if emulated else "measured", resources=resources, memories=dict(rig.memories), lanes=lanes, ops=ops,
    )  # fmt: skip


def processor() -> str:
    """Processor and core count, as far as the system tells."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores"


def write(machine: Machine, path: Path) -> None:
    """Write the profile as YAML, whole or not at all."""
    values: dict[str, Any] = machine.model_dump(mode="json", exclude_defaults=True)
    with replacing(path) as part:
        part.write_text(yaml.safe_dump(values, sort_keys=False, width=160, allow_unicode=True), encoding="utf-8")
