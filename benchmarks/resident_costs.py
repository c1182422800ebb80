"""Prices for the router that leans: what it is expected to cost if an expert's output is missing, measured on training text.

To second order a change d of a layer's output at a token raises the loss by E[(g d)^2] / 2, where g is the gradient of log p(byte) with
respect to that output and the byte is drawn from the model's own prediction (the Fisher information; LeCun et al., Optimal Brain
Damage, 1990, prune weights by the same term). So the price of expert e where p is the best expert is the mean of (g y_e)^2 / 2 over the
tokens whose best expert is p, y_e being the output of e there, chosen or not. Few tokens have some p: prices are drawn towards
those of all tokens, as if `PRIOR` more had been seen with them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from traces.train import corpus

WINDOW, DRAWS, PRIOR = 1024, 2, 2000
"""PRIOR counts draws: as many as DRAWS x tokens."""


class Layer:
    """What one layer's hooks see in a pass: its normed input, its best experts, and where its output's gradient is read."""

    def __init__(self, block: Any, experts: int) -> None:
        self.block, self.experts = block, experts
        self.handle = block.register_forward_hook(self._saw)

    def _saw(self, module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        self.normed = inputs[0].detach().reshape(-1, output.shape[-1])
        self.best = self.block.gate(self.normed)[0].argmax(dim=1)
        self.probe = torch.zeros_like(output, requires_grad=True)
        return output + self.probe

    def products(self, gradients: list[torch.Tensor]) -> NDArray[np.float64]:
        """g y_e of every draw, token and expert [draws, tokens, experts]."""
        found = []
        for e in range(self.experts):
            of_all = torch.zeros(len(self.normed), 1, dtype=torch.int64) + e
            y = self.block.experts(self.normed, of_all, torch.ones(len(self.normed), 1))
            found.append([(y * g.reshape(y.shape)).sum(dim=1) for g in gradients])
        return np.stack([torch.stack(draws).numpy() for draws in found], axis=2).astype(np.float64)


def training_text(count: int) -> NDArray[np.int64]:
    """`count` windows [count, WINDOW + 1], spread evenly over the training text."""
    text = corpus.tokens(False).astype(np.int64)
    starts = np.linspace(0, len(text) - WINDOW - 1, count + 2).astype(np.int64)[1:-1]
    return np.stack([text[s : s + WINDOW + 1] for s in starts.tolist()])


def measure(model: Any, count: int) -> NDArray[np.float32]:
    """Prices [layers, best expert, expert] in nats, from `count` windows of training text."""
    experts = model.config.num_local_experts
    layers = [Layer(layer.mlp, experts) for layer in model.model.layers]
    sums = np.zeros((len(layers), experts, experts))
    seen = np.zeros((len(layers), experts))
    draw = torch.Generator().manual_seed(0)
    for row in training_text(count):
        gradients = _gradients(model, torch.from_numpy(row[None, :-1]), layers, draw)
        with torch.no_grad():
            for i, layer in enumerate(layers):
                squares, best = layer.products(gradients[i]) ** 2, layer.best.numpy()
                for p in range(experts):
                    sums[i, p] += squares[:, best == p].sum(axis=(0, 1))
                    seen[i, p] += DRAWS * int((best == p).sum())
    for layer in layers:
        layer.handle.remove()
    overall = sums.sum(axis=1) / seen.sum(axis=1)[:, None]
    return ((sums + PRIOR * overall[:, None]) / (seen + PRIOR)[:, :, None] / 2).astype(np.float32)


def _gradients(model: Any, ids: torch.Tensor, layers: list[Layer], draw: torch.Generator) -> list[list[torch.Tensor]]:
    """Of each layer, one of each draw: of the log probability of bytes that the model itself draws, with respect to its output."""
    with torch.enable_grad():
        logs = torch.log_softmax(model(ids).logits[0].float(), dim=1)
        by_draw = []
        for _ in range(DRAWS):
            drawn = torch.multinomial(logs.detach().exp(), 1, generator=draw)
            by_draw.append(torch.autograd.grad(logs.gather(1, drawn).sum(), [x.probe for x in layers], retain_graph=True))
    return [list(of_layer) for of_layer in zip(*by_draw, strict=True)]
