"""Compaction of a fragmented weight arena: segments move down until no gap is left between them.

Segments keep their order, so a segment's new place overlaps nothing that lies behind it, only what
came before or itself. Cut into chunks and taken from the front, chunk after chunk may be written as
soon as the chunks whose old place it covers have been read. On the GPU blocks draw chunks from a
ticket counter, read theirs, say so, and wait for those few: one launch, no second arena, and no
deadlock, since only reads of lower tickets are waited for, and those wait for nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cost import Cost
from kernels.cuda.jit import cuda, kernel
from kernels.cuda.sync import acquire
from kernels.jit import jit

CHUNK = 4096
"""Words of a chunk at most; a block holds one in shared memory."""

_MOVE_BYTES = 5 * 8


def plan(starts: np.ndarray, lengths: np.ndarray, chunk: int = CHUNK) -> tuple[np.ndarray, np.ndarray]:
    """Moves [n, 5] int64 and the segments' new starts. All in words.

    starts, lengths [segments], in any order, not overlapping. A move: (from, to, words, first, last):
    moves [first, last) must have been read before this one is written. Segments that stay are not moved.
    """
    order = np.lexsort((starts + lengths, starts))  # an empty segment comes before what starts where it does
    ends = np.cumsum(lengths[order])
    assert (starts[order][1:] >= (starts[order] + lengths[order])[:-1]).all(), "segments overlap"
    new = np.empty_like(starts)
    new[order] = ends - lengths[order]
    pieces = [
        (starts[s] + at, new[s] + at, min(chunk, lengths[s] - at))
        for s in order if starts[s] != new[s] for at in range(0, lengths[s], chunk)
    ]  # fmt: skip
    moves = np.zeros((len(pieces), 5), np.int64)
    if len(pieces):
        moves[:, :3] = pieces
        source, to, words = moves[:, 0], moves[:, 1], moves[:, 2]
        moves[:, 3] = np.searchsorted(source + words, to, side="right")
        moves[:, 4] = np.minimum(np.searchsorted(source, to + words, side="left"), np.arange(len(pieces)))
    return moves, new


def work(words: int, moves: int, word_bytes: int = 4) -> Cost:
    """No arithmetic. Bytes: `words` that change their place read and written, the list of moves read."""
    return Cost(0, 2 * words * word_bytes + moves * _MOVE_BYTES)


def reference(arena: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The arena's segments one after another, in the order of their starts."""
    return np.concatenate([arena[s : s + n] for s, n in sorted(zip(starts.tolist(), lengths.tolist(), strict=True))])


@jit
def forward(arena, moves):
    """Carry out `moves` of `plan` in the arena [words] int32 (any bytes), front to back."""
    for m in range(moves.shape[0]):
        source, to = np.uintp(moves[m, 0]), np.uintp(moves[m, 1])
        for i in range(np.uintp(moves[m, 2])):
            arena[to + i] = arena[source + i]


@kernel("int32[::1], int64[:,::1], int32[::1]")
def _move(arena, moves, state):
    """state: [0] the next ticket, [1 + m] whether move m has been read."""
    held = cuda.shared.array(CHUNK, np.int32)
    drawn = cuda.shared.array(1, np.int32)
    me, threads = cuda.threadIdx.x, cuda.blockDim.x
    while True:
        if me == 0:
            drawn[0] = cuda.atomic.add(state, 0, 1)
        cuda.syncthreads()
        m = drawn[0]
        if m >= moves.shape[0]:
            return
        source, to, words, i = moves[m, 0], moves[m, 1], moves[m, 2], me
        while i < words:
            held[i] = arena[source + i]
            i += threads
        cuda.syncthreads()
        if me == 0:
            cuda.threadfence()
            cuda.atomic.exch(state, m + 1, 1)
        other = moves[m, 3] + me
        while other < moves[m, 4]:
            while acquire(state, other + 1) == 0:
                pass
            other += threads
        cuda.syncthreads()
        i = me
        while i < words:
            arena[to + i] = held[i]
            i += threads
        cuda.syncthreads()


def forward_cuda(arena: Any, moves: Any, state: Any, *, blocks: int = 128, stream: Any = 0, threads: int = 256) -> None:
    """`forward` on the GPU, moves being of chunks of at most CHUNK words; state: zeros [moves + 1] int32."""
    _move.launch(min(blocks, max(1, moves.shape[0])), threads, arena, moves, state, stream=stream)
