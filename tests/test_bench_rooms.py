"""The benchmark's rooms import downwards, without circles, and only one module knows the policy."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "kosine_bench"
# A room imports from itself and from those before it; `command` stands above them all.
ROOMS = ("paths", "contestants", "measuring", "report", "load", "reliability", "command")
MODULES = {
    ".".join(path.relative_to(BENCH).with_suffix("").parts): ast.parse(path.read_text("utf-8"))
    for path in sorted(BENCH.rglob("*.py"))
}
# What runs in the environments of rivals, which have no kosine.
IN_WORKERS = ("contestants.registry", "measuring.worker", "measuring.ceilings")


def imported(tree: ast.AST) -> set[str]:
    """Every module or name that is imported anywhere, as `package.module.name`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def inside(name: str) -> set[str]:
    """Modules of the benchmark that a module imports, at the top or later."""
    found = set()
    for target in imported(MODULES[name]):
        package, _, rest = target.partition(".")
        if package == "kosine_bench":
            found.add(rest if rest in MODULES else rest.rpartition(".")[0])
    return found - {name}


GRAPH = {name: inside(name) for name in MODULES}


def reached(name: str) -> set[str]:
    """Every module that importing `name` needs, itself included."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting += GRAPH[one]
    return seen


def test_the_walk_sees_imports() -> None:
    assert {"measuring.plan", "contestants.registry", "report.page"} <= GRAPH["command"]
    assert "contestants.conversion" in GRAPH["measuring.worker"]  # imported in a function
    assert all(target in MODULES for targets in GRAPH.values() for target in targets)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "__init__"])
def test_rooms_import_downwards_and_without_circles(name: str) -> None:
    room = ROOMS.index(name.partition(".")[0])
    for target in GRAPH[name]:
        assert ROOMS.index(target.partition(".")[0]) <= room, f"{name} imports {target}"
        assert name not in reached(target), f"{name} imports {target}, which needs {name}"


@pytest.mark.parametrize("name", sorted(set().union(*map(reached, IN_WORKERS))))
def test_workers_start_with_numpy_alone(name: str) -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "kosine_bench"}
    at_once = [node for node in MODULES[name].body if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in at_once:
        for target in imported(node):
            assert target.partition(".")[0] in allowed, f"{name} imports {target} at once"


# What the benchmark may use of kosine anywhere, and the modules that know more of it.
PUBLIC = ("kosine.Batcher", "kosine.errors", "kosine.packed", "kosine.testing", "kosine.threads")
KNOW_MORE = {
    "contestants.conversion",
    "contestants.kosine",
    "load.encoders",
    "measuring.gpu_graphs",
}


def test_few_modules_know_kosine_from_within() -> None:
    """So that the runtime may change within, and few files of the benchmark with it."""
    know_more = set()
    for name, tree in MODULES.items():
        targets = {t for t in imported(tree) if t.startswith("kosine.")}
        private = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        if any(not target.startswith(PUBLIC) for target in targets) or "_pipeline" in private:
            know_more.add(name)
    assert know_more == KNOW_MORE


@pytest.mark.parametrize("file", ["Makefile", "bench/README.md"])
def test_modules_that_are_run_by_name_are_there(file: str) -> None:
    text = (BENCH.parents[1] / file).read_text("utf-8")
    names = set(re.findall(r"-m (kosine_bench[.\w]*)", text))
    assert names
    for name in names:
        spec = importlib.util.find_spec(name)
        assert spec is not None, name
        if spec.submodule_search_locations is not None:  # a folder runs its __main__
            assert importlib.util.find_spec(f"{name}.__main__") is not None
