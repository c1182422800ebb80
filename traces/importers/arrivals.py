"""Request traces that are tables of arrivals and lengths: Azure, BurstGPT, Vidur, Mooncake."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from traces.errors import TraceError
from traces.importers.base import Source, arrivals, check_rows
from traces.importers.source import (
    INT64_MAX,
    count,
    csv_columns,
    dates,
    ends_whole,
    field,
    json_lines,
    number,
    seconds,
    whole_array,
    whole_numbers,
)
from traces.requests import Requests


def azure(source: Source) -> Requests:
    """Azure LLM inference traces, 2023 and 2024 (Splitwise, ISCA'24; DynamoLLM, HPCA'25).

    TIMESTAMP,ContextTokens,GeneratedTokens; the 2024 files state their times with "+00:00".
    """
    path = source.path
    table = csv_columns(path, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
    time = dates(table["TIMESTAMP"], path, "TIMESTAMP")
    prompt = whole_numbers(table["ContextTokens"], path, "ContextTokens", 1)
    output = whole_numbers(table["GeneratedTokens"], path, "GeneratedTokens", 1)
    _note_open_end(source)
    check_rows(source, len(time))
    return arrivals(source, time - time.min(initial=INT64_MAX), prompt, output, "Azure LLM inference trace (production)")


def _note_open_end(source: Source) -> None:
    """A file without a last line feed may have been cut inside its last number: nothing in it can tell."""
    if not ends_whole(source.path):
        source.notes["note"] = "the last line has no line feed: if the file was cut there, its last number is short; --rows checks the rows"


def burstgpt(source: Source) -> Requests:
    """BurstGPT (arXiv 2401.17644): Timestamp [s],Model,Request tokens,Response tokens,Total tokens,Log Type, and more in later releases.

    Failed requests have 0 response tokens; they are refused unless `--drop-failed`.
    """
    path = source.path
    table = csv_columns(path, ("Timestamp", "Request tokens", "Response tokens", "Total tokens"))
    time = seconds(table["Timestamp"], path, "Timestamp")
    prompt, output, total = (whole_numbers(table[n], path, n) for n in ("Request tokens", "Response tokens", "Total tokens"))
    _check_total(source, prompt + output, total, "Total tokens")
    failed = (output == 0) | (prompt == 0)
    if failed.any() and not source.options.drop_failed:
        line = int(np.argmax(failed)) + 2
        raise TraceError(f"{path}: line {line}, column Response tokens: has 0, a failed request; --drop-failed leaves such out")
    check_rows(source, len(time))
    source.notes["failed_left_out"] = str(int(failed.sum()))
    kept = ~failed
    return arrivals(source, time[kept], prompt[kept], output[kept], "BurstGPT (production, Azure OpenAI)")


def _check_total(source: Source, found: NDArray[np.int64], total: NDArray[np.int64], name: str) -> None:
    wrong = found != total
    if wrong.any():
        row = int(np.argmax(wrong))
        raise TraceError(f"{source.path}: line {row + 2}, column {name}: has {total[row]}, the parts sum to {found[row]} (truncated?)")


def vidur(source: Source) -> Requests:
    """Vidur's processed traces: num_prefill_tokens,num_decode_tokens,num_total_tokens and perhaps arrived_at [s].

    Without arrived_at, all requests are there at 0, and the metadata says so.
    """
    path = source.path
    table = csv_columns(path, ("num_prefill_tokens", "num_decode_tokens"), ("num_total_tokens", "arrived_at"))
    prompt, output = (whole_numbers(table[n], path, n, 1) for n in ("num_prefill_tokens", "num_decode_tokens"))
    if "num_total_tokens" in table:
        _check_total(source, prompt + output, whole_numbers(table["num_total_tokens"], path, "num_total_tokens", 2), "num_total_tokens")
    check_rows(source, len(prompt))
    timed = "arrived_at" in table
    source.notes["arrivals"] = "arrived_at" if timed else "none in the source: all requests are there at 0"
    time = seconds(table["arrived_at"], path, "arrived_at") if timed else np.zeros(len(prompt), np.int64)
    return arrivals(source, time, prompt, output, "Vidur processed trace (lengths of a public dataset)")


def mooncake(source: Source) -> Requests:
    """Mooncake (FAST'25): JSON Lines with timestamp [ms], input_length, output_length, hash_ids of the prompt's 512-token blocks."""
    times, prompts, outputs, hashes = [], [], [], []
    for where, row in json_lines(source.path):
        times.append(round(number(row, "timestamp", where) * 1_000_000))
        prompts.append(count(row, "input_length", where, 1))
        outputs.append(count(row, "output_length", where, 1))
        blocks = whole_array(field(row, ("hash_ids",), where), f"{where}: field hash_ids", 1, 0, INT64_MAX)
        hashes.append(tuple(blocks.tolist()))
    if times and max(times) > INT64_MAX:
        raise TraceError(f"{source.path}: field timestamp: has {max(times)} ns; must be below 2^63")
    check_rows(source, len(times))
    source.notes["prefix_block_tokens"] = "512"
    time, prompt, output = (np.array(v, np.int64) for v in (times, prompts, outputs))
    return arrivals(source, time, prompt, output, "Mooncake FAST'25 trace (production, Kimi)", tuple(hashes), first_line=1)
