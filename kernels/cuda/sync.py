"""What blocks of one launch need to wait for each other, and a clock that all of them share.

The protocol: who makes data visible has all threads write, `cuda.syncthreads()`, and one thread
`cuda.threadfence()` and an atomic addition to a counter. Who waits has one thread poll with
`acquire`, then `cuda.threadfence()`, and `cuda.syncthreads()` for the rest. The fence in between is
cumulative (PTX memory model, "causality order"): what thread 0 has synchronised with, its whole
block has, and the L1 cache holds nothing older.
"""

from __future__ import annotations

import time
from typing import Any

from kernels.cuda.jit import cuda, kernel, primitive

PAUSE_NS = 32


@primitive
def clock_ns():
    """Nanoseconds on a clock that all blocks share: %globaltimer, in the simulator the host's clock."""
    return time.perf_counter_ns()


@primitive
def acquire(array, index):
    """array[index] (int32), after which the caller sees what was visible to whoever wrote it."""
    return array[index]


@primitive
def pause():
    """Leave the issue slots to others for a moment."""
    time.sleep(0)


def _intrinsic(make: Any) -> Any:
    from numba.cuda.extending import intrinsic

    return intrinsic(make)


@clock_ns.compiled
def _clock_ns() -> Any:
    from llvmlite import ir
    from numba.cuda import types

    def clock(context):
        def codegen(context, builder, signature, args):
            asm = ir.InlineAsm(ir.FunctionType(ir.IntType(64), []), "mov.u64 $0, %globaltimer;", "=l,~{memory}", side_effect=True)
            return builder.call(asm, [])

        return types.int64(), codegen

    return _intrinsic(clock)


@acquire.compiled
def _acquire() -> Any:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.np import arrayobj

    def load(context, array, index):
        assert array.dtype in (types.int32, types.int64), array.dtype
        bits = array.dtype.bitwidth
        asm = f"ld.acquire.gpu.global.s{bits} $0, [$1];"
        constraints = f"={'r' if bits == 32 else 'l'},l,~{{memory}}"

        def codegen(context, builder, signature, args):
            data = arrayobj.make_array(signature.args[0])(context, builder, args[0]).data
            address = builder.ptrtoint(builder.gep(data, [args[1]]), ir.IntType(64))
            kind = ir.FunctionType(ir.IntType(bits), [ir.IntType(64)])
            return builder.call(ir.InlineAsm(kind, asm, constraints, side_effect=True), [address])

        return array.dtype(array, types.int64), codegen

    return _intrinsic(load)


@pause.compiled
def _pause() -> Any:
    from llvmlite import ir
    from numba.cuda import types

    def sleep(context):
        def codegen(context, builder, signature, args):
            asm = ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), f"nanosleep.u32 {PAUSE_NS};", "~{memory}", side_effect=True)
            builder.call(asm, [])
            return context.get_dummy_value()

        return types.void(), codegen

    return _intrinsic(sleep)


@kernel("int64[::1], int64")
def tick(there, wait_ns):
    """One thread: wait, then write what `clock_ns` says to there[0]. What is enqueued meanwhile follows without a gap."""
    begin = clock_ns()
    if cuda.threadIdx.x == 0:
        while clock_ns() - begin < wait_ns:
            pause()
        there[0] = clock_ns()
