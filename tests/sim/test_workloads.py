"""Workloads: published means and maxima, seeds, YAML errors, and the outcome source."""

from pathlib import Path

import pytest

from sim import workloads
from sim.errors import UserError
from sim.tasks import Task, Work


@pytest.mark.parametrize(
    ("name", "prompts", "mean", "longest", "generation"),
    [("mtbench", 80, 77, 418, 128), ("helm-reasoning", 100, 242, 256, 50), ("helm-summarization", 100, 1693, 1984, 64)],
)
def test_published_lengths(name: str, prompts: int, mean: float, longest: int, generation: int) -> None:
    for seed in (0, 5):
        requests, lengths = workloads.load(name).requests(3 * prompts, seed)
        drawn = [r.prompt_tokens for r in requests]
        assert sum(drawn) / len(drawn) == mean
        assert max(drawn) == longest
        assert {r.output_tokens for r in requests} == set(lengths) == {generation}


def test_a_corpus_repeats_in_another_order_each_round() -> None:
    requests, _ = workloads.load("mtbench").requests(160)
    first, second = [r.prompt_tokens for r in requests[:80]], [r.prompt_tokens for r in requests[80:]]
    assert first != second
    assert sorted(first) == sorted(second)


@pytest.mark.parametrize("name", ["mtbench", "mixed"])
def test_lengths_follow_from_seed_and_number_only(name: str) -> None:
    workload = workloads.load(name)
    short, long = workload.requests(50, 7), workload.requests(90, 7)
    assert long[0][:50] == short[0]
    assert long[1][:50] == short[1]
    assert workload.requests(50, 8)[0] != short[0]


def test_mixed_hides_the_true_length() -> None:
    requests, lengths = workloads.load("mixed").requests(400, 1)
    assert all(r.output_tokens is None and r.max_output_tokens == 64 for r in requests)
    assert 2 <= min(lengths) < 10 < 50 < max(lengths) <= 64
    assert sum(lengths) / 400 == pytest.approx(24, rel=0.1)
    assert len({r.prompt_tokens for r in requests}) > 50


def test_generation_override() -> None:
    fixed = workloads.load("mtbench").with_generation(32)
    assert set(fixed.requests(10)[1]) == {32}
    drawn = workloads.load("mixed").with_generation(16)
    requests, lengths = drawn.requests(200)
    assert all(r.max_output_tokens == 16 for r in requests)
    assert 1 <= min(lengths) < 4 < 12 < max(lengths) <= 16
    with pytest.raises(UserError, match="--gen: is 0; at least 1 token"):
        fixed.with_generation(0)


def test_padded_prompts_are_as_long_as_the_longest() -> None:
    requests, _ = workloads.load("mtbench").with_padding().requests(5)
    assert [r.prompt_tokens for r in requests] == [418] * 5


def write(directory: Path, text: str) -> Path:
    path = directory / "w.yaml"
    path.write_text(text)
    return path


HEAD = "name: own\nsource: made up for a test\n"


def test_own_file(tmp_path: Path) -> None:
    text = HEAD + "prompt: {kind: values, tokens: [3, 5]}\ngeneration: {kind: uniform, min: 2, max: 4}\n"
    requests, lengths = workloads.load(write(tmp_path, text)).requests(60)
    assert [r.prompt_tokens for r in requests[:3]] == [3, 5, 3]
    assert set(lengths) == {2, 3, 4}
    assert all(r.output_tokens == n for r, n in zip(requests, lengths, strict=True))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("{kind: fixed, tokens: 0}", r"prompt\.fixed\.tokens: Input should be greater than 0 \(is 0\)"),
        ("{kind: uniform, min: 9, max: 4}", "min 9 is above max 4"),
        ("{kind: lognormal, mean: 500, max: 418, sigma: 0.8}", "mean 500 must lie between min 1 and max 418"),
        ("{kind: zipf}", "prompt: Input tag 'zipf'"),
        ("{kind: values, tokens: []}", r"prompt\.values\.tokens: .*at least 1 item"),
    ],
)
def test_bad_distributions(tmp_path: Path, prompt: str, message: str) -> None:
    text = f"{HEAD}prompt: {prompt}\ngeneration: {{kind: fixed, tokens: 4}}\n"
    with pytest.raises(UserError, match=message) as e:
        workloads.load(write(tmp_path, text))
    assert "\n" not in str(e.value)


def test_unreachable_mean_is_refused(tmp_path: Path) -> None:
    text = HEAD + "prompt: {kind: lognormal, mean: 2, max: 1000, sigma: 3, distinct: 2}\ngeneration: {kind: fixed, tokens: 4}\n"
    with pytest.raises(UserError, match="mean 2 cannot be reached"):
        workloads.load(write(tmp_path, text))


def test_all_errors_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as e:
        workloads.load(write(tmp_path, "name: own\npromt: {tokens: 4}\n"))
    for part in ("source: missing", "prompt: missing", "generation: missing", "promt: unknown field"):
        assert part in str(e.value)


@pytest.mark.parametrize("text", ["name: [", "prompt: {kind: fixed, tokens: 4", "just words"])
def test_malformed(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"w\.yaml: "):
        workloads.load(write(tmp_path, text))


def test_unknown_name() -> None:
    with pytest.raises(UserError, match="--workload: unknown name 'mtbensh'; did you mean 'mtbench'"):
        workloads.load("mtbensh")


def sample(step: int, *requests: int) -> Task:
    return Task(number=step, work=Work("sample", tokens=len(requests)), lane="gpu", phase="decode", step=step, requests=requests)


def test_outcomes_count_tokens_from_a_sequences_own_first() -> None:
    outcomes = workloads.Outcomes((2, 3, 1))
    assert outcomes(sample(0, 0, 1)).ended == ()
    assert outcomes(sample(1, 0, 1)).ended == (0,)
    assert outcomes(sample(2, 1, 2)).ended == (1, 2)
    assert outcomes(sample(3, 0)).ended == ()
    assert outcomes(Task(9, Work("embed"))).ended == ()


class EvenRouting:
    def expert_tokens(self, requests: tuple[int, ...], phase: str, step: int, layer: int) -> tuple[int, ...] | None:
        return (len(requests), layer) if phase == "decode" else None


def test_outcomes_tell_the_routers_choice() -> None:
    outcomes = workloads.Outcomes((5, 5), EvenRouting())
    routed = Task(1, Work("post_attn", experts=2), "gpu", phase="decode", layer=3, requests=(0, 1))
    assert outcomes(routed).experts == (2, 3)
    assert outcomes(Task(2, Work("post_attn", experts=2), "gpu", phase="prefill", layer=3, requests=(0, 1))).experts == ()
