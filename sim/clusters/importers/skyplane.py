"""Skyplane's tables: measured RTT and throughput between cloud regions, and egress prices, as links of a cluster."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from pathlib import Path

from sim.clusters.schema import Link
from sim.errors import UserError, unknown

Pairs = dict[tuple[str, str], float]
PROBED = ("src_region", "dst_region")


def read_links(folder: Path, regions: Mapping[str, str]) -> tuple[Link, ...]:
    """A link for each pair of our regions, from the tables' rows of the clouds' regions that stand for them.

    Parameters
    ----------
    folder: holds latency.csv and throughput.csv, and perhaps egress_cost.csv.
    regions: our name -> theirs, e.g. {"AMS": "azure:westeurope"}.

    Where a pair was measured over several network tiers, the fastest one counts. An unmeasured direction is
    taken as its reverse. Raises `UserError` for a region that is not in the tables or a pair in neither direction.
    """
    rtt = _table(folder / "latency.csv", PROBED, "avg_rtt", 1e-3, min)
    rate = _table(folder / "throughput.csv", PROBED, "throughput_received", 1 / 8, max)
    prices = folder / "egress_cost.csv"
    price = _table(prices, ("src", "dest"), "cost", 1.0, min) if prices.exists() else {}
    known = {a for a, _ in rtt}
    for theirs in regions.values():
        if theirs not in known:
            raise unknown(f"{folder / 'latency.csv'}: region", theirs, known)
    return tuple(_link(folder, a, b, regions, rtt, rate, price) for a, b in combinations(regions, 2))


def _link(folder: Path, a: str, b: str, regions: Mapping[str, str], rtt: Pairs, rate: Pairs, price: Pairs) -> Link:
    there, back = (regions[a], regions[b]), (regions[b], regions[a])

    def either(table: Pairs, first: tuple[str, str], second: tuple[str, str], file: str) -> float:
        found = table.get(first, table.get(second))
        if found is None:
            raise UserError(f"{folder / file}: no row between {first[0]} and {first[1]} in either direction; choose other regions")
        return found

    return Link(
        a=a, b=b, rtt_s=either(rtt, there, back, "latency.csv"), bytes_per_s=either(rate, there, back, "throughput.csv"),
        back_bytes_per_s=either(rate, back, there, "throughput.csv"), usd_per_gb=max(price.get(there, 0.0), price.get(back, 0.0)),
        source=f"Skyplane 2022: {regions[a]} to {regions[b]}",
    )  # fmt: skip


def _table(path: Path, ends: tuple[str, str], column: str, scale: float, better: Callable[[float, float], float]) -> Pairs:
    out: Pairs = {}
    for line, row in _rows(path, (*ends, column)):
        if not row[column]:
            continue  # a probe that failed leaves its cell empty
        try:
            value = float(row[column]) * scale
        except ValueError:
            raise UserError(f"{path}: line {line}, column {column}: is {row[column]!r}; a number is needed") from None
        key = (row[ends[0]], row[ends[1]])
        out[key] = better(value, out.get(key, value))
    return out


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8") as f:
            reader = csv.DictReader(f)
            missing = [c for c in columns if c not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path}: column {missing[0]}: missing; has {', '.join(reader.fieldnames or ())}")
            for line, row in enumerate(reader, 2):
                if any(row[c] is None for c in columns):
                    raise UserError(f"{path}: line {line}: has too few columns (truncated?)")
                yield line, row
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
