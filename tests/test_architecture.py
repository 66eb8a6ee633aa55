"""The walls of the house: who may import whom, and where jax may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ALLOWED = {
    "hlo_graphs": set(),
    "malloc_game": {"hlo_graphs"},
    "solvers": {"hlo_graphs", "malloc_game"},
    "agents": {"hlo_graphs", "malloc_game", "solvers"},
    "experiments": {"agents", "hlo_graphs", "malloc_game", "solvers"},
}

JAX = {"jax", "jaxlib", "flax", "optax", "mctx", "keras"}

JAX_ALLOWED = (
    "agents/",
    "experiments/benchmarks/agent.py",
    "experiments/benchmarks/game.py",
    "hlo_graphs/compile_child.py",
    "hlo_graphs/zoo/",
    "malloc_game/env.py",
    "malloc_game/observation.py",
    "malloc_game/rules.py",
    "malloc_game/state.py",
)

FACADE = "malloc_game/__init__.py"
"""May hand `malloc_game.solve` on from `experiments`, lazily: it is the documented entry."""


def sources() -> list[str]:
    return sorted(
        str(path.relative_to(ROOT))
        for package in ALLOWED
        for path in (ROOT / package).rglob("*.py")
    )


def imported(path: str) -> Iterator[str]:
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", sources())
def test_imports_go_one_way(path: str) -> None:
    package = path.split("/")[0]
    forbidden = set(ALLOWED) - ALLOWED[package] - {package}
    if path != FACADE:
        assert not forbidden & set(imported(path))


@pytest.mark.parametrize("path", sources())
def test_jax_stays_in_its_rooms(path: str) -> None:
    if not path.startswith(JAX_ALLOWED):
        assert not JAX & set(imported(path))


@pytest.mark.parametrize("arguments", [["--help"], ["solvers"]])
def test_the_command_line_starts_without_jax(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['malloc-game', *{arguments!r}]\n"
        "from experiments.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "assert not {'jax', 'numba', 'ortools'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_greedy_on_plain_text_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['malloc-game', 'solve', '-', '--solver', 'greedy', '--json']\n"
        "from experiments.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'highspy', 'jax', 'numba', 'ortools', 'scipy', 'jinja2', 'networkx'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    text = (
        "HloModule m, is_scheduled=true\n"
        "ENTRY e {\n  x = f32[8]{0} parameter(0)\n  ROOT y = f32[8]{0} tanh(x)\n}\n"
    )
    arguments = [sys.executable, "-c", code]
    done = subprocess.run(arguments, cwd=ROOT, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
