"""The training code: its mathematics against plain forms, its schedule, its resumption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training needs torch, which is not installed")

from traces.train import corpus, evaluate, loop, show  # noqa: E402
from traces.train.model import BLOCK, Config, Experts, LanguageModel, initialise, slots  # noqa: E402

TINY = Config(hidden=16, intermediate=12, layers=2, heads=2, kv_heads=1, experts=5, k=2, bfloat16=False)
RECIPE = loop.Recipe(steps=6, long_steps=2, batch=4, length=16, long_length=32, warmup=2, workers=1)


def plain_experts(m: Any, x: Any) -> Any:
    """Token by token, choice by choice."""
    share = (x @ m.gate.t()).softmax(-1)
    rows = []
    for t in range(len(x)):
        top = share[t].topk(m.c.k)
        out = 0
        for w, e in zip(top.values / top.values.sum(), top.indices.tolist(), strict=True):
            gate, up = (m.gate_up[e] @ x[t]).chunk(2)
            out = out + w * (m.down[e] @ (torch.nn.functional.silu(gate) * up))
        rows.append(out)
    return torch.stack(rows)


def test_experts_and_their_gradients_against_the_plain_form() -> None:
    torch.manual_seed(0)
    module = Experts(TINY)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.5)
    x = torch.randn(37, 16)
    found, wanted = [], []
    for out, into in ((lambda v: module(v)[0], found), (lambda v: plain_experts(module, v), wanted)):
        v = x.clone().requires_grad_()
        y = out(v)
        into.append(y.detach())
        (y * torch.arange(16.0)).sum().backward()
        into += [v.grad, *(p.grad.clone() for p in module.parameters())]
        module.zero_grad()
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_balance_loss_is_one_when_even_and_experts_when_on_one() -> None:
    module = Experts(replace(TINY, k=1))
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
        module.gate[0, 0] = 100.0
    on_one = module(torch.ones(10, 16))[1][0].item()
    assert on_one == pytest.approx(5.0)
    with torch.no_grad():
        module.gate.copy_(100 * torch.eye(5, 16))
    even = module(torch.eye(5, 16).repeat(4, 1))[1][0].item()
    assert even == pytest.approx(1.0)


def test_slots_give_each_choice_a_place_in_its_experts_block() -> None:
    chosen = torch.tensor([[0, 2], [2, 3], [2, 0]])
    source, place, counts, bounds = slots(chosen, 4)
    assert counts.tolist() == [2, 0, 3, 1] and bounds == [0, BLOCK, BLOCK, 2 * BLOCK, 3 * BLOCK]
    assert source[place].tolist() == [0, 0, 1, 1, 2, 2]
    assert (place // BLOCK).tolist() == [0, 1, 1, 2, 1, 0] and len(set(place.tolist())) == 6


def test_learning_rate() -> None:
    r = loop.Recipe(steps=100, long_steps=10, warmup=10)
    rates = [loop.learning_rate(r, s) for s in range(r.total)]
    assert rates[0] == pytest.approx(r.lr / 10) and rates[10] == pytest.approx(r.lr) and max(rates) == rates[10]
    assert rates[55] == pytest.approx((r.lr + r.final_lr) / 2) and rates[99] < 1.1 * r.final_lr + 1e-6
    assert rates[100] == pytest.approx(r.long_lr) and rates[-1] == pytest.approx(r.final_lr + (r.long_lr - r.final_lr) / 10)


def test_batches_are_windows_of_the_training_text() -> None:
    ids, targets = loop.batch(RECIPE, 3)
    assert ids.shape == (4, 16) and torch.equal(ids[:, 1:], targets[:, :-1])
    assert torch.equal(ids, loop.batch(RECIPE, 3)[0]) and not torch.equal(ids, loop.batch(RECIPE, 4)[0])
    assert loop.batch(RECIPE, 6)[0].shape == (2, 32)
    assert ids[0].numpy().astype(np.uint16).tobytes() in corpus.tokens(False).tobytes()


def state_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=True)["model"]
    return found


def test_the_same_seed_gives_the_same_model_also_when_resumed(tmp_path: Path) -> None:
    for name, stops in (("whole", (None,)), ("parts", (3, 7, None))):
        for until in stops:
            loop.train(TINY, RECIPE, tmp_path / name, until)
    loop.train(TINY, replace(RECIPE, seed=1), tmp_path / "other")
    whole, parts, other = (state_of(tmp_path / n) for n in ("whole", "parts", "other"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert not torch.equal(whole["head"], other["head"])


def test_two_workers_take_the_same_steps_as_one(tmp_path: Path) -> None:
    """Their gradients are the mean over halves of the batch; without the losses that look at a whole batch it is the same sum."""
    recipe = replace(RECIPE, balance=0.0, z=0.0)
    loop.train(TINY, recipe, tmp_path / "one", 2)
    loop.train(TINY, replace(recipe, workers=2), tmp_path / "two", 2)
    one, two = state_of(tmp_path / "one"), state_of(tmp_path / "two")
    start = LanguageModel(TINY)
    initialise(start, 0)
    for name, p in start.named_parameters():
        assert torch.allclose(one[name], two[name], atol=2e-4) and not torch.equal(one[name], p)


def test_no_text_of_the_evaluation_is_trained_on() -> None:
    root = corpus.library()
    trained = {p.relative_to(root).as_posix() for p in corpus.modules(False)}
    assert not trained & {*corpus.HELD_OUT, *corpus.TWINS}
    assert len(trained) > 200 and not any({"site-packages", "test", "tests"} & set(name.split("/")) for name in trained)


def test_kinds_of_text() -> None:
    source = b'def f(x):\n    """Doc."""\n    return x + 12  # why\ny = "a"\n'
    kinds = [evaluate.CLASSES[k] for k in evaluate._kinds(source)]
    text = source.decode()
    expected = {"def": "keyword", "f(": "name", '"""Doc': "docstring", "    return": "indentation", "12": "number", "# why": "comment"}
    for part, kind in {**expected, "+": "operator", '"a"': "string", "\ny": "space"}.items():
        assert kinds[text.index(part)] == kind, part


def test_scores_of_known_counts() -> None:
    even = np.zeros((1, 4, len(evaluate.CLASSES)), np.int64)
    even[0, :, 0] = even[0, :, 1] = 5
    scores = evaluate.Scores(2.0, 40, even)
    assert scores.load_entropy.tolist() == pytest.approx([1.0]) and scores.specialisation.tolist() == pytest.approx([0.0])
    told = np.zeros_like(even)
    told[0, :2, 0] = told[0, 2:, 1] = 5
    scores = evaluate.Scores(2.0, 20, told)
    assert scores.specialisation.tolist() == pytest.approx([1.0])
    assert show.lifts(told)[0, 0, :2].tolist() == [2.0, 0.0]
