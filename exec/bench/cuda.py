"""Cases of the GPU: our Numba-CUDA kernels, torch as it is, and torch replayed as a CUDA graph.

The graph is what an unfused path costs without its launches: the baseline that counts at decode sizes.
Inputs of a routed layer take turns, so that its experts are not those that a cache still holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from exec.backends.cuda import decoder, grouped
from exec.bench.case import Case, Ceilings, Work
from exec.bench.cpu import CONTEXTS
from kernels import attention, combine, dispatch, embed, expert_ffn, linear, rms_norm, router, sample
from kernels.cost import Cost
from sim import models
from sim.models.spec import ModelSpec
from sim.schedulers.ticket import body_of, tiles_of

CUDA = torch.device("cuda")
TURNS = 8
"""Inputs of a fused layer that take turns."""

DECODE_BATCHES = (1, 2, 4, 8, 16, 64)
MODELS = ("qwen3-30b-a3b", "mixtral-8x7b")


def cases(device: torch.device = CUDA) -> dict[str, Callable[[], Iterator[Case]]]:
    """Makers of cases by op. On another device than a GPU they have torch's eager form only."""
    makers = {
        "router": _router, "dispatch+combine": _dispatch_combine, "attn_decode": _attn_decode, "fused_moe": _moe, "linear": _linear,
        "rms_norm": _rms_norm, "embed": _embed, "sample": _sample,
    }  # fmt: skip
    return {op: (lambda make=make: make(device)) for op, make in makers.items()}


def by_events(work: Work, count: int) -> float:
    """Seconds of `count` calls between two events of the current stream."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(count):
        work()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) * 1e-3


def ceilings() -> Ceilings:
    """Large products by dtype, and a copy that counts bytes read and written."""
    flops = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn((8192, 8192), device=CUDA, dtype=dtype) for _ in range(2))
        a @ b
        flops[f"{name}/0"] = max(2 * 8192**3 / by_events(lambda a=a, b=b: a @ b, 3) * 3 for _ in range(3))
    source = torch.ones(1 << 30, dtype=torch.uint8, device=CUDA)
    target = torch.empty_like(source)
    target.copy_(source)
    width = max(2 * source.nbytes / by_events(lambda: target.copy_(source), 4) * 4 for _ in range(4))
    return Ceilings(flops, {0: width})


def graphed(work: Work) -> Work:
    """`work` captured on a side stream, after it has run there a few times."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def _variants(device: torch.device, ours: Work | None, by_torch: Work, name: str) -> dict[str, Work]:
    """What can be timed on the device, ours first."""
    if device.type != "cuda":
        return {name: by_torch}
    mine: dict[str, Work] = {}
    if ours is not None and grouped.how(device, torch.float32) == grouped.NUMBA:
        mine = {"kernel": ours, "kernel, graph": graphed(ours)}
    return {**mine, name: by_torch, f"{name}, graph": graphed(by_torch)}


def _case(
    op: str, shape: str, cost: Cost, device: torch.device, by_torch: Work, name: str, ours: Work | None = None,
    check: Work | None = None, dtype: str = "bf16",
) -> Case:  # fmt: skip
    return Case(op, shape, dtype, 0, cost, _variants(device, ours, by_torch, name), check if ours is not None else None)


def _randn(device: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, device=device, dtype=dtype)


def _agree(found: torch.Tensor, wanted: Callable[[], torch.Tensor], device: torch.device, within: float = 2e-2) -> Work:
    def check() -> None:
        if device.type == "cuda" and grouped.how(device, torch.float32) == grouped.NUMBA:
            error = (found.float() - wanted().float()).norm() / wanted().float().norm()
            assert error < within, f"results differ by {float(error):.2e}"

    return check


def _router(device: torch.device) -> Iterator[Case]:
    for tokens, experts, k in ((1, 8, 2), (1, 128, 8), (4096, 128, 8)):
        logits = _randn(device, tokens, experts, dtype=torch.float32)
        yield _case(
            "router", f"{tokens} tokens, {experts} experts, top-{k}", router.select_work(tokens, experts, k, 4), device,
            lambda logits=logits, k=k: decoder.route(logits, k, None), "torch topk + softmax", dtype="fp32",
        )  # fmt: skip


def _dispatch_combine(device: torch.device) -> Iterator[Case]:
    hidden = 2048
    for tokens, experts, k in ((16, 128, 8), (2048, 128, 8), (2048, 8, 2)):
        x, out = _randn(device, tokens, hidden), torch.zeros((tokens, hidden), dtype=torch.bfloat16, device=device)
        ids = _randn(device, tokens, experts, dtype=torch.float32).topk(k).indices
        short = ids.to(torch.int16)
        weights = torch.full((tokens, k), 1 / k, device=device)
        offsets, positions = (torch.empty(s, dtype=torch.int32, device=device) for s in ((experts + 1,), (tokens, k)))
        counts = torch.empty(dispatch.counts_shape(tokens, k, experts), dtype=torch.int32, device=device)
        rows = torch.empty((tokens * k, hidden), dtype=torch.bfloat16, device=device)

        def ours(x=x, short=short, offsets=offsets, positions=positions, rows=rows, counts=counts, weights=weights, out=out) -> None:
            stream = grouped.numba_stream()
            dispatch.forward_cuda(x, short, offsets, positions, rows, counts, stream=stream)
            combine.forward_cuda(rows, positions, weights, out, stream=stream)

        def by_torch(x=x, ids=ids, weights=weights, k=k) -> torch.Tensor:
            order = ids.flatten().argsort(stable=True)
            gathered = x[order // k]
            scaled = gathered * weights.flatten()[order, None].to(x.dtype)
            return torch.zeros_like(x).index_add_(0, order // k, scaled)

        def check(out=out, ours=ours, by_torch=by_torch) -> None:
            out.zero_()
            ours()
            _agree(out, by_torch, device)()

        yield _case(
            "dispatch+combine", f"{tokens} tokens, {experts} experts, top-{k}, hidden {hidden}",
            dispatch.work(tokens, k, hidden, 2) + combine.work(tokens, k, hidden, 2), device, by_torch, "torch index + scatter",
            ours, check,
        )  # fmt: skip


def _attn_decode(device: torch.device) -> Iterator[Case]:
    heads, kv_heads, d = 32, 4, 128
    for sequences in (1, 16):
        for context in CONTEXTS:
            q = _randn(device, sequences, heads, 1, d)
            k, v = (_randn(device, sequences, kv_heads, context, d) for _ in range(2))
            yield _case(
                "attn_decode", f"{sequences} sequences, context {context}, {heads} heads over {kv_heads}, D {d}",
                attention.decode_work(sequences, sequences * context, heads, kv_heads, d, 2), device,
                lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), "torch scaled_dot_product_attention",
            )  # fmt: skip


def _moe(device: torch.device) -> Iterator[Case]:
    """A whole routed layer from logits on: route, dispatch, experts, combine."""
    for name in MODELS if device.type == "cuda" else ("tiny-mixtral",):
        spec = models.load(name)
        for batch in DECODE_BATCHES:
            yield _moe_layer(spec, batch, device)


def _moe_layer(spec: ModelSpec, batch: int, device: torch.device) -> Case:
    """A call is TURNS layers over as many inputs: they touch other experts each, as a model's layers would, and a
    graph holds them all."""
    flat = _randn(device, spec.experts * 3 * spec.hidden * spec.ffn) * spec.hidden**-0.5
    inputs = [_randn(device, batch, spec.hidden, dtype=torch.float32) for _ in range(TURNS)]
    gate = _randn(device, spec.experts, spec.hidden, dtype=torch.float32)
    touched = spec.experts * (1 - (1 - spec.top_k / spec.experts) ** batch)
    one = expert_ffn.work(max(1, round(batch * spec.top_k / touched)), spec.hidden, spec.ffn, 2)
    cost = Cost(6 * batch * spec.top_k * spec.hidden * spec.ffn, round(one.bytes * touched))

    def by_torch() -> torch.Tensor:
        for x in inputs:
            hidden = x.clone()
            ids, weights = decoder.route(x @ gate.t(), spec.top_k, None)
            rows, offsets, back = decoder.dispatch(spec, x, ids)
            decoder.combine(grouped.expert_ffn(spec, [flat], rows, offsets), back, weights, hidden)
        return hidden

    out = torch.empty((batch, spec.hidden), dtype=torch.bfloat16, device=device)
    ours = _fused(spec, inputs, gate, flat, out) if device.type == "cuda" else None
    shape = f"{spec.name}: {batch} tokens, {spec.experts} experts, top-{spec.top_k}, hidden {spec.hidden}, ffn {spec.ffn}"
    name = f"torch, {grouped.how(device, torch.bfloat16)}"
    return replace(
        _case("fused_moe", shape, cost, device, by_torch, name, ours, _agree(out, by_torch, device, 5e-2)), calls=TURNS
    )


def _fused(spec: ModelSpec, inputs: Sequence[torch.Tensor], gate: torch.Tensor, flat: torch.Tensor, out: torch.Tensor) -> Work:
    """The single launch, over the list of the `ticket` scheduler."""
    from exec.fused import program_of
    from kernels.fused_moe.gpu import BLOCKS_PER_SM, DeviceLaunch
    from kernels.fused_moe.host import Layer

    device, batch = out.device, len(out)
    tiles = tiles_of(spec, batch)
    blocks = BLOCKS_PER_SM[tiles.decode] * torch.cuda.get_device_properties(device).multi_processor_count
    launch = DeviceLaunch(tiles, program_of(body_of(tiles)), blocks, np.uint16, lambda a: _placed(a, device))
    ids = torch.empty((batch, spec.top_k), dtype=torch.int16, device=device)
    shares = torch.empty((batch, spec.top_k), dtype=torch.float32, device=device)
    layers = [Layer(rows, gate.bfloat16(), flat, rows, out, ids, shares) for rows in (x.bfloat16() for x in inputs)]

    def run() -> None:
        stream = grouped.numba_stream()
        for layer in layers:
            launch(layer, stream)

    return run


def _placed(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array on the device; uint16 stands for bfloat16, which NumPy lacks."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(array).to(device)


def _linear(device: torch.device) -> Iterator[Case]:
    for rows in (1, 16, 128):
        x, w = _randn(device, rows, 2048), _randn(device, 5120, 2048)
        out = torch.empty((rows, 5120), dtype=torch.bfloat16, device=device)
        yield _case(
            "linear", f"{rows} x 2048 x 5120", linear.work(rows, 2048, 5120, 2), device, lambda x=x, w=w: x @ w.t(), "torch mm",
            lambda x=x, w=w, out=out: linear.forward_cuda(x, w, out, stream=grouped.numba_stream()),
            _agree(out, lambda x=x, w=w: x @ w.t(), device),
        )  # fmt: skip


def _rms_norm(device: torch.device) -> Iterator[Case]:
    weight = _randn(device, 2048)
    for rows in (1, 64, 4096):
        x, out = _randn(device, rows, 2048), torch.empty((rows, 2048), dtype=torch.bfloat16, device=device)
        yield _case(
            "rms_norm", f"{rows} x 2048", rms_norm.work(rows, 2048, 2), device,
            lambda x=x: F.rms_norm(x, (2048,), weight, 1e-5), "torch rms_norm",
            lambda x=x, out=out: rms_norm.forward_cuda(x, weight, 1e-5, out, stream=grouped.numba_stream()),
            _agree(out, lambda x=x: F.rms_norm(x, (2048,), weight, 1e-5), device),
        )  # fmt: skip


def _embed(device: torch.device) -> Iterator[Case]:
    table = _randn(device, 32000, 2048)
    for tokens in (16, 4096):
        ids = torch.randint(0, 32000, (tokens,), device=device)
        out = torch.empty((tokens, 2048), dtype=torch.bfloat16, device=device)
        yield _case(
            "embed", f"{tokens} of 32000 x 2048", embed.work(tokens, 2048, 2), device, lambda ids=ids: table[ids], "torch index",
            lambda ids=ids, out=out: embed.forward_cuda(table, ids, out, stream=grouped.numba_stream()),
            _agree(out, lambda ids=ids: table[ids], device),
        )  # fmt: skip


def _sample(device: torch.device) -> Iterator[Case]:
    for sequences in (1, 64):
        logits = _randn(device, sequences, 32000, dtype=torch.float32)
        yield _case(
            "sample", f"argmax of {sequences} x 32000", sample.argmax_work(sequences, 32000, 4), device,
            lambda logits=logits: logits.argmax(-1), "torch argmax", dtype="fp32",
        )  # fmt: skip
