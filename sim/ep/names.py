"""Names of lanes and buffers in expert parallelism, see the table in `sim.ep`."""

from __future__ import annotations

from functools import cache


@cache
def gpu(rank: int) -> str:
    """Compute stream of a rank."""
    return f"gpu.{rank}"


@cache
def comm(rank: int) -> str:
    """Communication stream of a rank."""
    return f"comm.{rank}"


@cache
def host(rank: int) -> str:
    """The thread that launches kernels."""
    return f"host.{rank}"


@cache
def put(source: int, target: int) -> str:
    """Lane of what `source` writes into the memory of `target`."""
    return f"put.{source}.{target}"


@cache
def blocks(rank: int) -> str:
    """Processor blocks of a persistent kernel."""
    return f"blocks.{rank}"


@cache
def block(rank: int, number: int) -> str:
    """One block of a persistent kernel whose work is assigned beforehand."""
    return f"block.{rank}.{number}"


@cache
def movers(rank: int) -> str:
    """Blocks or warps of a fused kernel that only move rows."""
    return f"movers.{rank}"


@cache
def scheduler(rank: int) -> str:
    """Scheduler warp of a persistent kernel."""
    return f"scheduler.{rank}"


@cache
def subscriber(rank: int) -> str:
    """Warps that poll for signals."""
    return f"subscriber.{rank}"


@cache
def hidden(rank: int, layer: int) -> str:
    """Rows [tokens, hidden] that `layer` reads; the layer before it wrote them."""
    return f"hidden.{rank}.{layer % 2}"


@cache
def routes(rank: int) -> str:
    return f"routes.{rank}"


@cache
def send(rank: int, chunk: int) -> str:
    return f"send.{rank}.{chunk}"


@cache
def recv(rank: int, source: int, chunk: int) -> str:
    return f"recv.{rank}.{source}.{chunk}"


@cache
def result(rank: int, source: int, chunk: int) -> str:
    return f"result.{rank}.{source}.{chunk}"


@cache
def back(rank: int, peer: int, chunk: int) -> str:
    return f"back.{rank}.{peer}.{chunk}"


@cache
def weights(rank: int, layer: int, expert: int) -> str:
    """A copy of an expert of a MoE layer in the memory of a rank."""
    return f"weights.{rank}.{layer}.{expert}"


@cache
def alive(rank: int) -> str:
    """Resource of a simulated machine whose capacity says whether the rank is there: `Changed` to `GONE` is its loss, to 1 its coming."""
    return f"alive.{rank}"


GONE = 0.0
