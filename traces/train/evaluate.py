"""How good the model is on text it never saw, and how evenly and for what it uses its experts."""

from __future__ import annotations

import io
import keyword
import math
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from traces.train import corpus
from traces.train.model import LanguageModel

WINDOW = 1024
STRIDE = 8
"""Every 8th window of the held-out text is scored: 280,000 bytes, a standard error of about 0.01 bits per byte."""

CLASSES = ("space", "indentation", "name", "keyword", "number", "operator", "string", "docstring", "comment")
_SPACE, _INDENT, _NAME, _KEYWORD, _NUMBER, _OPERATOR, _STRING, _DOCSTRING, _COMMENT = range(len(CLASSES))


@dataclass(frozen=True, slots=True)
class Scores:
    """bits_per_byte over all scored tokens; counts [layers, experts, classes] of choices by the kind of text that the token is."""

    bits_per_byte: float
    tokens: int
    counts: NDArray[np.int64]

    @property
    def load_entropy(self) -> NDArray[np.float64]:
        """Entropy of each layer's load over that of an even one [layers]."""
        share = self.counts.sum(axis=2) / self.counts.sum(axis=(1, 2))[:, None]
        logs = np.log(share, out=np.zeros_like(share), where=share > 0)
        return np.asarray(-(share * logs).sum(axis=1) / np.log(share.shape[1]))

    @property
    def specialisation(self) -> NDArray[np.float64]:
        """Mutual information between expert and kind of text over the entropy of the kinds, each layer: 0 none, 1 the expert tells it."""
        joint = self.counts / self.counts.sum(axis=(1, 2), keepdims=True)
        apart = joint.sum(axis=2, keepdims=True) * joint.sum(axis=1, keepdims=True)
        ratio = np.divide(joint, apart, out=np.ones_like(joint), where=joint > 0)
        kinds = joint.sum(axis=1)
        entropy = -(kinds * np.log(kinds, out=np.zeros_like(kinds), where=kinds > 0)).sum(axis=1)
        return np.asarray((joint * np.log(ratio)).sum(axis=(1, 2)) / entropy)


def windows(window: int = WINDOW, stride: int = STRIDE) -> NDArray[np.int64]:
    """Places of the scored windows in the held-out text."""
    return np.arange(0, len(corpus.tokens(True)) - window - 1, window * stride)


def evaluate(model: LanguageModel, window: int = WINDOW, stride: int = STRIDE, batch: int = 8) -> Scores:
    """Score windows of the held-out text, each from an empty context on."""
    text, kinds = corpus.tokens(True).astype(np.int64), kinds_of_held_out()
    c = model.c
    bits, tokens = 0.0, 0
    counts = np.zeros((c.layers, c.experts, len(CLASSES)), np.int64)
    starts = windows(window, stride)
    for group in np.array_split(starts, max(1, len(starts) // batch)):
        rows = np.stack([text[s : s + window + 1] for s in group])
        kind = np.concatenate([kinds[s : s + window] for s in group])
        ids = torch.from_numpy(rows)
        with torch.no_grad():
            logits, _, chosen = model(ids[:, :-1])
            bits += F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item() / math.log(2)
        tokens += len(kind)
        for layer, experts in enumerate(chosen):
            place = experts.numpy() * len(CLASSES) + kind[:, None]
            counts[layer] += np.bincount(place.ravel(), minlength=counts[layer].size).reshape(c.experts, len(CLASSES))
    return Scores(bits / tokens, tokens, counts)


def kinds_of_held_out() -> NDArray[np.int64]:
    """Which of `CLASSES` each held-out token is, by Python's own tokenizer [tokens]."""
    parts = [np.array([_SPACE])]
    for path in corpus.modules(True):
        parts += [_kinds(path.read_bytes()), parts[0]]
    return np.concatenate(parts)


def _kinds(source: bytes) -> NDArray[np.int64]:
    lines = source.splitlines(keepends=True)
    starts = np.cumsum([0, *(len(line) for line in lines)])
    found = np.full(len(source), _SPACE)
    for at, line in zip(starts.tolist(), lines, strict=False):
        found[at : at + len(line) - len(line.lstrip(b" "))] = _INDENT
    for token, docstring in _tokens(source):
        kind = _DOCSTRING if docstring else _kind(token)
        if kind is not None:
            (row, column), (last, end) = token.start, token.end
            a = starts[row - 1] + len(lines[row - 1].decode()[:column].encode())
            found[a : starts[last - 1] + len(lines[last - 1].decode()[:end].encode())] = kind
    return found


def _tokens(source: bytes) -> Iterator[tuple[tokenize.TokenInfo, bool]]:
    """Tokens of a module, and whether each is a docstring: a string that is a statement of its own."""
    fresh = True
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        yield token, token.type == tokenize.STRING and fresh
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            fresh = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)


def _kind(token: tokenize.TokenInfo) -> int | None:
    if token.type == tokenize.NAME:
        return _KEYWORD if keyword.iskeyword(token.string) else _NAME
    known = {tokenize.NUMBER: _NUMBER, tokenize.OP: _OPERATOR, tokenize.STRING: _STRING, tokenize.COMMENT: _COMMENT}
    return known.get(token.type)


def report(scores: Scores) -> dict[str, Any]:
    """Figures as JSON holds them."""
    figures: dict[str, Any] = {"bits_per_byte": round(scores.bits_per_byte, 4), "scored_tokens": scores.tokens}
    if scores.counts.shape[1] > 1:
        figures["load_entropy"] = [round(x, 4) for x in scores.load_entropy.tolist()]
        figures["specialisation"] = [round(x, 4) for x in scores.specialisation.tolist()]
    return figures
