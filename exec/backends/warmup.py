"""What must not happen while the clock runs: compiling kernels, loading the BLAS, starting its threads."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch

from exec import decoder
from exec.fused import FusedLayers
from exec.weights import random_weights
from kernels.fused_moe.host import Layer
from kernels.fused_moe.tiles import Shape
from sim import models
from sim.models.spec import ModelSpec
from sim.schedulers.ticket import body_of, tiles_of

FEW, MANY = 5, decoder.EXPERT_ROWS
"""Rows whose experts run in one kernel, and rows whose experts run one by one (on the BLAS where it is faster)."""


def warm_up(model: ModelSpec, threads: int) -> None:
    """Run every step once in the calling thread; once a process for each number of threads, further
    threads only start the BLAS."""
    small = replace(model, layers=1, hidden=256, ffn=256, experts=4, top_k=2, heads=4, kv_heads=2, head_dim=64, vocab=512)
    _run_all(replace(small, name="warm-up"), threads)
    x = np.zeros((MANY, small.hidden), np.float32)
    torch.mm(torch.from_numpy(x), torch.from_numpy(x).t())


@cache
def warm_up_fused() -> None:
    """Run a small fused layer once a process."""
    small = replace(models.load("tiny-mixtral"), hidden=8, ffn=8, experts=2, top_k=1)
    body, zeros = body_of(tiles_of(small, 1)), np.zeros((2, 1, 8), np.float32)
    layer = Layer(zeros[0], zeros[:, 0], np.zeros(2 * 3 * 64, np.float32), zeros[0], zeros[1], np.zeros((1, 1), np.int16), zeros[1, :, :1])
    FusedLayers(1).launch(body, Shape(1, 8, 8, 2, 1))(layer)


@cache
def _run_all(small: ModelSpec, threads: int) -> None:
    """Products are large enough for the kernels' parallel form, where `threads` is more than one."""
    weights = random_weights(small, 0)
    layer = weights.layers[0]
    scratch = np.zeros(decoder.scratch_floats(small, MANY, longest=MANY, threads=threads) + MANY * small.vocab, np.float32)
    cache = np.zeros((2, MANY + 1, 1, small.kv_dim // 2), np.float32)
    for rows in (FEW, MANY):
        offsets, before = np.array([0, rows], np.int64), np.zeros(1, np.int64)
        hidden, qkv = np.zeros((rows, small.hidden), np.float32), np.zeros((rows, small.qkv_dim), np.float32)
        attn, logits = np.zeros((rows, small.attention_out_dim), np.float32), np.zeros((rows, small.vocab), np.float32)
        decoder.embed_tokens(weights.embed, np.arange(rows, dtype=np.int64) % small.vocab, hidden)
        decoder.pre_attn(small, layer, hidden, np.arange(rows), qkv, scratch)
        decoder.attn_prefill(small, qkv, offsets, attn, scratch)
        decoder.append_kv(qkv, cache[0], cache[1], before, offsets, before)
        decoder.attn_decode(small, qkv[:2], cache[0], cache[1], np.arange(2), before.repeat(2), attn[:2], scratch)
        for forced in (None, np.tile(np.arange(small.top_k, dtype=np.int16), (rows, 1))):
            decoder.post_attn(small, layer, weights.experts, attn, hidden, scratch, forced)
        decoder.sample_tokens(small, weights.final_norm, weights.lm_head, hidden, logits, scratch)
