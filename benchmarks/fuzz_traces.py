"""Read 50,000 damaged trace files: each must be refused by name or read right; nothing may crash or hang.

    python benchmarks/fuzz_traces.py [--cases N] [--first I]

Cases run in child processes, a thousand each under a memory limit, so that a crash is one finding
and not the end. Prints one JSON object; exit code 1 if anything came out wrong.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import multiprocessing.connection
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CHUNK = 1000
MEMORY_BYTES = 8 << 30


def work(first: int, last: int, out: multiprocessing.connection.Connection) -> None:
    """Judge the cases first..last - 1 and send (number, label, verdict) of each."""
    from tests.traces import mutations

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, last):
            case = mutations.case(number, torch_too=True)
            out.send((number, case.label, "began"))
            try:
                verdict = mutations.judge(case, Path(folder))
            except BaseException as e:  # whatever it is, it is a finding
                told = "".join(traceback.format_exception_only(e)).strip()[-400:]
                verdict = f"{case.done}: {told}" + "".join(traceback.format_tb(e.__traceback__)[-2:])
            out.send((number, case.label, verdict))
    out.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=50_000)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    started = time.monotonic()
    verdicts: collections.Counter[str] = collections.Counter()
    labels: collections.Counter[str] = collections.Counter()
    wrong: list[dict[str, object]] = []
    number, end = args.first, args.first + args.cases
    while number < end:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(target=work, args=(number, min(number + CHUNK, end), sender))
        child.start()
        sender.close()
        number, last = listen(receiver, number, verdicts, labels, wrong)
        child.join()
        if child.exitcode:
            wrong.append({"case": number, "label": last, "wrong": f"the process died with {child.exitcode}"})
            number += 1
        print(f"{number - args.first} of {args.cases}, {len(wrong)} wrong", file=sys.stderr)
    print(json.dumps({
        "cases": args.cases, **verdicts, "wrong": len(wrong), "by_source": dict(sorted(labels.items())), "findings": wrong[:20],
        "seconds": round(time.monotonic() - started, 1),
    }, indent=2))  # fmt: skip
    return 1 if wrong else 0


def listen(receiver, number, verdicts, labels, wrong):  # type: ignore[no-untyped-def]
    """Take in verdicts until the child is done or dead; returns the next case and the label of the last one begun."""
    label = ""
    try:
        while True:
            case, label, verdict = receiver.recv()
            if verdict == "began":
                continue
            labels[label] += 1
            number = case + 1
            if verdict in ("refused", "read"):
                verdicts[verdict] += 1
            else:
                wrong.append({"case": case, "label": label, "wrong": verdict})
    except EOFError:
        return number, label


if __name__ == "__main__":
    sys.exit(main())
