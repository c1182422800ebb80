"""How a model's router turns logits into a choice and weights."""

from __future__ import annotations

from typing import NamedTuple


class Rule(NamedTuple):
    """Softmax or sigmoid scores; top-k of all experts, or of those in the best groups.

    | model | rule |
    |---|---|
    | Mixtral; Qwen3-MoE | `Rule()`: softmax, renormalised over the chosen |
    | OLMoE; Qwen1.5-MoE | `Rule(renormalise=False)` |
    | DeepSeek-V2 | `Rule(renormalise=False, groups=8, kept_groups=3, scale=16)` |
    | DeepSeek-V3 | `Rule(sigmoid=True, groups=8, kept_groups=4, scale=2.5)` with its bias |

    A group's worth is its best logit (softmax: DeepSeek-V2, arXiv 2405.04434, 2.1.3 and its released
    model) or the sum of its two best biased scores (sigmoid: DeepSeek-V3, arXiv 2412.19437, 2.1.2).
    The bias takes part in the choice only, not in the weights. `experts` must be a multiple of
    `groups`, at most 32.
    """

    sigmoid: bool = False
    renormalise: bool = True
    groups: int = 1
    kept_groups: int = 1
    scale: float = 1.0


RENORMALISED = Rule()
