"""Models: sizes of the MoE decoders, by built-in name or from a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

from sim.errors import unknown
from sim.models import builtin, huggingface
from sim.models.spec import MLA, ModelSpec

__all__ = ["MLA", "ModelSpec", "load", "names"]


def names() -> tuple[str, ...]:
    """The built-in models, in the order in which they are listed."""
    return tuple(builtin.NAMES)


def load(name_or_dir: str | Path) -> ModelSpec:
    """A built-in model by name, or the one that a directory's `config.json` describes.

    Raises `UserError` for an unknown name (with the nearest one), or a bad config (with file and key).
    """
    name = str(name_or_dir)
    if name in builtin.NAMES:
        return builtin.NAMES[name]
    path = Path(name_or_dir)
    if path.is_dir() or path.name == "config.json" or len(path.parts) > 1:
        return huggingface.load(path)
    raise unknown("--model", name, builtin.NAMES)
