"""The training loop: AdamW, cosine schedule, seeded batches, a state file from which it goes on."""

from __future__ import annotations

import ctypes
import math
import os
import time
from dataclasses import dataclass, replace
from multiprocessing.context import SpawnContext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from traces.train import corpus
from traces.train.model import Config, LanguageModel, initialise


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that the result depends on, beside `Config`, the Python version and the processor.

    `steps` with short windows, in which most is learnt cheaply, then `long_steps` with long ones (of as many tokens a step), so
    that the model holds for contexts of that length.
    """

    seed: int = 0
    steps: int = 2000
    workers: int = 2
    batch: int = 32
    length: int = 256
    long_steps: int = 150
    long_length: int = 1024
    lr: float = 3e-3
    long_lr: float = 5e-4
    final_lr: float = 3e-5
    warmup: int = 100
    decay: float = 0.1
    clip: float = 1.0
    balance: float = 0.01
    z: float = 0.001

    @property
    def total(self) -> int:
        return self.steps + self.long_steps


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to `final_lr`; for the long windows a straight line from `long_lr` down to it."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    if step >= recipe.steps:
        left = (recipe.total - step) / recipe.long_steps
        return recipe.final_lr + (recipe.long_lr - recipe.final_lr) * left
    part = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.final_lr + 0.5 * (recipe.lr - recipe.final_lr) * (1 + math.cos(math.pi * part))


def batch(recipe: Recipe, step: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets [batch, length] of a step: windows at seeded places, the same whether the run was resumed or not."""
    rows, length = recipe.batch, recipe.length
    if step >= recipe.steps:
        rows, length = rows * length // recipe.long_length, recipe.long_length
    text = corpus.tokens(False)
    starts = np.random.default_rng((recipe.seed, step)).integers(0, len(text) - length - 1, rows)
    ids = torch.from_numpy(np.stack([text[s : s + length + 1] for s in starts.tolist()]).astype(np.int64))
    return ids[:, :-1], ids[:, 1:]


def optimizer(model: LanguageModel, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": recipe.decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), eps=1e-9, fused=True)


class Shards:
    """Gradients of the workers in shared memory; two buffers in turn, so that one barrier a step is enough.

    A worker computes its part of the batch on one core: cores meet once a step rather than in each matrix product, which is faster
    (and far faster while other programs run), and the sums do not depend on the number of threads of a library.
    """

    def __init__(self, workers: int, parameters: int, context: SpawnContext) -> None:
        self.workers = workers
        self.gradients = _shared(torch.zeros(2, workers, parameters))
        self.figures = _shared(torch.zeros(2, workers, 2, dtype=torch.float64))
        self.barrier = context.Barrier(workers)

    def mean(self, rank: int, step: int, model: LanguageModel, figures: tuple[float, float]) -> tuple[float, float]:
        """Put the mean of all workers' gradients into the model's; also the mean of two figures."""
        turn = step % 2
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        torch.cat([g.flatten() for g in grads], out=self.gradients[turn, rank])
        self.figures[turn, rank] = torch.tensor(figures, dtype=torch.float64)
        self.barrier.wait(timeout=600)
        total = self.gradients[turn].mean(0)
        for g, part in zip(grads, torch.split(total, [g.numel() for g in grads]), strict=True):
            g.copy_(part.view_as(g))
        bits, balance = self.figures[turn].mean(0).tolist()
        return bits, balance


def _shared(t: Tensor) -> Tensor:
    t.share_memory_()  # type: ignore[no-untyped-call]
    return t


def step_once(
    model: LanguageModel, adam: torch.optim.AdamW, recipe: Recipe, step: int, shards: Shards | None = None, rank: int = 0
) -> tuple[float, float]:
    """One update; (bits per byte of the batch, balance loss: 1 when uniform)."""
    for group in adam.param_groups:
        group["lr"] = learning_rate(recipe, step)
    ids, targets = batch(recipe, step)
    if shards is not None:
        ids, targets = ids[rank :: shards.workers], targets[rank :: shards.workers]
    logits, extra, _ = model(ids)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    (loss + recipe.balance * extra[0] + recipe.z * extra[1]).backward()
    figures = loss.item() / math.log(2), extra[0].item()
    if shards is not None:
        figures = shards.mean(rank, step, model, figures)
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    adam.step()
    adam.zero_grad(set_to_none=True)
    return figures


def train(config: Config, recipe: Recipe, state: Path, until: int | None = None) -> None:
    """Train from the seed, or go on from the file `state`, which is renewed every 100 steps and at the end.

    `until` stops early, for a check.
    """
    context = torch.multiprocessing.get_context("spawn")
    parameters = sum(p.numel() for p in LanguageModel(config).parameters())
    shards = Shards(recipe.workers, parameters, context)
    others = [context.Process(target=_work, args=(config, recipe, state, until, shards, r), daemon=True) for r in range(1, recipe.workers)]
    for process in others:
        process.start()
    _work(config, recipe, state, until, shards, 0)
    for process in others:
        process.join()


def _work(config: Config, recipe: Recipe, state: Path, until: int | None, shards: Shards, rank: int) -> None:
    torch.set_num_threads(1)
    keep_memory()
    model = LanguageModel(config)
    initialise(model, recipe.seed)
    adam = optimizer(model, recipe)
    first = _resume(state, model, adam) if state.exists() else 0
    shards.barrier.wait(timeout=600)
    last = recipe.total if until is None else until
    began, sums, since = time.perf_counter(), [0.0, 0.0], 0
    for step in range(first, last):
        bits, balance = step_once(model, adam, recipe, step, shards, rank)
        if rank:
            continue
        sums, since = [sums[0] + bits, sums[1] + balance], since + 1
        if (step + 1) % 50 == 0 or step + 1 == last:
            spent = time.perf_counter() - began
            rate = (step + 1 - first) * recipe.batch * recipe.length / spent
            figures = f"{sums[0] / since:.6f} bits/byte in training, balance {sums[1] / since:.4f}"
            print(f"step {step + 1}: {figures}; {spent:.0f} s, {rate:.0f} tokens/s", flush=True)
            sums, since = [0.0, 0.0], 0
        if (step + 1) % 100 == 0 or step + 1 == last:
            _save(state, model, adam, step + 1)


def keep_memory() -> None:
    """Tell glibc to keep freed memory: a training step asks for the same gigabytes again and again, and page faults cost a third of it."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_mmap_max, m_trim_threshold = -4, -1
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def trained(config: Config, state: Path) -> LanguageModel:
    """The model of a state file, for float32 arithmetic."""
    model = LanguageModel(replace(config, bfloat16=False))
    model.load_state_dict(torch.load(state, weights_only=True)["model"])
    return model


def _save(path: Path, model: LanguageModel, adam: torch.optim.AdamW, step: int) -> None:
    part = path.with_name(path.name + ".part")
    torch.save({"model": model.state_dict(), "adam": adam.state_dict(), "step": step}, part)
    os.replace(part, path)


def _resume(path: Path, model: LanguageModel, adam: torch.optim.AdamW) -> int:
    found = torch.load(path, weights_only=True)
    model.load_state_dict(found["model"])
    adam.load_state_dict(found["adam"])
    return int(found["step"])
