"""Recorded data by others, beside the repository; tests that need it skip where it is absent."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3] / "shared" / "data"


def folder(name: str) -> Path:
    """Path of a folder of ../shared/data; skips the test where there is none."""
    path = ROOT / name
    if not path.is_dir():
        pytest.skip(f"{path}: recorded data is not beside this clone")
    return path
