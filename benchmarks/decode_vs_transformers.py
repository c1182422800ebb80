"""Decode tokens/s of the plain loop beside transformers' MixtralForCausalLM: same weights, threads, tokens.

    python benchmarks/decode_vs_transformers.py [--threads 1,2] [--repeats 5]

Both sides run interleaved in one process on tiny-mixtral, and both decode the same number of greedy
tokens after the prefill, which is not timed. transformers gets its best settings on a CPU: sdpa
attention, inference mode, the faster of its caches and of its expert implementations.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import DynamicCache, MixtralForCausalLM, StaticCache  # noqa: E402

from exec.plain import PlainDecoder  # noqa: E402
from exec.products import set_threads  # noqa: E402
from exec.weights import load_weights, random_weights, save_hf  # noqa: E402
from sim.models import load  # noqa: E402


def ours(spec, weights, prompts: np.ndarray, gen: int) -> tuple[float, np.ndarray]:
    """Seconds of gen - 1 decode steps, and the last tokens."""
    plain = PlainDecoder(spec, weights, list(prompts), gen)
    plain.prefill()
    start = time.perf_counter()
    for _ in range(gen - 1):
        plain.step()
    return time.perf_counter() - start, plain.tokens


@torch.inference_mode()
def theirs(model, prompts: np.ndarray, gen: int, static: bool) -> tuple[float, np.ndarray]:
    config = model.config
    cache = StaticCache(config=config, max_cache_len=prompts.shape[1] + gen) if static else DynamicCache(config=config)
    logits = model(torch.from_numpy(prompts), past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    start = time.perf_counter()
    for _ in range(gen - 1):
        tokens = logits[:, -1].argmax(-1, keepdim=True)
        logits = model(tokens, past_key_values=cache, use_cache=True).logits
    last = logits[:, -1].argmax(-1)
    return time.perf_counter() - start, last.numpy()


def contenders(spec, weights, model, prompts, gen: int) -> Iterator[tuple[str, Callable[[], tuple[float, np.ndarray]]]]:
    yield "tandem plain loop", lambda: ours(spec, weights, prompts, gen)
    for experts in ("grouped_mm", "eager"):
        for static in (False, True):

            def run(experts=experts, static=static):
                model.set_experts_implementation(experts)
                return theirs(model, prompts, gen, static)

            yield f"transformers, {experts}, {'static' if static else 'dynamic'} cache", run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--gen", type=int, default=32)
    arguments = parser.parse_args()
    spec = load("tiny-mixtral")
    prompts = np.random.default_rng(0).integers(0, spec.vocab, (arguments.batch, arguments.prompt))
    with tempfile.TemporaryDirectory() as directory:
        save_hf(random_weights(spec, 0), spec, Path(directory))
        weights = load_weights(Path(directory), spec)
        model = MixtralForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa").eval()
    runs = list(contenders(spec, weights, model, prompts, arguments.gen))
    print(f"{spec.name}: batch {arguments.batch}, prompt {arguments.prompt}, {arguments.gen} tokens, fp32")
    for threads in map(int, arguments.threads.split(",")):
        set_threads(threads)
        samples: dict[str, list[float]] = {name: [] for name, _ in runs}
        last: dict[str, np.ndarray] = {name: run()[1] for name, run in runs}  # warm-up, and the outputs
        for _ in range(arguments.repeats):
            for name, run in runs:
                samples[name].append(run()[0])
        table(threads, arguments.batch * (arguments.gen - 1), samples, last)


def table(threads: int, tokens: int, samples: dict[str, list[float]], last: dict[str, np.ndarray]) -> None:
    best = min(statistics.median(s) for name, s in samples.items() if name.startswith("transformers"))
    print(f"\n{'threads ' + str(threads):42} {'tokens/s':>9} {'slowest':>9} {'fastest':>9} {'vs best':>8}  same tokens")
    mine = next(iter(last.values()))
    for name, s in samples.items():
        median = statistics.median(s)
        same = f"{(last[name] == mine).mean():.0%}"
        print(f"{name:42} {tokens / median:9.0f} {tokens / max(s):9.0f} {tokens / min(s):9.0f} {best / median:7.2f}x  {same}")


if __name__ == "__main__":
    main()
