"""Files that the package carries: a small Mixture-of-Experts model trained by this project, and its recorded routing.

Made by `python -m traces.train` and `python -m traces.train.bundle` (docs/bundled-model.md).
"""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).parent
"""Directory with `model.safetensors` and `config.json` of a `MixtralForCausalLM`; `scores.json` says how it came about."""
ROUTING = MODEL / "routing.parquet"
"""Routing trace of the model on text that it was not trained on, prompts and decode."""
