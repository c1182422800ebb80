"""`python -m traces.train.show DIR [--plot OUT.png]`: what each expert is used for, on held-out text.

Prints, for each layer, the experts with the most particular taste: the kind of text of which an expert gets the most beyond its share
(lift: share of the kind among the expert's tokens over its share of the text), and the bytes it gets most beyond theirs. The plot
shows the lifts of all experts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from traces.train import corpus
from traces.train.evaluate import CLASSES, Scores, evaluate
from traces.train.export import load
from traces.train.model import LanguageModel

Lifts = NDArray[np.float64]


def lifts(counts: NDArray[np.int64]) -> Lifts:
    """Share of each column among an expert's tokens over its share of all, [layers, experts, columns]; 1 is no preference."""
    share = counts / np.maximum(counts.sum(axis=2, keepdims=True), 1)
    usual = counts.sum(axis=1, keepdims=True) / counts.sum(axis=(1, 2), keepdims=True)
    return np.asarray(np.divide(share, usual, out=np.ones_like(share), where=usual > 0))


def byte_counts(model: LanguageModel, windows: int = 64, window: int = 256) -> NDArray[np.int64]:
    """Choices [layers, experts, vocabulary] over windows spread through the held-out text."""
    text = corpus.tokens(True).astype(np.int64)
    starts = np.linspace(0, len(text) - window - 1, windows).astype(np.int64)
    ids = torch.from_numpy(np.stack([text[s : s + window] for s in starts]))
    counts = np.zeros((model.c.layers, model.c.experts, model.c.vocabulary), np.int64)
    with torch.no_grad():
        for part in torch.split(ids, 8):
            for layer, chosen in enumerate(model(part)[2]):
                place = chosen.numpy() * model.c.vocabulary + part.numpy().reshape(-1, 1)
                counts[layer] += np.bincount(place.ravel(), minlength=counts[layer].size).reshape(counts[layer].shape)
    return counts


def table(scores: Scores, by_byte: NDArray[np.int64], most: int = 4) -> list[str]:
    """Lines: layer, expert, its kind of text, its bytes."""
    kinds, letters = lifts(scores.counts), lifts(by_byte)
    letters[by_byte < 20] = 0
    lines = []
    for layer in range(len(kinds)):
        best = kinds[layer].max(axis=1)
        for e in np.argsort(-best)[:most].tolist():
            kind = int(kinds[layer, e].argmax())
            part = scores.counts[layer, e, kind] / scores.counts[layer, e].sum()
            liked = [_letter(b) for b in np.argsort(-letters[layer, e])[:6].tolist() if letters[layer, e, b] > 1]
            taste = f"{CLASSES[kind]} {100 * part:.0f} % ({best[e]:.1f} times its share)"
            lines.append(f"layer {layer}, expert {e:2d}: {taste}; {' '.join(liked)}")
    return lines


def _letter(token: int) -> str:
    return "boundary" if token >= 256 else repr(chr(token))


def plot(scores: Scores, out: Path, origin: str) -> None:
    """Heat map of lifts: one panel a layer, experts by kinds of text, experts ordered by the kind that they prefer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import TwoSlopeNorm

    values = np.log2(np.clip(lifts(scores.counts), 1 / 8, 8))
    layers = len(values)
    figure, axes = plt.subplots(1, layers, figsize=(2.1 * layers + 1.6, 4.6), layout="constrained", sharex=True)
    for layer, axis in enumerate(np.atleast_1d(axes)):
        order = np.lexsort((-values[layer].max(axis=1), values[layer].argmax(axis=1)))
        image = axis.imshow(values[layer][order], cmap="RdBu_r", norm=TwoSlopeNorm(0, -3, 3), aspect="auto")
        axis.set_xticks(range(len(CLASSES)), CLASSES, rotation=90)
        axis.set_yticks(range(len(order)), order.tolist(), fontsize=7)
        axis.set_title(f"layer {layer}", fontsize=10)
    np.atleast_1d(axes)[0].set_ylabel("expert, by the kind that it prefers")
    label = "share of the expert's tokens / of the text"
    bar = figure.colorbar(image, ax=axes, ticks=range(-3, 4), shrink=0.8, label=label)
    bar.ax.set_yticklabels([f"{2.0**v:g}" for v in range(-3, 4)])
    figure.suptitle(f"What the experts are used for ({origin}, {scores.tokens} held-out tokens)", fontsize=11)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parse = argparse.ArgumentParser(prog="python -m traces.train.show", description=__doc__, formatter_class=form)
    parse.add_argument("directory", type=Path)
    parse.add_argument("--plot", type=Path)
    asked = parse.parse_args(arguments)
    torch.set_num_threads(1)
    model = load(asked.directory)
    scores = evaluate(model, 256, 32)
    print("\n".join(table(scores, byte_counts(model))))
    if asked.plot is not None:
        plot(scores, asked.plot, "bundled model")
    return 0


if __name__ == "__main__":
    sys.exit(main())
