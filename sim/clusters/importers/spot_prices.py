"""Price traces of clouds: AWS' `describe-spot-price-history`, Azure's daily tables, and a plain CSV.

* JSON: `SpotPriceHistory` with AvailabilityZone, InstanceType, SpotPrice, Timestamp, in any order. Where rows tell their
  ProductDescription only those of Linux/UNIX count: other systems and their licences cost more.
* CSV `Date,NC6,...`: one column for each instance, one file for each region, which is the file's name; empty: not on offer.
* CSV `time,region,instance,price` (or `zone`): time in ISO 8601 or in seconds, $ an hour.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from sim.errors import UserError

AWS = ("AvailabilityZone", "InstanceType", "SpotPrice", "Timestamp")
PRODUCT = "Linux/UNIX"


class Quote(NamedTuple):
    """What an instance costs at a place from then on."""

    at_s: float
    place: str
    instance: str
    usd_per_hour: float


def read(path: Path) -> list[Quote]:
    """All quotes of a file, or of all .json and .csv files in a folder and those below it, in order of time.

    Raises `UserError` that names the file and what is wrong in it.
    """
    files = sorted(p for p in path.rglob("*") if p.suffix in (".json", ".csv")) if path.is_dir() else [path]
    found = sorted(quote for file in files for quote in _read(file))
    if not found:
        raise UserError(f"{path}: holds no prices; a spot price history (JSON) or time,region,instance,price (CSV) is needed")
    return found


def _read(path: Path) -> list[Quote]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot be read ({getattr(e, 'strerror', None) or 'not UTF-8 text'})") from None
    return list(_aws(path, text) if path.suffix == ".json" else _tables(path, text))


def _aws(path: Path, text: str) -> Iterator[Quote]:
    try:
        rows = json.loads(text)["SpotPriceHistory"]
    except (ValueError, KeyError, TypeError):
        rows = None
    if not isinstance(rows, list):
        raise UserError(f"{path}: no SpotPriceHistory in it; the JSON of `aws ec2 describe-spot-price-history` is needed")
    mine = [i for i, row in enumerate(rows) if not isinstance(row, dict) or row.get("ProductDescription", PRODUCT) == PRODUCT]
    if rows and not mine:
        found = rows[0]["ProductDescription"]
        raise UserError(f"{path}: SpotPriceHistory: ProductDescription: is {found!r}; prices of {PRODUCT} are needed")
    for i in mine:
        where, row = f"{path}: SpotPriceHistory[{i}]", rows[i]
        missing = [k for k in AWS if not isinstance(row, dict) or k not in row]
        if missing:
            raise UserError(f"{where}: {missing[0]}: missing")
        wrong = [k for k in AWS if not isinstance(row[k], str)]
        if wrong:
            raise UserError(f"{where}: {wrong[0]}: has {row[wrong[0]]!r}; text is needed")
        yield Quote(moment(where, row["Timestamp"]), row["AvailabilityZone"], row["InstanceType"], _usd(where, row["SpotPrice"]))


def _tables(path: Path, text: str) -> Iterator[Quote]:
    reader = csv.DictReader(text.splitlines())
    names = reader.fieldnames or []
    if "Date" in names:
        yield from _daily(path, reader)
        return
    place = next((n for n in ("zone", "region") if n in names), None)
    missing = [n for n in ("time", "instance", "price") if n not in names]
    if missing or place is None:
        raise UserError(f"{path}: column {missing[0] if missing else 'region'}: missing; time,region,instance,price are needed")
    for where, row in _rows(path, reader):
        yield Quote(moment(where, row["time"]), row[place], row["instance"], _usd(where, row["price"]))


def _rows(path: Path, reader: csv.DictReader[Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row and where it is; it has as many columns as the head."""
    for line, row in enumerate(reader, 2):
        where = f"{path}: line {line}"
        if None in row or None in row.values():
            raise UserError(f"{where}: has {'more' if None in row else 'fewer'} columns than the head; as many are needed")
        yield where, row


def _daily(path: Path, reader: csv.DictReader[Any]) -> Iterator[Quote]:
    for where, row in _rows(path, reader):
        try:
            at_s = datetime.strptime(row.pop("Date"), "%m/%d/%Y").replace(tzinfo=UTC).timestamp()
        except ValueError:
            raise UserError(f"{where}: Date: month/day/year is needed") from None
        yield from (Quote(at_s, path.stem, name, _usd(where, price)) for name, price in row.items() if price)


def moment(where: str, text: str) -> float:
    """Seconds since 1970 of an ISO 8601 time (UTC unless it says otherwise), or a number of seconds as it is."""
    try:
        number = float(text)
        if math.isfinite(number):
            return number
    except ValueError:
        pass  # then it is no number of seconds
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"{where}: time {text!r}: ISO 8601 or a number of seconds is needed") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _usd(where: str, text: str) -> float:
    try:
        value = float(text.lstrip("$"))
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e5:
        raise UserError(f"{where}: price {text!r}: dollars an hour are needed")
    return value
