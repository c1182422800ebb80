"""Routers of a torch model, found by structure: where experts are chosen, and how to read the choice.

A Mixture-of-Experts block is a module with two kinds of children: its *experts* (one module that owns stacked
weights [E, ., .], or a list of E like modules) and its *router* (a module with a weight [E, hidden]). The names do not matter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from traces.errors import TraceError

if TYPE_CHECKING:
    from torch import Tensor, nn

Choice = tuple["Tensor", "Tensor"]
"""Experts [tokens, k] and their weights [tokens, k], as the model has them."""


@dataclass(frozen=True, slots=True)
class Router:
    """One block: its name in the model, the number of its experts, and the modules."""

    name: str
    experts: int
    block: nn.Module
    gate: nn.Module
    bank: nn.Module

    def listen(self, tell: Callable[[Tensor, Tensor], None]) -> Callable[[], None]:
        """Call `tell` with each choice; returns what ends it.

        The arguments of one stacked experts module are what the model really uses. Experts in a list are called one by one,
        so there the router's output is read.
        """
        return self._listen_to_gate(tell) if self._listed() else self._listen_to_bank(tell)

    def _listed(self) -> bool:
        from torch import nn

        return isinstance(self.bank, nn.ModuleList)

    def _listen_to_gate(self, tell: Callable[[Tensor, Tensor], None]) -> Callable[[], None]:
        forward = self.gate.forward

        def heard(*given: Any, **named: Any) -> Any:
            out = forward(*given, **named)
            if isinstance(out, tuple | list):
                tell(*self._pick(out, *self._places(dict(enumerate(out)), "its router's output")))
            else:
                tell(*self._of_logits(out))
            return out

        return replace_forward(self.gate, heard)

    def _listen_to_bank(self, tell: Callable[[Tensor, Tensor], None]) -> Callable[[], None]:
        """Where the two tensors stand among the arguments is found at the first call: a decode step should not pay for it each time."""
        forward = self.bank.forward
        places: tuple[Any, Any, bool] | None = None

        def heard(*given: Any, **named: Any) -> Any:
            nonlocal places
            found: Any = {**dict(enumerate(given)), **named} if named else given
            if places is None:
                places = self._places({**dict(enumerate(given)), **named}, "the arguments of its experts")
            chosen, weights, scattered = places
            experts, values = found[chosen], found[weights]
            if scattered or values.requires_grad:
                experts, values = self._pick(found, *places)
            tell(experts, values)
            return forward(*given, **named)

        return replace_forward(self.bank, heard)

    def _places(self, found: dict[Any, Any], where: str) -> tuple[Any, Any, bool]:
        """Keys of the integer tensor [tokens, k] and of the weights, and whether these are [tokens, E], to gather from."""
        from torch import Tensor

        tensors = {key: t for key, t in found.items() if isinstance(t, Tensor) and t.dim() == 2}
        for chosen, t in tensors.items():
            if t.is_floating_point() or t.shape[1] > self.experts:
                continue
            floats = {key: f for key, f in tensors.items() if f.is_floating_point() and f.shape[0] == t.shape[0]}
            for key, f in floats.items():
                if f.shape == t.shape:
                    return chosen, key, False
            for key, f in floats.items():
                if f.shape[1] == self.experts:
                    return chosen, key, True
        shapes = ", ".join(f"{t.dtype} {list(t.shape)}" for t in tensors.values()) or "no matrices"
        raise TraceError(f"model: {self.name}: {where} have no experts [tokens, k] with weights; found {shapes}")

    @staticmethod
    def _pick(found: Any, chosen: Any, weights: Any, scattered: bool) -> Choice:
        experts, values = found[chosen], found[weights]
        if values.requires_grad:
            values = values.detach()
        return experts, values.gather(1, experts) if scattered else values

    def _of_logits(self, logits: Tensor) -> Choice:
        """Routers that are plain linear maps: softmax, top k, renormalised unless the block's `norm_topk_prob` says no.

        This is what Mixtral, Qwen-MoE and OLMoE blocks do with their gate's output in transformers 4.
        """
        import torch

        k = getattr(self.block, "top_k", None) or getattr(self.block, "num_experts_per_tok", None)
        if not isinstance(k, int) or logits.shape[-1] != self.experts:
            found = f"its router gives {list(logits.shape)} and the block has no top_k"
            raise TraceError(f"model: {self.name}: {found}; cannot tell its choice")
        with torch.no_grad():
            share = torch.softmax(logits.detach().reshape(-1, self.experts), dim=-1, dtype=torch.float32)
            weights, chosen = torch.topk(share, k, dim=-1)
            if getattr(self.block, "norm_topk_prob", True):
                weights = weights / weights.sum(dim=-1, keepdim=True)
            return chosen, weights.to(logits.dtype)


def replace_forward(module: nn.Module, heard: Callable[..., Any]) -> Callable[[], None]:
    """Let `heard`, which calls the module's `forward`, stand for it; returns what puts it back.

    A hook of torch would do the same, but one hook makes each call of its module take torch's slow path: about 7 us, against 2 us.
    """
    before = vars(module).get("forward")
    module.forward = functools.wraps(module.forward)(heard)

    def undo() -> None:
        if before is None:
            del module.forward
        else:
            module.forward = before

    return undo


def find_routers(model: nn.Module) -> list[Router]:
    """All blocks in the order of the model's modules; `TraceError` where there is none."""
    found = [r for name, block in model.named_modules() for r in _routers_of(name, block)]
    if not found:
        wanted = "a module with experts (stacked weights [E, ., .] or a list of E modules) beside a router of weight [E, hidden]"
        raise TraceError(f"model: {type(model).__name__} has no Mixture-of-Experts layer: {wanted} is needed")
    return found


def _routers_of(name: str, block: nn.Module) -> Iterator[Router]:
    """The block's router, if it is a block."""
    children = dict(block.named_children())
    for bank_name, bank in children.items():
        experts = _bank_size(bank)
        gates = [g for n, g in children.items() if n != bank_name and experts > 1 and _routes(g, experts)]
        if gates:
            yield Router(name, experts, block, gates[0], bank)
            return


def _bank_size(module: nn.Module) -> int:
    """E where the module is a bank of experts, else 0."""
    from torch import nn

    if isinstance(module, nn.ModuleList):
        shapes = [[tuple(p.shape) for p in m.parameters()] for m in module]
        alike = len(shapes) > 1 and len(shapes[0]) > 1 and all(s == shapes[0] for s in shapes)
        return len(shapes) if alike else 0
    leading = [p.shape[0] for p in module.parameters(recurse=False) if p.dim() >= 3]
    return int(leading[0]) if len(leading) > 1 and len(set(leading)) == 1 else 0


def _routes(module: nn.Module, experts: int) -> bool:
    return any(p.dim() == 2 and p.shape[0] == experts for p in module.parameters(recurse=False))
