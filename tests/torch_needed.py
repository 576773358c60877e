"""Which tests need PyTorch, read from their source: what `make check` leaves out.

A test needs it if it, a fixture of its own or of conftest, or a function that these use imports
PyTorch or what comes with it; functions of other files of this folder are followed too. Nothing is
imported for the answer.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

__all__ = ["REFEREE", "needs_torch"]

HERE = Path(__file__).parent
REFEREE = {"torch", "transformers", "sentence_transformers", "peft"}

Place = tuple[str, str]  # module, function or "Class.method"
TORCH: Place = ("", "torch")


def needs_torch(item: pytest.Item) -> bool:
    """Whether a collected test needs PyTorch."""
    function = getattr(item, "function", None)
    if function is None:
        return False
    module = item.path.stem
    names = [function.__qualname__, *getattr(item, "fixturenames", ())]
    return any(_leads_there((home, name)) for home in (module, "conftest") for name in names)


@cache
def _leads_there(start: Place) -> bool:
    todo, seen = [start], set()
    while todo:
        place = todo.pop()
        if place not in seen:
            seen.add(place)
            found = _uses(place[0]).get(place[1], set())
            if TORCH in found:
                return True
            todo += found
    return False


@cache
def _uses(module: str) -> dict[str, set[Place]]:
    """What each function, method and constant of a module uses, TORCH among it."""
    path = next(HERE.rglob(f"{module}.py"), None)
    if path is None:
        return {}
    body = ast.parse(path.read_text("utf-8")).body
    known: dict[str, set[Place]] = {}
    always: set[Place] = set()  # what importing the module takes
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                known[alias.asname or alias.name.partition(".")[0]] = _imported(node, alias)
                always |= _imported(node, alias) & {TORCH}
        elif isinstance(node, (ast.Expr, ast.Assign)):  # `torch = pytest.importorskip("torch")`
            always |= _found(node, module) & {TORCH}
    uses: dict[str, set[Place]] = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                name = getattr(inner, "name", None)
                uses[f"{node.name}.{name}" if name else node.name] = _found(inner, module) | always
            uses[node.name] = _found(node, module) | always
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            uses[node.name] = _found(node, module) | always
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        uses[name.id] = _found(node, module)
    return {**known, **uses}


def _imported(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> set[Place]:
    source = alias.name if isinstance(node, ast.Import) else node.module or ""
    if source.partition(".")[0] in REFEREE:
        return {TORCH}
    return {(source, alias.name)} if isinstance(node, ast.ImportFrom) else set()


def _found(tree: ast.AST, module: str) -> set[Place]:
    """Names that a piece of source uses, as places."""
    found: set[Place] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found = found.union(*(_imported(node, alias) for alias in node.names))
        elif isinstance(node, ast.Name):
            found.add((module, node.id))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add((node.value.id, node.attr))  # `factories.build`
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "importorskip":
            named = node.args[0]
            if isinstance(named, ast.Constant) and named.value.partition(".")[0] in REFEREE:
                found.add(TORCH)
    return found
