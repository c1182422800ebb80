"""How many of 100 seeded random mutants of the schedulers and the engines do the tests kill?

Mutants come from mutmut's own operators. mutmut leaves decorated functions alone, which would spare
the whole compiled engine, so `@jit` lines are commented out while mutants are drawn. Each mutant
runs the tests of its part in a copy of the tree, with a compiler cache of its own; a run that fails
or uses up its CPU time kills the mutant. (Wall time would call a busy machine a test that hangs.)

    python benchmarks/mutants.py --count 100 --seed 2026 --jobs 2
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import libcst as cst
from mutmut.mutation.file_mutation import create_mutations, deep_replace

ROOT = Path(__file__).resolve().parents[1]
ENGINES = [
    ["tests/sim/engines", "tests/properties/test_engines_same.py"],
    ["tests/properties/test_engines_rates.py", "tests/properties/test_engines_invariants.py"],
]
PARTS = {
    "sim/schedulers": [
        ["tests/sim/schedulers", "--deselect", "tests/sim/schedulers/test_example.py"],
        ["tests/properties/test_schedulers.py", "tests/sim/schedulers/test_example.py"],
    ],
    "sim/engines": ENGINES,
    "sim/rates.py": ENGINES,
}
"""By part: stages of tests, the quick ones first."""
ASLEEP = 20
"""Wall seconds per CPU second allowed, after which a run that waits for ever is given up."""
HIDDEN = "# hidden from mutmut: "


@dataclass(frozen=True)
class Mutant:
    part: str
    path: str
    code: str
    before: str
    after: str


def mutants_of(part: str, path: Path) -> list[Mutant]:
    lines = path.read_text().splitlines(keepends=True)
    source = "".join(HIDDEN + line if line.startswith(("@jit", "@entry")) else line for line in lines)
    module, mutations, _, _ = create_mutations(str(path), source)
    found = []
    for m in mutations:
        if m.contained_by_top_level_function is None:
            continue
        mutated = deep_replace(module, m.original_node, m.mutated_node)
        assert isinstance(mutated, cst.Module)
        show = (module.code_for_node(m.original_node), module.code_for_node(m.mutated_node))
        found.append(Mutant(part, str(path.relative_to(ROOT)), mutated.code.replace(HIDDEN, ""), *show))
    return found


def draw(count: int, seed: int) -> list[Mutant]:
    every = []
    for part in PARTS:
        root = ROOT / part
        for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            every += mutants_of(part, path)
    print(f"{len(every)} mutants in all, {count} drawn with seed {seed}", file=sys.stderr)
    return random.Random(seed).sample(every, count)


def killed_by(tree: Path, stages: list[list[str]], limit_s: int) -> str:
    """How the tests took it: "failed", "timeout", or "" for a survivor."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 5))

    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "NUMBA_CACHE_DIR": cache, "HYPOTHESIS_PROFILE": "mutants", "PYTHONDONTWRITEBYTECODE": "1"}
        for tests in stages:
            command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
            try:
                done = subprocess.run(command, cwd=tree, env=env, capture_output=True, timeout=ASLEEP * limit_s, preexec_fn=limit)
            except subprocess.TimeoutExpired:
                return "timeout"
            if done.returncode:
                return "timeout" if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL) else "failed"
    return ""


def copy_tree(to: Path) -> Path:
    for name in ("sim", "exec", "kernels", "traces", "tests", "examples", "docs", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, to / name)
    return to


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=int, default=300, help="CPU seconds that one stage of a mutant's tests may take")
    parser.add_argument("--no-check", action="store_true", help="do not first run all tests without a mutant")
    args = parser.parse_args()
    mutants = draw(args.count, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        trees: Queue[Path] = Queue()
        for j in range(args.jobs):
            trees.put(copy_tree(Path(folder) / str(j)))
        clean = trees.get()
        for part, stages in [] if args.no_check else PARTS.items():
            assert not killed_by(clean, stages, 4 * args.limit), f"the tests of {part} fail without any mutant"
        trees.put(clean)

        def judge(mutant: Mutant) -> str:
            tree = trees.get()
            target = tree / mutant.path
            original = target.read_text()
            target.write_text(mutant.code)
            verdict = killed_by(tree, PARTS[mutant.part], args.limit)
            target.write_text(original)
            trees.put(tree)
            print(f"{verdict or 'SURVIVED':9}{mutant.path}: {mutant.before.strip()!r} -> {mutant.after.strip()!r}", flush=True)
            return verdict

        with ThreadPoolExecutor(args.jobs) as pool:
            verdicts = list(pool.map(judge, mutants))
    print(f"killed {sum(bool(v) for v in verdicts)} of {len(verdicts)}")


if __name__ == "__main__":
    main()
