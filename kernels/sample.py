"""Greedy sampling: last hidden row of each sequence [sequences, hidden] -> token ids [sequences]."""

from __future__ import annotations

from kernels import linear, rms_norm
from kernels.cost import TOKEN_ID_BYTES, Cost


def argmax_work(sequences: int, vocab: int, b: int) -> Cost:
    """One comparison a logit. Bytes: logits read, token ids written."""
    return Cost(sequences * vocab, b * sequences * vocab + TOKEN_ID_BYTES * sequences)


def work(sequences: int, hidden: int, vocab: int, b: int) -> Cost:
    """Final norm, LM head [vocab, hidden], argmax."""
    head = linear.work(sequences, hidden, vocab, b)
    return rms_norm.work(sequences, hidden, b) + head + argmax_work(sequences, vocab, b)
