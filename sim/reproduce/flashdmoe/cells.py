"""The bars, the outside re-run, and when fusion still wins: layers under systems, simulated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sim import machines
from sim.ep import routing
from sim.ep.layer import MoELayer
from sim.ep.study import prepare, study
from sim.ep.systems import SYSTEMS, System
from sim.fabric import ranks
from sim.jitter import Jitter
from sim.machines.schema import Machine
from sim.reproduce.flashdmoe import published
from sim.reproduce.flashdmoe.calibration import CALIBRATIONS, Of, gpus
from sim.schedulers.ep.packets import Tiling

LAYER = MoELayer(2048, 2048, 32, 2, gated=False, dtype="fp16")
NO_JITTER = Jitter.named("none")


@dataclass(frozen=True, slots=True)
class Bar:
    """published_ms: None where no number was printed. row: as of `moe-layer --json`."""

    gpus: int
    system: str
    tokens: int
    published_ms: float | None
    row: Mapping[str, Any]

    @property
    def ms(self) -> float:
        return float(self.row["latency_s"]["median"]) * 1e3

    @property
    def error(self) -> float | None:
        return None if self.published_ms is None else self.ms / self.published_ms - 1.0

    @property
    def outlier(self) -> bool:
        return (self.gpus, self.system, self.tokens) == published.OUTLIER

    def as_dict(self) -> dict[str, Any]:
        own = {"gpus": self.gpus, "system": self.system, "tokens_per_gpu": self.tokens, "published_ms": self.published_ms}
        shown = ("tensor_busy", "hbm_busy", "comm_hidden", "launches", "tasks")
        return {**own, "ms": self.ms, "error": self.error, "outlier": self.outlier, **{k: self.row[k] for k in shown}}


def layer_on(
    system: System, machine: Machine, layer: MoELayer, tokens: int, jitter: Jitter = NO_JITTER, steps: int = 1
) -> Mapping[str, Any]:
    """One layer with balanced routing."""
    shares = [tokens] * ranks(machine)
    prepared = prepare(system, machine, layer, shares, routing.even(layer, shares))
    return study(prepared, jitter, steps).row


def bar_row(system: Of, count: int, layer: MoELayer, tokens: int) -> Mapping[str, Any]:
    """On so many of the paper's GPUs."""
    return layer_on(system(count, layer.experts), gpus("8xh100", count), layer, tokens)


def bars(calibration: str, say: Callable[[str], None]) -> Iterator[Bar]:
    systems = CALIBRATIONS[calibration]
    for count, by_system in published.BARS_MS.items():
        for name, by_tokens in by_system.items():
            for tokens, ms in by_tokens.items():
                say(f"{count} GPUs, {name}, {tokens} tokens")
                yield Bar(count, name, tokens, ms, bar_row(systems[name], count, LAYER, tokens))


@dataclass(frozen=True, slots=True)
class Sweep:
    """ms: by number of experts."""

    gpus: int
    system: str
    ms: Mapping[int, float]

    @property
    def growth(self) -> float:
        """Latency with the most experts over that with the fewest, minus 1."""
        return self.ms[max(self.ms)] / self.ms[min(self.ms)] - 1.0


SWEEP_EXPERTS = (8, 16, 32, 64, 128)
SWEEP_TOKENS = 16384


def sweeps(calibration: str, say: Callable[[str], None]) -> Iterator[Sweep]:
    """Latency against the number of experts, which share the same rows."""
    for count in (4, 8):
        for name in published.BARS_MS[count]:
            say(f"{count} GPUs, {name}, {SWEEP_EXPERTS[0]} to {SWEEP_EXPERTS[-1]} experts")
            layers = {e: replace(LAYER, experts=e) for e in SWEEP_EXPERTS}
            rows = {e: bar_row(CALIBRATIONS[calibration][name], count, layer, SWEEP_TOKENS) for e, layer in layers.items()}
            yield Sweep(count, name, {e: row["latency_s"]["median"] * 1e3 for e, row in rows.items()})


@dataclass(frozen=True, slots=True)
class Rerun:
    system: str
    what: str
    published_ms: float
    ms: float

    @property
    def error(self) -> float:
        return self.ms / self.published_ms - 1.0


def rerun() -> Iterator[Rerun]:
    """Issue #21, nothing fitted. SGLang's layer is gated (its run says so) and its launches were not published: it is taken for
    the chain of kernels with the fewest."""
    box, rows, columns = machines.load("8xh20"), *published.RERUN_TILE
    flashmoe = replace(SYSTEMS["flashdmoe"], options={"tiling": Tiling(rows, columns)})
    for name, system, gated in (
        ("FlashMoE", flashmoe, False), ("Megatron-TE", SYSTEMS["bulk-sync:te"], False), ("SGLang", SYSTEMS["bulk-sync:cutlass"], True),
    ):  # fmt: skip
        layer = MoELayer(2048, 2048, 32, 2, gated=gated, dtype="bf16")
        what = f"{system.name}, {'three' if gated else 'two'} matrices an expert"
        yield Rerun(name, what, published.RERUN_MS[name], layer_on(system, box, layer, 8192)["latency_s"]["median"] * 1e3)


@dataclass(frozen=True, slots=True)
class Contest:
    """Median latency by system, ms, at one size and jitter."""

    tokens: int
    jitter: str
    ms: Mapping[str, float]

    @property
    def gain(self) -> float:
        """How much faster the fused kernel is than the same kernels in one CUDA graph."""
        return self.ms["graph-replayed"] / self.ms["flashdmoe"]


CONTESTANTS = ("flashdmoe", "static-wave", "graph-replayed", "bulk-sync:te")
CONTEST_TOKENS = (128, 512, 2048, 8192)
CONTEST_STEPS = 25


def contests(say: Callable[[str], None]) -> Iterator[Contest]:
    """Healthy rates, bf16 for all, 8 H100."""
    box, layer = machines.load("8xh100"), LAYER.with_dtype("bf16")
    for name in ("none", "supercomputer", "vm"):
        for tokens in CONTEST_TOKENS:
            say(f"jitter {name}, {tokens} tokens")
            found = {s: layer_on(SYSTEMS[s], box, layer, tokens, Jitter.named(name), CONTEST_STEPS) for s in CONTESTANTS}
            yield Contest(tokens, name, {s: row["latency_s"]["median"] * 1e3 for s, row in found.items()})
