"""Router rules that the tests of both forms go through."""

from __future__ import annotations

from kernels.router import Rule

RULES = {
    "mixtral": Rule(),
    "olmoe": Rule(renormalise=False),
    "deepseek_v2": Rule(renormalise=False, groups=4, kept_groups=2, scale=16.0),
    "deepseek_v3": Rule(sigmoid=True, groups=4, kept_groups=2, scale=2.5),
    "sigmoid": Rule(sigmoid=True, renormalise=False),
}
