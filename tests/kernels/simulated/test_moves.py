"""All-reduce, paged gather, compaction and sampling in the CUDA simulator."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import all_reduce, compaction, page_gather, sample
from kernels.cuda.element import from_bfloat16, round_bfloat16
from tests.kernels.arrays import assert_close, floats, poisoned
from tests.kernels.moving import fragmented

RNG = np.random.default_rng(5)


@pytest.mark.parametrize(("ranks", "elements"), [(1, 7), (4, 33)])
def test_all_reduce(ranks: int, elements: int) -> None:
    buffers = floats(RNG, ranks, elements)
    wanted = np.tile(buffers.astype(float).sum(0), (ranks, 1))
    all_reduce.forward_cuda(buffers, threads=32)
    assert_close(buffers, wanted)


def test_all_reduce_of_bfloat16_rounds_the_sum_only() -> None:
    buffers = round_bfloat16(floats(RNG, 3, 20))
    wanted = round_bfloat16(from_bfloat16(buffers).sum(0))
    all_reduce.forward_cuda(buffers, threads=32)
    assert (buffers == wanted).all()


def test_page_gather() -> None:
    arena, pages = RNG.integers(-9, 9, (6, 35)).astype(np.int32), np.array([5, 0, 5, 2], np.int32)
    out = poisoned(4, 35, dtype=np.int32)
    page_gather.forward_cuda(arena, pages, out, threads=4, parts=2)
    assert (out == page_gather.reference(arena, pages)).all()


@pytest.mark.parametrize(("segments", "longest", "chunk"), [(1, 5, 3), (6, 40, 7), (8, 9, 4096)])
def test_compaction(segments: int, longest: int, chunk: int) -> None:
    arena, starts, lengths = fragmented(RNG, segments, longest)
    wanted = compaction.reference(arena, starts, lengths)
    moves, _ = compaction.plan(starts, lengths, chunk)
    compaction.forward_cuda(arena, moves, np.zeros(len(moves) + 1, np.int32), blocks=2, threads=4)
    assert (arena[: len(wanted)] == wanted).all()


@pytest.mark.parametrize(("sequences", "vocab"), [(1, 1), (3, 70), (2, 33)])
def test_argmax_takes_the_first_largest(sequences: int, vocab: int) -> None:
    logits, out = floats(RNG, sequences, vocab).round(1), poisoned(sequences, dtype=np.int64)
    sample.argmax_cuda(logits, out, threads=64)
    assert (out == sample.reference(logits)).all()


@pytest.mark.parametrize(("temperature", "top_p", "vocab"), [(1.0, 0.9, 70), (0.5, 0.3, 33), (1.0, 1e-6, 5)])
def test_draw(temperature: float, top_p: float, vocab: int) -> None:
    logits, uniform = 2 * floats(RNG, 3, vocab), RNG.random(3, dtype=np.float32)
    out = poisoned(3, dtype=np.int64)
    sample.draw_cuda(logits, temperature, top_p, uniform, poisoned(3, vocab), out, threads=32)
    assert (out == sample.draw_reference(logits.astype(float), temperature, top_p, uniform.astype(float))).all()
