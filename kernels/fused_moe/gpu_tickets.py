"""Tickets on the GPU: draw, wait, stamp, count, skip. What both CUDA forms of the kernel do around a tile."""

from __future__ import annotations

from kernels.cuda.jit import cuda, device
from kernels.cuda.sync import acquire, clock_ns, pause
from kernels.fused_moe.program import BLOCK, CHUNK, OP
from kernels.fused_moe.state import (
    COMBINE_COLUMNS,
    DISPATCHED,
    DOWN_COLUMNS,
    EXITED,
    GATE_UP_CHUNKS,
    GATED,
    HIDDEN,
    ROUTE_TILES,
    ROUTED,
    SLOTS,
    TICKET,
)  # fmt: skip
from kernels.fused_moe.tiles import COMBINE, DISPATCH, DOWN, GATE_UP, ROUTE


@device(inline="always")
def share(ticket, drawn):
    """Thread 0's `drawn` in every thread of the block; `ticket`: shared int32 [1]."""
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        ticket[0] = drawn
    cuda.syncthreads()
    return ticket[0]


@device(inline="always")
def draw(counters):
    """Next ticket, in thread 0; it is drawn before the tile in hand is begun, so that nobody waits for it."""
    if cuda.threadIdx.x == 0:
        return cuda.atomic.add(counters, TICKET, 1)
    return 0


@device(inline="always")
def wait_for(counters, counter, target):
    """The whole block goes on when the counter has reached `target`."""
    if cuda.threadIdx.x == 0:
        while acquire(counters, counter) < target:
            pause()
        cuda.threadfence()
    cuda.syncthreads()


@device(forceinline=True)
def wait_for_inputs(s, counters, op, block, chunk, slots):
    """What a tile of a slot that exists waits for. slots: how many there are."""
    if op == DISPATCH:
        wait_for(counters, ROUTED, s[ROUTE_TILES])
    elif op == DOWN:
        wait_for(counters, GATED + block, s[GATE_UP_CHUNKS])
    elif op == COMBINE:
        left, right = chunk * s[COMBINE_COLUMNS], min(s[HIDDEN], (chunk + 1) * s[COMBINE_COLUMNS])
        wait_for(counters, GATED + s[SLOTS] + chunk, slots * ((right - left + s[DOWN_COLUMNS] - 1) // s[DOWN_COLUMNS]))


@device(inline="always")
def begun(ticket, stamps):
    """All that the tile waits for is there."""
    if cuda.threadIdx.x == 0:
        stamps[ticket, 0] = clock_ns()


@device(forceinline=True)
def done(s, program, ticket, counters, known, stamps, ran_on):
    """The block has written its tile: stamp the end, then count it where its dependents look."""
    cuda.syncthreads()
    if cuda.threadIdx.x != 0:
        return
    end, op, block, chunk = clock_ns(), program[ticket, OP], program[ticket, BLOCK], program[ticket, CHUNK]
    stamps[ticket, 1], ran_on[ticket] = end, cuda.blockIdx.x
    if op == ROUTE or op == DISPATCH:
        cuda.atomic.max(known, 0, end)
    cuda.threadfence()
    if op == ROUTE:
        cuda.atomic.add(counters, ROUTED, 1)
    elif op == DISPATCH:
        cuda.atomic.add(counters, DISPATCHED, 1)
    elif op == GATE_UP:
        cuda.atomic.add(counters, GATED + block, 1)
    elif op == DOWN:
        cuda.atomic.add(counters, GATED + s[SLOTS] + chunk * s[DOWN_COLUMNS] // s[COMBINE_COLUMNS], 1)


@device(forceinline=True)
def skip(ticket, jump, drawn, counters, known, stamps, ran_on):
    """Stamp a surplus ticket with the time at which that was known, and those behind it that nobody has
    drawn. drawn: shared int32 [1]."""
    if cuda.threadIdx.x == 0:
        drawn[0] = cuda.atomic.max(counters, TICKET, jump)
    cuda.syncthreads()
    begin, at = drawn[0], known[0]
    i = ticket + cuda.threadIdx.x
    while i < jump:
        if i == ticket or i >= begin:
            stamps[i, 0] = stamps[i, 1] = at
            ran_on[i] = ~cuda.blockIdx.x
        i += cuda.blockDim.x


@device(forceinline=True)
def leave(counters, known):
    """The last block to leave makes the counters ready for the next launch."""
    if cuda.threadIdx.x == 0:
        cuda.threadfence()
        if cuda.atomic.add(counters, EXITED, 1) == cuda.gridDim.x - 1:
            for i in range(counters.shape[0]):
                counters[i] = 0
            known[0] = 0
