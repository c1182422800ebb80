"""`generate`."""

from __future__ import annotations

from sim.cli import compiling, output
from sim.errors import UserError


def generate(model: str, prompt: str, scheduler: str, gen: int, as_json: bool) -> None:
    from pathlib import Path

    from exec.execute import execute, spec_of, weights_of
    from exec.local import this_computer
    from exec.tokenizer import load_tokenizer
    from sim.job import prepare
    from sim.schedulers.policy import Policy
    from sim.workloads.lengths import Fixed
    from sim.workloads.schema import Workload

    if not Path(model).is_dir():
        raise UserError(f"--model {model}: no such directory; one with config.json and safetensors is needed")
    spec = spec_of(model)
    tokenizer = load_tokenizer(Path(model), spec.vocab)
    ids = tokenizer.encode(prompt)
    if not ids:
        raise UserError("--prompt: is empty; text to go on from is needed")
    lengths = {"prompt": Fixed(tokens=len(ids)), "generation": Fixed(tokens=gen), "ends_early": True, "bound": gen}
    workload = Workload(name="prompt", source="given on the command line", **lengths)
    job = prepare(spec, this_computer(), workload, scheduler, Policy(batch=1, microbatch=1))
    eos = () if tokenizer.eos is None else (tokenizer.eos,)
    with output.progress(f"generating with {scheduler}"), compiling.told():
        done = execute(job, weights_of(model, spec, 0), [ids], eos=eos)
    tokens = done.outcome.tokens[0]
    text = tokenizer.decode([t for t in tokens if t not in eos])
    if as_json:
        facts = {"prompt": prompt, "text": text, "tokens": tokens, "scheduler": scheduler}
        output.print_json({**facts, "tokens_per_s": done.summary["tokens_per_s"]})
    else:
        print(prompt + text)
