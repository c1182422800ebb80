"""Traces: requests, expert routing, expert load and timelines, as checked Parquet files; recorders and importers for them."""

from __future__ import annotations

from typing import Any

__all__ = ["record"]


def __getattr__(name: str) -> Any:
    """`traces.record`, loaded at its first use: reading a trace must not wait for what records one."""
    if name != "record":
        raise AttributeError(f"module 'traces' has no attribute {name!r}")
    from traces.recorder import record

    return record
