"""Quantities as people read them, for commands and reports."""

from __future__ import annotations


def size(value: float) -> str:
    """Bytes with a decimal prefix."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} B"


def energy(wh: float) -> str:
    """Watt-hours with the unit that fits."""
    return f"{wh / 1e3:,.2f} kWh" if wh >= 100 else f"{wh:.2g} Wh"


def mass(grams: float) -> str:
    return f"{grams / 1e3:,.2f} kg" if grams >= 100 else f"{grams:.2g} g"
