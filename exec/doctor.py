"""What this computer can do for a run, what it lacks, and what is used in its place."""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
from pathlib import Path
from typing import Any

from exec import devices
from exec.calibration import host
from exec.calibration.profile import processor
from exec.local import free_bytes

ISA = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bf16", "avx512vnni", "amx_tile", "amx_bf16", "asimd", "sve")
"""Instruction sets that our kernels or the BLAS look for, by their names in /proc/cpuinfo."""

GIB = 1 << 30


def examine() -> dict[str, Any]:
    """The object of `doctor --json`. Measures memory and, where there is a GPU, its links: some seconds."""
    return {"processor": _processor(), "memory": _memory(), "pinned": _pinned(), "gpu": _gpu(), "fallbacks": fallbacks()}


def _processor() -> dict[str, Any]:
    flags = _flags()
    return {
        "name": processor(), "architecture": platform.machine(), "cores": os.cpu_count(), "usable_cores": len(os.sched_getaffinity(0)),
        "isa": [name for name in ISA if name in flags], "llvm_target": _llvm_target(), "numa_nodes": numa_nodes(),
    }  # fmt: skip


def _flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return set(found.partition(":")[2].split())


def _llvm_target() -> str:
    import llvmlite.binding as llvm

    return str(llvm.get_host_cpu_name())


def numa_nodes() -> dict[str, str]:
    """Cores of each NUMA node; one node where the system does not tell."""
    nodes = sorted(Path("/sys/devices/system/node").glob("node[0-9]*"), key=lambda p: int(p.name[4:]))
    return {node.name: (node / "cpulist").read_text().strip() for node in nodes} or {"node0": f"0-{(os.cpu_count() or 1) - 1}"}


def _memory() -> dict[str, Any]:
    one, most = host.memory_bytes_per_s()
    return {"free_bytes": free_bytes(), "one_copying_thread_bytes_per_s": one, "all_threads_bytes_per_s": most}


def _pinned() -> dict[str, Any]:
    """How much memory this process may lock. CUDA's own pinned memory is not under this limit, but
    under what the driver and the system leave."""
    soft, hard = (None if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(resource.RLIMIT_MEMLOCK))
    return {"memlock_soft_bytes": soft, "memlock_hard_bytes": hard}


def _gpu() -> dict[str, Any] | None:
    if devices.missing():
        return None
    import torch

    from exec.backends.cuda.torch_device import CudaDevice
    from exec.calibration.device import link, pageable

    p = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    device = CudaDevice()
    stream = device.stream("h2d")
    links = {name: link(device, stream, up)[0] for name, up in (("h2d", True), ("d2h", False))}
    staged = pageable(device, stream)
    big = torch.ones(GIB, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(big)
    copied = 2 * GIB / _event_seconds(lambda: other.copy_(big))
    device.close()
    return {
        "name": p.name, "count": torch.cuda.device_count(), "capability": f"sm_{p.major}{p.minor}",
        "multiprocessors": p.multi_processor_count, "l2_bytes": p.L2_cache_size, "memory_bytes": total,
        "free_bytes": free, "memory_bytes_per_s": copied,
        "h2d_bytes_per_s": links["h2d"], "d2h_bytes_per_s": links["d2h"], "pageable_h2d_bytes_per_s": staged,
        "driver": _driver(), "cuda": torch.version.cuda, "torch": torch.__version__, "numba_cuda": _version("numba-cuda"),
    }  # fmt: skip


def _event_seconds(work: Any) -> float:
    from exec.bench.cuda import by_events

    work()
    return min(by_events(work, 4) / 4 for _ in range(3))


def _driver() -> str | None:
    version = Path("/proc/driver/nvidia/version")
    return version.read_text().splitlines()[0] if version.exists() else None


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def fallbacks() -> list[dict[str, str]]:
    """What is not used here, what is instead, and why."""
    found = []

    def note(feature: str, instead: str, why: str) -> None:
        found.append({"feature": feature, "instead": instead, "because": why})

    if lacks := devices.missing():
        note("--device cuda", "--device cpu", lacks)
    else:
        _gpu_fallbacks(note)
    from exec.products import has_openmp, streamed_rows

    if "avx512f" not in _flags() and platform.machine() == "x86_64":
        instead = f"the BLAS above {streamed_rows()} rows"
        note("our matrix tiles for every size", instead, "the processor has no AVX-512: 16 vector registers")
    if not has_openmp():
        note("kernels on several threads", "one thread a lane", "Numba has no OpenMP here; its own pool is unsafe under several lanes")
    if len(numa_nodes()) > 1:
        note("memory on the node that reads it", "the system's placement", "lanes are not bound to NUMA nodes: run under numactl")
    for package, feature in (("perfetto", "Perfetto's own format"), ("numba_cuda", "Numba-CUDA kernels")):
        if importlib.util.find_spec(package) is None:
            instead = "Chrome JSON" if package == "perfetto" else "torch's kernels"
            note(feature, instead, f"package {package} is not installed")
    return found


def _gpu_fallbacks(note: Any) -> None:
    import torch

    from exec.backends.cuda import grouped

    device = torch.device("cuda", torch.cuda.current_device())
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        form = grouped.how(device, dtype)
        if form == grouped.ONE_BY_ONE:
            note(f"grouped products of {name} experts", form, "neither torch._grouped_mm nor Numba-CUDA takes them here")
    if not torch.distributed.is_nccl_available():
        note("--ranks N --device cuda", "--device cpu", "torch is built without NCCL")
    elif torch.cuda.device_count() < 2:
        note("--ranks N --device cuda", "--device cpu", "there is one GPU, and each rank needs its own")
    if torch.cuda.get_device_capability(device) < (8, 0):
        note("bf16 kernels", "fp16 or fp32", "the GPU is older than sm_80")
