"""Where does each kernel stand under the roofs of the built-in GPUs?

    python benchmarks/kernel_roofline.py [--model qwen3-30b-a3b] [--machines t4,l4,h100,h200] [--json]

FLOPs and bytes by the work formulas, at decode and prefill sizes of a model; the time that the tighter
of the two roofs of each machine profile allows, without the profile's latency and efficiencies: a floor.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from kernels import all_reduce, compaction, expert_ffn, page_gather, sample
from kernels.cost import Cost
from sim import machines, models
from sim.cli.output import print_table
from sim.models.spec import ModelSpec
from sim.ops import components
from sim.tasks import Work

CONTEXT, PROMPT = 1024, 1024
PAGE_BYTES = 16 << 20
RANKS = 8


def model_rows(model: ModelSpec) -> Iterator[tuple[str, str, Cost]]:
    """(op, shape, cost) of the kernels of one layer and of sampling: decode of 1 and 64 sequences, one prompt."""
    for sequences in (1, 64):
        tasks = (
            Work("pre_attn", tokens=sequences, sequences=sequences),
            Work("attn_decode", tokens=sequences, sequences=sequences, context=sequences * CONTEXT),
            Work("post_attn", tokens=sequences, sequences=sequences, experts=model.experts),
            Work("sample", tokens=sequences, sequences=sequences),
        )
        yield from _merged(model, tasks, f"decode, {sequences}")
    pairs = PROMPT * (PROMPT + 1) // 2
    tasks = (
        Work("pre_attn", tokens=PROMPT, sequences=1),
        Work("attn_prefill", tokens=PROMPT, sequences=1, context=pairs),
        Work("post_attn", tokens=PROMPT, sequences=1, experts=model.experts),
    )
    yield from _merged(model, tasks, f"prefill, {PROMPT}")


def _merged(model: ModelSpec, tasks: tuple[Work, ...], shape: str) -> Iterator[tuple[str, str, Cost]]:
    """Components of the tasks, those of one op added up."""
    found: dict[str, Cost] = {}
    for part in (part for task in tasks for part in components(model, task)):
        found[part.op] = found.get(part.op, Cost(0, 0)) + part.cost
    yield from ((op, shape, cost) for op, cost in found.items())


def other_rows(model: ModelSpec) -> Iterator[tuple[str, str, Cost]]:
    """Ops that are no part of a layer on one GPU."""
    vocab, b = model.vocab, model.dtype_bytes
    yield "expert_ffn, fp8", "one expert, 1 row", expert_ffn.work(1, model.hidden, model.ffn, 1)
    yield "draw (top-p)", "64 sequences", sample.draw_work(64, vocab, b)
    yield "all_reduce", f"64 tokens, one of {RANKS} ranks", all_reduce.ring_work(RANKS, 64 * model.hidden, b)
    yield "page_gather", "32 pages of 16 MiB", page_gather.work(32, PAGE_BYTES)
    yield "compaction", "1 GiB moved", compaction.work(1 << 28, (1 << 28) // compaction.CHUNK)


def roof(machine: Any, cost: Cost) -> tuple[float, str]:
    """(seconds, the roof that sets them) on a machine's GPU."""
    compute = cost.flops / machine.resources["gpu.flops"].capacity
    memory = cost.bytes / machine.resources["gpu.memory"].capacity
    return max(compute, memory), "compute" if compute > memory else "memory"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen3-30b-a3b")
    parser.add_argument("--machines", default="t4,l4,h100,h200")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model, boxes = models.load(args.model), [machines.load(name) for name in args.machines.split(",")]
    rows = []
    for op, shape, cost in [*model_rows(model), *other_rows(model)]:
        roofs = {box.name: roof(box, cost) for box in boxes}
        rows.append({
            "op": op, "shape": shape, "flops": cost.flops, "bytes": cost.bytes, "flops_per_byte": cost.flops / cost.bytes,
            "floor_s": {name: seconds for name, (seconds, _) in roofs.items()}, "roof": {name: which for name, (_, which) in roofs.items()},
        })  # fmt: skip
    if args.json:
        print(json.dumps({"model": model.name, "rows": rows}, indent=2))
        return
    columns = ("op", "shape", "MFLOP", "MB", "FLOP/B", *(f"{box.name}, us" for box in boxes))
    print_table(f"floors by the machine profiles, {model.name}, {model.dtype} (c: compute, else memory)", columns, [
        (r["op"], r["shape"], f"{r['flops'] / 1e6:.3g}", f"{r['bytes'] / 1e6:.3g}", f"{r['flops_per_byte']:.2g}",
         *(f"{r['floor_s'][b.name] * 1e6:.3g}{' c' if r['roof'][b.name] == 'compute' else ''}" for b in boxes))
        for r in rows
    ])  # fmt: skip


if __name__ == "__main__":
    main()
