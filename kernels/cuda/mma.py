"""Functions of `mma.cu` in Numba kernels, and the same source compiled for the host.

They are linked when a kernel that calls them is loaded onto a GPU: Numba-CUDA compiles the file with
NVRTC for that GPU. The simulator cannot link, so there a kernel takes its own form in Python.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from kernels.cuda.jit import numba_cuda
from kernels.cuda.ptx import assembler_says

SOURCE = Path(__file__).with_name("mma.cu")

ELEMENTS = {"product_fp16": "float16", "product_bf16": "uint16"}
"""Functions and the type that Numba has for their elements."""


def declared(name: str) -> Any:
    """A function of `mma.cu` as compiled kernels call it."""
    element = ELEMENTS[name]
    operand = f"CPointer({element}), CPointer(int64)"
    signature = f"int32({operand}, {operand}, int32, CPointer(float32))"
    return numba_cuda().declare_device(name, signature, link=str(SOURCE))


def pointer() -> Any:
    """An intrinsic: the address of an array's first element."""
    from numba.cuda import types
    from numba.cuda.extending import intrinsic
    from numba.cuda.np import arrayobj

    @intrinsic
    def address(context, array):
        def codegen(context, builder, signature, args):
            return arrayobj.make_array(signature.args[0])(context, builder, args[0]).data

        return types.CPointer(array.dtype)(array), codegen

    return address


def compile_ptx(arch: str) -> str:
    """PTX of `mma.cu` by nvcc for an architecture ("sm_80")."""
    nvcc = shutil.which("nvcc")
    assert nvcc, "nvcc is not found"
    command = [nvcc, "-ptx", "-rdc=true", "-std=c++17", f"-arch={arch.replace('sm', 'compute')}", "-o", "-", str(SOURCE)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def assembled(arch: str) -> str:
    """What ptxas says of the functions of `mma.cu`, compiled to be linked."""
    return assembler_says(compile_ptx(arch), arch, "-c")


def on_host(folder: Path) -> Any:
    """`mma.cu` as a library for the host, in `folder`; calls are `product(name, ...)`."""
    library = folder / "mma.so"
    options = ["-x", "c++", "-std=c++17", "-O2", "-fno-strict-aliasing", "-shared", "-fPIC"]
    subprocess.run(["g++", *options, "-o", str(library), str(SOURCE)], check=True, capture_output=True, text=True)
    return ctypes.CDLL(str(library))


def product_on_host(library: Any, name: str, x: np.ndarray, x_at: np.ndarray, w: np.ndarray, w_at: np.ndarray, k: int) -> np.ndarray:
    """[64, 64] float32 of one call; x, w: elements as uint16 bits, flat; x_at, w_at [64] int64."""
    result = np.full(5120, np.nan, np.float32)
    assert result.ctypes.data % 16 == 0, "operands pass through the result's memory 16 bytes at a time"
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (x, x_at, w, w_at, result)]
    getattr(library, name)(None, *pointers[:4], ctypes.c_int(k), pointers[4])
    return result[: 64 * 68].reshape(64, 68)[:, :64]
