"""Who may import whom (DESIGN.md, section 2), and what the start of `sim` must not load."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("sim", "exec", "kernels", "traces")
FORBIDDEN = {
    "traces": {"sim", "exec", "kernels"},
    "kernels": {"sim", "exec"},
    "sim": {"exec", "torch", "transformers", "safetensors", "tokenizers"},
    "sim/schedulers": {"simpy", "numba", "torch", "time", "threading", "asyncio", "datetime", "exec"},
}
HEAVY = ("numba", "torch", "scipy", "matplotlib", "transformers", "simpy", "pyarrow", "altair")


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports anywhere, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module or "", node.lineno


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_point_one_way(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in files(folder)
        for module, line in imported(path)
        if module.split(".")[0] in FORBIDDEN[folder]
    ]
    assert wrong == []


def test_libraries_do_not_import_the_commands() -> None:
    """Only the way in does: what commands share with reports is in a library of its own."""
    users = {path for path in files("sim") if any(module.startswith("sim.cli") for module, _ in imported(path))}
    assert {path for path in users if "cli" not in path.parts} == {ROOT / "sim/__main__.py"}


def test_sim_takes_only_work_formulas_from_kernels() -> None:
    """`sim` asks kernels what an op costs, in one place."""
    users = {path for path in files("sim") if any(module.split(".")[0] == "kernels" for module, _ in imported(path))}
    assert users == {ROOT / "sim/ops.py", ROOT / "sim/ep/layer.py"}


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["import sim", "import sim.simulate, sim.job, sim.summary", "import sim.schedulers.registry as r\n[r.load(n) for n in r.names()]",
     "import sim.machines as m\n[m.load(n) for n in m.names()]"],
)  # fmt: skip
def test_starting_sim_loads_nothing_heavy(statement: str) -> None:
    assert loaded_by(statement) & set(HEAVY) == set()


def test_help_loads_no_configuration() -> None:
    """`--help` must answer at once: neither numpy nor pydantic is needed for it."""
    found = loaded_by("from sim.cli.app import main\nassert main(['--help']) == 0")
    assert found & {*HEAVY, "numpy", "pydantic", "yaml"} == set()
