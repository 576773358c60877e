"""The exporter's rooms import downwards and without circles, and know no family by name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

EXPORT = Path(__file__).parents[1] / "export" / "kosine_export"
# Bottom first. A module imports from its own room and from floors below it; rooms of one floor
# know nothing of each other. What stands under `TYPE_CHECKING` or in a function counts.
FLOORS = (
    {"texts", "files", "calibration", "rounding"},
    {"families", "graph", "tensorrt", "smoothing"},
    {"tokenizer", "certificate", "int8"},
    {"checkpoint"},
    {"parity", "ecosystem"},
    {"manifest", "verify", "triton"},
    {"assembly"},
    {"export"},
    {"command"},
)
MODULES = {
    ".".join(path.relative_to(EXPORT).with_suffix("").parts): ast.parse(path.read_text("utf-8"))
    for path in sorted(EXPORT.rglob("*.py"))
}
NAMED = [name for name in MODULES if name != "__init__"]
ONE_FAMILY = tuple(
    f"families.{name}"
    for name in (
        "bert",
        "distilbert",
        "electra",
        "gemma3",
        "gte",
        "modernbert",
        "mpnet",
        "qwen3",
        "roberta",
    )
)


def inside(tree: ast.AST) -> set[str]:
    """The exporter's modules that are imported anywhere in a module."""
    targets: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            targets |= {f"{node.module}.{alias.name}" for alias in node.names}
    found = set()
    for target in targets:
        package, _, rest = target.partition(".")
        if package == "kosine_export":
            found.add(rest if rest in MODULES else rest.rpartition(".")[0])
    return found


GRAPH = {name: inside(tree) for name, tree in MODULES.items()}


def floor_of(name: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if name.partition(".")[0] in floor)


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
    assert {"checkpoint.checkpoint", "parity.referee", "texts", "calibration"} <= GRAPH["export"]
    assert all(target in MODULES for targets in GRAPH.values() for target in targets)
    late = ast.parse("""
if TYPE_CHECKING:
    from kosine_export.texts import canary_texts
def late():
    import kosine_export.export
    from kosine_export.parity import referee
""")
    assert inside(late) == {"texts", "export", "parity.referee"}


def test_every_room_has_a_floor() -> None:
    heads = {name.partition(".")[0] for name in NAMED}
    assert heads == set().union(*FLOORS), "put new rooms on a floor"
    assert len(heads) == sum(map(len, FLOORS))


@pytest.mark.parametrize("name", NAMED)
def test_rooms_import_downwards_and_without_circles(name: str) -> None:
    for target in GRAPH[name]:
        beside = name.partition(".")[0] == target.partition(".")[0]
        assert beside or floor_of(target) < floor_of(name), f"{name} imports {target}"
        assert name not in reached(target), f"{name} imports {target}, which needs {name}"


def test_only_the_registry_and_its_like_import_a_family() -> None:
    for name, targets in GRAPH.items():
        if name not in (*ONE_FAMILY, "families.registry"):
            assert not targets & set(ONE_FAMILY), f"{name} imports a family"


@pytest.mark.parametrize("name", [name for name in NAMED if name not in ONE_FAMILY])
def test_no_module_compares_a_family_with_a_name(name: str) -> None:
    """What differs between families is an attribute of `Family`."""
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            names = {ast.unparse(side).rpartition(".")[2] for side in sides}
            assert not names & {"family", "model_type"} or not any(
                isinstance(side, ast.Constant) for side in sides
            ), f"{name}: {ast.unparse(node)}"
