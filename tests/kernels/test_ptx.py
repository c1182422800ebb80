"""Every CUDA kernel compiles to PTX for the GPUs that we name, and the hot ones keep their registers."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re

import pytest

import kernels
from kernels.cuda import ptx
from kernels.cuda.jit import KERNELS, Kernel

for module in pkgutil.walk_packages(kernels.__path__, "kernels."):
    if "fused_moe" not in module.name:  # has tests of its own: it links what is not in Python
        importlib.import_module(module.name)

OURS = {name: kernel for name, kernel in sorted(KERNELS.items()) if "fused_moe" not in name}

pytestmark = [
    pytest.mark.skipif(bool(ptx.missing()), reason=ptx.missing() or "all there"),
    pytest.mark.xdist_group("ptx"),  # one process compiles Numba-CUDA's own helpers once
]
# T4 has no bfloat16 arithmetic, and no kernel uses it: they round in integers. float16 differs from
# bfloat16 in its conversions only, so one architecture stands for all.
BUILDS = [("float32", arch) for arch in ptx.ARCHITECTURES] + [("bfloat16", arch) for arch in ptx.ARCHITECTURES[1:]] + [("float16", "sm_75")]


@functools.cache
def compiled(name: str, element: str, arch: str) -> str:
    return ptx.compile_ptx(KERNELS[name], element, arch)


def builds(kernel: Kernel) -> list[tuple[str, str]]:
    return [(element, arch) for element, arch in BUILDS if element in kernel.elements]


@pytest.mark.parametrize("name", OURS)
def test_kernel_compiles_for_every_architecture(name: str) -> None:
    for element, arch in builds(KERNELS[name]):
        code = compiled(name, element, arch)
        assert f".target {arch}" in code and ".visible .entry" in code
        # A stray Python float makes float64 of everything, at a sixty-fourth of the speed on some GPUs.
        assert not re.search(r"\.f64", code), f"{element}, {arch}: float64 arithmetic"


@pytest.mark.parametrize("name", [name for name, kernel in OURS.items() if kernel.hot])
def test_hot_kernel_spills_no_registers(name: str) -> None:
    for element, arch in builds(KERNELS[name]):
        report = ptx.assemble(compiled(name, element, arch), arch)
        assert report.spill_bytes == 0 and report.stack_bytes == 0, f"{element}, {arch}: {report}"
        assert report.shared_bytes <= 48 << 10, report


def test_report_of_ptxas_is_read() -> None:
    text = """ptxas info    : Compiling entry function 'k' for 'sm_90'
ptxas info    : Function properties for k
    24 bytes stack frame, 16 bytes spill stores, 32 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 24 bytes cumulative stack size, 4096 bytes smem"""
    assert ptx.read_report(text) == ptx.Report(registers=40, stack_bytes=24, spill_bytes=48, shared_bytes=4096)
    with pytest.raises(AssertionError, match="no kernel"):
        ptx.read_report("")


def test_spills_are_seen() -> None:
    """The gate can fail: a hot kernel squeezed into 24 registers spills."""
    code = compiled("attention_gpu._attend", "float32", "sm_90")
    assert ptx.assemble(code, "sm_90", "-maxrregcount=24").spill_bytes > 0
