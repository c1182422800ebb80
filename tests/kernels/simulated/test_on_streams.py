"""What the CUDA backend launches for a fused layer, in the CUDA simulator: the kernel of the GPU on a stand-in's stream."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from exec.backends.cuda import decoder, fused
from exec.backends.cuda.decoder import DeviceLayer
from exec.backends.cuda.fused import StreamLayers
from exec.backends.cuda.standin import StandIn
from kernels.cuda.sync import tick
from kernels.fused_moe.tiles import Shape
from sim.schedulers.ticket import body_of, tiles_of
from tests.kernels.moe import model_of

SPEC = model_of(16, 8, 4, 2)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("tokens", "dtype"), [(2, torch.float32), (2, torch.bfloat16), (17, torch.float32)])
def test_a_layer_in_one_launch(tokens: int, dtype: torch.dtype) -> None:
    """As op by op, twice: counters are left ready, everything else may hold anything."""
    device = StandIn()
    stream = device.stream("gpu")
    layers, body = StreamLayers(device, stream, dtype, 2), body_of(tiles_of(SPEC, tokens, blocks=2))
    launch = layers.launch(body, Shape(tokens, SPEC.hidden, SPEC.ffn, SPEC.experts, SPEC.top_k))
    assert launch is not None and layers.launch(body, Shape(1, 1, 1, 1, 1)) is launch
    h = SPEC.hidden
    weights = DeviceLayer(random(h), random(1), random(h, h), random(h), random(SPEC.experts, h))
    experts = (random(SPEC.experts * 3 * h * SPEC.ffn) * h**-0.5).to(dtype)
    for _ in range(2):
        attn, hidden = random(tokens, h), random(tokens, h)
        wanted, found, kept = hidden.clone(), [], layers.keep(body)
        ids, shares = decoder.post_attn(SPEC, weights, [experts], attn, wanted)
        began = time.perf_counter_ns()
        stream.run(lambda: found.extend(fused.post_attn(SPEC, weights, experts, attn, hidden, launch, kept)))  # noqa: B023
        stream.record().synchronize()
        start, end, surplus = fused.stamps_in(kept)
        limit = 1e-5 if dtype == torch.float32 else 2e-2
        assert torch.equal(found[0], ids) and (found[1] - shares).abs().max() < limit
        assert (hidden - wanted).abs().max() < limit * wanted.abs().max()
        assert (began <= start).all() and (start <= end).all() and (end <= time.perf_counter_ns()).all() and not surplus.all()
    device.close()


def test_sizes_that_the_kernel_does_not_do() -> None:
    device, odd = StandIn(), model_of(12, 8, 4, 2)
    layers, body = StreamLayers(device, device.stream("gpu"), torch.float32, 2), body_of(tiles_of(odd, 2, blocks=2))
    assert layers.launch(body, Shape(2, odd.hidden, odd.ffn, odd.experts, odd.top_k)) is None
    device.close()


def test_tick_waits_first() -> None:
    there, before = np.zeros(1, np.int64), time.perf_counter_ns()
    tick.launch(1, 1, there, 2_000_000)
    assert before + 2_000_000 <= there[0] <= time.perf_counter_ns()
