"""Greedy sampling: last hidden row of each sequence [sequences, hidden] -> token ids [sequences]."""

from __future__ import annotations

import numpy as np

from kernels import linear, rms_norm
from kernels.cost import TOKEN_ID_BYTES, Cost
from kernels.jit import jit


def argmax_work(sequences: int, vocab: int, b: int) -> Cost:
    """One comparison a logit. Bytes: logits read, token ids written."""
    return Cost(sequences * vocab, b * sequences * vocab + TOKEN_ID_BYTES * sequences)


def work(sequences: int, hidden: int, vocab: int, b: int) -> Cost:
    """Final norm, LM head [vocab, hidden], argmax."""
    head = linear.work(sequences, hidden, vocab, b)
    return rms_norm.work(sequences, hidden, b) + head + argmax_work(sequences, vocab, b)


def reference(logits: np.ndarray) -> np.ndarray:
    """The first of the largest logits of each row."""
    return np.argmax(logits, axis=1)


@jit
def argmax(logits, out):
    """out [sequences] int64 = index of the first largest of logits [sequences, vocab]."""
    for s in range(logits.shape[0]):
        row = logits[s]
        largest = row[0]
        for v in range(row.shape[0]):
            largest = max(largest, row[v])
        for v in range(row.shape[0]):
            if row[v] == largest:
                out[s] = v
                break
