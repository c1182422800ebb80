"""The persistent kernels and the linked functions as PTX for every architecture, and what ptxas says of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kernels.cuda import mma
from kernels.cuda.jit import Kernel
from kernels.cuda.ptx import ARCHITECTURES, assemble, compile_ptx, missing, ptxas
from kernels.fused_moe.gpu import BLOCKS_PER_SM
from kernels.fused_moe.gpu_decode import decode
from kernels.fused_moe.gpu_grouped import grouped

pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing() or "all there"), pytest.mark.xdist_group("ptx")]

BUILDS = [("float32", arch) for arch in ARCHITECTURES] + [("float16", "sm_75")] + [("bfloat16", arch) for arch in ARCHITECTURES[1:]]


@pytest.mark.parametrize("kernel", [decode, grouped], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize(("element", "arch"), BUILDS)
def test_build(kernel: Kernel, element: str, arch: str) -> None:
    """No float64, no spills (the grouped form compiled to be linked), four blocks in a multiprocessor's registers."""
    code = compile_ptx(kernel, element, arch)
    assert f".target {arch}" in code and not re.search(r"\.f64", code)
    report = assemble(code, arch, *(["-c"] if kernel is grouped else []))
    assert report.spill_bytes == 0, report
    assert report.registers * kernel.options["launch_bounds"][0] * BLOCKS_PER_SM[kernel is decode] <= 65536, report


def test_decode_streams_16_bytes_at_a_time_and_orders_what_it_shares() -> None:
    ptx = compile_ptx(decode, "bfloat16", "sm_90")
    assert len(re.findall(r"ld\.global\.nc\.L1::no_allocate\.L2::128B\.v4\.u32", ptx)) >= 2 * (8 + 12)
    for instruction in ("ld.acquire.gpu.global.s32", "%globaltimer", "membar.gl", "nanosleep"):
        assert instruction in ptx, instruction


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not found")
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_linked_functions(arch: str) -> None:
    """Tensor-core instructions, copies that overlap them from sm_80 on, nothing spilled; bf16 needs sm_80."""
    ptx = mma.compile_ptx(arch)
    ampere = arch != "sm_75"
    assert ("product_bf16" in ptx) == ("cp.async" in ptx) == ampere
    assert (f"mma.sync.aligned.m16n8k{16 if ampere else 8}" in ptx) and "product_fp16" in ptx
    spills = re.findall(r"(\d+) bytes spill", mma.assembled(arch))
    assert spills and set(spills) == {"0"}, spills


def test_grouped_calls_the_linked_function() -> None:
    assert "product_bf16" in compile_ptx(grouped, "bfloat16", "sm_90")
    assert "product_fp16" in compile_ptx(grouped, "float16", "sm_75")
    assert "product_" not in compile_ptx(grouped, "float32", "sm_75")


@pytest.mark.skipif(shutil.which("nvlink") is None or shutil.which("nvcc") is None, reason="nvcc and nvlink are not found")
@pytest.mark.parametrize(("element", "arch"), [("float16", "sm_75"), ("bfloat16", "sm_90")])
def test_grouped_links(tmp_path: Path, element: str, arch: str) -> None:
    """Kernel and C++ become one binary: names and arguments agree, and four blocks fit into a multiprocessor."""
    objects = []
    for name, code in (("kernel", compile_ptx(grouped, element, arch)), ("mma", mma.compile_ptx(arch))):
        (tmp_path / f"{name}.ptx").write_text(code)
        objects.append(str(tmp_path / f"{name}.cubin"))
        subprocess.run([str(ptxas()), "-c", f"-arch={arch}", "-o", objects[-1], str(tmp_path / f"{name}.ptx")], check=True)
    command = ["nvlink", "-v", f"-arch={arch}", "-o", str(tmp_path / "whole.cubin"), *objects]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    registers, shared = (int(re.findall(pattern, said)[-1]) for pattern in (r"used (\d+) registers", r"(\d+) bytes smem"))
    assert registers * grouped.options["launch_bounds"][0] * BLOCKS_PER_SM[False] <= 65536 and shared <= 48 << 10, said
