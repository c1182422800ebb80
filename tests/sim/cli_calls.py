"""Calls of the command line that its tests share."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.cli.app import main
from traces.files import Provenance
from traces.routing import Routing, Shape, write_routing

Capture = pytest.CaptureFixture[str]
SMALL = ["--model", "tiny-mixtral", "--machine", "l4", "--workload", "mtbench", "--gen", "4", "--batch", "8", "--microbatch", "4"]
RUN = ["run", *SMALL, "--scheduler", "cgopipe"]


def with_flags(base: list[str], **flags: str) -> list[str]:
    """`base` with some flags replaced or added."""
    out = list(base)
    for name, value in flags.items():
        flag = "--" + name
        if flag in out:
            out[out.index(flag) + 1] = value
        else:
            out += [flag, value]
    return out


def run_json(capsys: Capture, arguments: list[str]) -> Any:
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert lines(captured.err) == []
    return json.loads(captured.out)


def lines(err: str) -> list[str]:
    """What was said on stderr, but for the compilation that only the first run ever waits for."""
    return [line for line in err.splitlines() if not line.startswith("note: compiling")]


def skewed_trace(path: Path, prompts: list[int], steps: int, *, experts: int = 8, k: int = 2, layers: int = 4) -> Path:
    """Every token of every request goes to experts 0 and 1."""
    rows = [(max(0, p - n + 1), i, p, layer) for i, n in enumerate(prompts) for p in range(n + steps) for layer in range(layers)]
    step, request, position, layer = np.array(rows, np.int32).T
    chosen = np.tile(np.arange(k, dtype=np.int16), (len(rows), 1))
    write_routing(path, Routing(
        decode=step > 0, step=step.copy(), request_id=request.copy(), position=position.copy(), layer=layer.astype(np.int16),
        experts=chosen, weights=np.full((len(rows), k), 0.5, np.float32), shape=Shape("tiny-mixtral", layers, experts, k),
        provenance=Provenance("synthetic", "every token to the same experts"),
    ))  # fmt: skip
    return path


def prompts_of_small_run() -> list[int]:
    from sim import workloads

    return [r.prompt_tokens for r in workloads.load("mtbench").requests(8)[0]]
