"""`doctor`."""

from __future__ import annotations

from typing import Any

from sim.cli import output


def doctor(as_json: bool) -> None:
    from exec.doctor import examine

    with output.progress("measuring memory and links"):
        found = examine()
    if as_json:
        output.print_json(found)
        return
    output.print_table("this computer", ("", "value"), _facts(found))
    print()
    output.print_table(
        "not used here", ("what", "in its place", "because"), [(f["feature"], f["instead"], f["because"]) for f in found["fallbacks"]]
    )


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    p, m, pinned = found["processor"], found["memory"], found["pinned"]
    limit = pinned["memlock_soft_bytes"]
    rows = [
        ("processor", f"{p['name']}, {p['usable_cores']} usable"), ("instruction sets", ", ".join(p["isa"])),
        ("compiled for", p["llvm_target"]), ("NUMA nodes", "; ".join(f"{n}: cores {c}" for n, c in p["numa_nodes"].items())),
        ("free memory", output.size(m["free_bytes"])),
        ("memory, one thread copying", f"{output.size(m['one_copying_thread_bytes_per_s'])}/s, read and written"),
        ("memory, all threads", f"{output.size(m['all_threads_bytes_per_s'])}/s"),
        ("lockable memory", "without limit" if limit is None else output.size(limit)),
    ]  # fmt: skip
    return rows + (_gpu_facts(found["gpu"]) if found["gpu"] else [("GPU", "none that torch can use")])


def _gpu_facts(g: dict[str, Any]) -> list[tuple[str, str]]:
    rates = {"memory": "memory_bytes_per_s", "H2D, pinned": "h2d_bytes_per_s", "D2H, pinned": "d2h_bytes_per_s",
             "H2D, pageable": "pageable_h2d_bytes_per_s"}  # fmt: skip
    return [
        ("GPU", f"{g['count']} x {g['name']}, {g['capability']}, {g['multiprocessors']} multiprocessors"),
        ("GPU memory", f"{output.size(g['memory_bytes'])}, {output.size(g['free_bytes'])} free"),
        *((f"GPU {name}", f"{output.size(g[key])}/s") for name, key in rates.items()),
        ("driver", str(g["driver"] or "unknown")), ("CUDA", f"{g['cuda']}, torch {g['torch']}, numba-cuda {g['numba_cuda'] or 'none'}"),
    ]  # fmt: skip
