"""Kernels as PTX without a GPU, and what ptxas says about their registers."""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import subprocess
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kernels.cuda.jit import Kernel, numba_cuda

ARCHITECTURES = ("sm_75", "sm_80", "sm_89", "sm_90")
"""T4, A100, L4, H100 and H200."""


class Report(NamedTuple):
    """Resources of one kernel, by ptxas."""

    registers: int
    stack_bytes: int
    spill_bytes: int
    """Bytes of spilled registers, stores and loads together."""
    shared_bytes: int
    """Static shared memory."""


@functools.cache
def missing() -> str:
    """What the tests that compile to PTX lack here, in words; empty: nothing."""
    try:
        numba_cuda()
        from numba.cuda.cudadrv import nvvm

        nvvm.NVVM()
        nvvm.LibDevice()
    except ImportError as error:
        return f"Numba-CUDA is not installed ({error}); pip install 'tandem-moe[cuda]'"
    except Exception as error:  # the bindings raise their own types for a library that is not found
        return f"libNVVM is not usable ({error}); pip install 'tandem-moe[cuda]'"
    return "" if ptxas() else "ptxas is not found; pip install 'tandem-moe[cuda]' or put CUDA's bin on PATH"


def ptxas() -> str | None:
    """Path of the assembler: on PATH, or in NVIDIA's compiler package."""
    found = shutil.which("ptxas")
    if found:
        return found
    try:
        import nvidia
    except ImportError:
        return None
    return next((str(p) for root in nvidia.__path__ for p in Path(root).glob("cu*/bin/ptxas")), None)


def compile_ptx(kernel: Kernel, element: str, arch: str) -> str:
    """PTX of a kernel for an element type ("bfloat16") and an architecture ("sm_90")."""
    (code,) = _library(kernel, element).get_asm_strs(cc=(int(arch[3:-1]), int(arch[-1]), ""))
    return str(code)


@functools.cache
def _library(kernel: Kernel, element: str) -> Any:
    """A kernel in LLVM's form, which is the same for all architectures and takes most of the time.

    `numba.cuda.compile` would make it anew for each of them.
    """
    from numba.core import sigutils

    numba_cuda()
    from numba.cuda import compiler

    signature, result = sigutils.normalize_signature(kernel.typed(element))
    options = {k: v for k, v in kernel.options.items() if k in ("fastmath", "launch_bounds", "lineinfo", "opt")}
    oldest = (int(ARCHITECTURES[0][3:-1]), int(ARCHITECTURES[0][-1]))
    with _current_device(oldest):
        library, _ = compiler._compile_pyfunc_with_fixup(
            kernel.function, result(*signature), device=False, abi="numba", cc=oldest, **options
        )
    return library


@contextlib.contextmanager
def _current_device(cc: tuple[int, int]) -> Iterator[None]:
    """Numba-CUDA asks the current device for the architecture of device functions, even where
    `compile` was told it and there is no device."""
    from numba.cuda import dispatcher

    ask = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: types.SimpleNamespace(compute_capability=cc)
    try:
        yield
    finally:
        dispatcher.get_current_device = ask


def assemble(ptx: str, arch: str, *options: str) -> Report:
    """Assemble PTX with ptxas; subprocess.CalledProcessError with its message where it refuses."""
    return read_report(assembler_says(ptx, arch, *options))


def assembler_says(ptx: str, arch: str, *options: str) -> str:
    """What `ptxas -v` prints for a file."""
    path = ptxas()
    assert path, "ptxas is not found"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx, encoding="utf-8")
        command = [path, "-v", f"-arch={arch}", *options, "-o", str(Path(folder, "kernel.cubin")), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stderr + done.stdout


def read_report(text: str) -> Report:
    """The figures in what `ptxas -v` prints for a file with one kernel."""

    def numbers(pattern: str) -> list[int]:
        return [int(n) for n in re.findall(pattern, text)]

    registers = numbers(r"Used (\d+) registers")
    assert registers, f"no kernel in the report of ptxas: {text!r}"
    spills = numbers(r"(\d+) bytes spill stores") + numbers(r"(\d+) bytes spill loads")
    stack, shared = numbers(r"(\d+) bytes stack frame"), numbers(r"(\d+) bytes smem")
    return Report(max(registers), max(stack, default=0), sum(spills), max(shared, default=0))
