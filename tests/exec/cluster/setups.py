"""Small layers that ranks run in the tests."""

from __future__ import annotations

from typing import Any

from exec.cluster.runs import Setup, layers_setup
from tests.exec.tiny import spec


def layers(tokens: list[int], scheduler: str, *, keep: bool = True, **options: Any) -> Setup:
    return layers_setup(options.pop("model", None) or spec(), tokens, scheduler, keep=keep, **options)
