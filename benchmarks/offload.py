"""CGOPipe on a small device budget against whole-layer offload, in one run, and the simulator beside both.

    python benchmarks/offload.py --device cuda --budget 16e9 [--machine PROFILE.yaml] [--layers N] [-o OUT]

A Mixtral-shaped model with random 16-bit experts, as many layers as host memory holds. The rival is what
`accelerate`'s CPU offload does with such a model: before each layer's forward, all of its weights are copied
from pageable memory to the device, in the one stream that computes, and dropped behind it; the batch goes
through a layer whole. Both generate the same number of tokens of the same prompts. Prints one JSON object; with
-o, both timelines (real and simulated) are written there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from exec.backends.cuda import decoder
from exec.backends.cuda.decoder import DeviceLayer
from exec.backends.cuda.experts import host_layer
from exec.bench.run import made
from exec.calibration.device import calibrate
from exec.devices import DeviceName, check, opened
from exec.execute import execute, simulated_twin, spec_of, timeline_of_twin, weights_of
from exec.local import free_bytes
from exec.prompts import byte_prompts
from exec.weights import Weights
from sim import machines
from sim.errors import UserError
from sim.job import Job, prepare
from sim.machines.schema import Machine, Memory
from sim.models.spec import ModelSpec
from sim.schedulers.policy import Policy
from sim.workloads.lengths import Fixed
from sim.workloads.schema import Workload
from traces.timeline import write_timeline

HOST_SHARE = 0.7
"""Part of the free host memory that experts may take."""


def model_for(name: str, layers: int | None) -> ModelSpec:
    """The shape with as many layers as the host holds, unless stated."""
    spec = spec_of(name, DeviceName.cuda)
    fit = int(HOST_SHARE * free_bytes() // spec.layer_expert_bytes)
    if fit < 2:
        size = spec.layer_expert_bytes
        raise UserError(f"--model {name}: experts of a layer have {size:,} bytes; the host has room for {fit} layers, 2 are needed")
    return replace(spec, layers=min(layers or spec.layers, fit, spec.layers))


def budgeted(machine: Machine, nbytes: int) -> Machine:
    gpu = Memory(bytes=nbytes, source="the budget of this benchmark")
    return machine.model_copy(update={"memories": {**machine.memories, "gpu": gpu}})


def job_for(spec: ModelSpec, machine: Machine, batch: int, microbatch: int, prompt: int, gen: int) -> Job:
    workload = Workload(name="offload", source="chosen for this benchmark", prompt=Fixed(tokens=prompt), generation=Fixed(tokens=gen))
    return prepare(spec, machine, workload, "cgopipe", Policy(batch=batch, microbatch=microbatch))


class WholeLayerOffload:
    """One stream; each layer's weights come from pageable memory when its turn is, and go again."""

    def __init__(self, spec: ModelSpec, weights: Weights, device: torch.device, rows: int, longest: int) -> None:
        self.spec, self.weights, self.device = spec, weights, device
        self.embed, self.head, self.norm = (torch.from_numpy(a).to(device) for a in (weights.embed, weights.lm_head, weights.final_norm))
        self.table = decoder.rope_table(spec.rope_theta, spec.head_dim, longest, device)
        shape = (spec.layers, rows * longest, spec.kv_dim // 2)
        self.k, self.v = (torch.empty(shape, device=device) for _ in range(2))
        self.longest = longest

    def layer(self, i: int) -> tuple[DeviceLayer, list[torch.Tensor]]:
        dense = DeviceLayer(*(torch.from_numpy(a).to(self.device) for a in self.weights.layers[i].arrays()))
        return dense, [torch.cat([part.to(self.device) for part in host_layer(self.weights.experts[i])])]

    def generate(self, prompts: torch.Tensor, gen: int) -> float:
        """Seconds to generate `gen` tokens of each of the prompts [S, P]; the prefill included."""
        s, spec = len(prompts), self.spec
        starts = torch.arange(s, device=self.device) * self.longest
        _wait(self.device)
        began = time.perf_counter()
        tokens, before = prompts, 0
        for _ in range(gen):
            width = tokens.shape[1]
            hidden = self.embed[tokens.flatten()]
            positions = (before + torch.arange(width, device=self.device)).repeat(s)
            for i in range(spec.layers):
                self._through(i, hidden, positions, starts, before, width)
            last = torch.arange(1, s + 1, device=self.device) * width - 1
            new = torch.empty(s, dtype=torch.int64, device=self.device)
            decoder.sample(spec, self.norm, self.head, hidden, last, new)
            tokens, before = new[:, None], before + width
        _wait(self.device)
        return time.perf_counter() - began

    def _through(self, i: int, hidden: torch.Tensor, positions: torch.Tensor, starts: torch.Tensor, before: int, width: int) -> None:
        spec = self.spec
        dense, experts = self.layer(i)
        qkv = hidden.new_empty((len(hidden), spec.qkv_dim))
        attn = hidden.new_empty((len(hidden), spec.attention_out_dim))
        decoder.pre_attn(spec, dense, hidden, positions, self.table, qkv)
        if before:
            counts = torch.full_like(starts, before)
            decoder.attn_decode(spec, qkv, self.k[i], self.v[i], starts, counts, before + 1, attn)
        else:
            decoder.attn_prefill(spec, qkv, [width * k for k in range(len(starts) + 1)], attn)
            decoder.append_kv(spec, qkv, self.k[i], self.v[i], starts.repeat_interleave(width) + positions)
        decoder.post_attn(spec, dense, experts, attn, hidden)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rival_batch(spec: ModelSpec, budget: int, longest: int, prompt: int) -> int:
    """Sequences that whole-layer offload has room for beside one layer: the KV cache stays on the device."""
    ends = 2 * spec.embedding_params * 4
    layer = spec.layer_expert_bytes * 2 + (spec.attention_params + spec.router_params) * 4
    sequence = spec.layers * longest * spec.kv_bytes_per_token_layer + prompt * 4 * (spec.qkv_dim + 4 * spec.top_k * spec.ffn)
    return max(1, int((0.9 * budget - ends - layer) // sequence))


def compare(args: argparse.Namespace) -> dict[str, Any]:
    spec = model_for(args.model, args.layers)
    profile = machines.load(args.machine) if args.machine else calibrate(lambda: opened(DeviceName.cuda), _say)
    machine = budgeted(profile, args.budget)
    job = job_for(spec, machine, args.batch, args.microbatch, args.prompt, args.gen)
    weights = weights_of(args.model, spec, 0)
    runs = [execute(job, weights, record_routing=True, device=DeviceName.cuda, graphs=args.graphs) for _ in range(args.repeats)]
    twin = simulated_twin(runs[0])
    measured = sorted(r.summary["makespan_s"] for r in runs)[len(runs) // 2]
    longest = args.prompt + args.gen
    batch = min(args.batch, rival_batch(spec, args.budget, longest, args.prompt))
    device = torch.device("cuda")
    torch.cuda.set_per_process_memory_fraction(min(1.0, args.budget / torch.cuda.get_device_properties(device).total_memory))
    rival = WholeLayerOffload(spec, weights, device, batch, longest)
    prompts = torch.tensor(byte_prompts([args.prompt] * batch), device=device)
    rival.generate(prompts, 1)
    rival_s = rival.generate(prompts, args.gen)
    if args.o is not None:
        write_timeline(args.o / "offload-measured.parquet", runs[0].timeline)
        write_timeline(args.o / "offload-simulated.parquet", timeline_of_twin(twin))
    ours, theirs = args.batch * args.gen / measured, batch * args.gen / rival_s
    return {
        "made": made(DeviceName.cuda), "model": spec.name, "layers": spec.layers, "budget_bytes": args.budget,
        "prompt": args.prompt, "gen": args.gen,
        "cgopipe": {"batch": args.batch, "microbatch": args.microbatch, "measured_s": [r.summary["makespan_s"] for r in runs],
                    "tokens_per_s": ours, "simulated_s": twin.summary["makespan_s"],
                    "simulator_error": twin.summary["makespan_s"] / measured - 1, "peak_bytes": runs[0].outcome.peak_bytes},
        "whole_layer_offload": {"batch": batch, "measured_s": rival_s, "tokens_per_s": theirs},
        "times_as_fast": ours / theirs,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=DeviceName, default=DeviceName.cuda, choices=[DeviceName.cuda])
    parser.add_argument("--budget", type=lambda text: int(float(text)), default=16 * 10**9, help="bytes of device memory to use")
    parser.add_argument("--machine", help="profile from calibrate --device cuda; default: calibrate first")
    parser.add_argument("--model", default="mixtral-8x7b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--microbatch", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--gen", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--graphs", action="store_true")
    parser.add_argument("-o", type=Path)
    args = parser.parse_args()
    try:
        check(args.device)
        found = compare(args)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
