"""The error tree: as it is drawn, importable, and three parts to a message."""

from __future__ import annotations

import ast
import builtins
import copy
import inspect
import pickle
import re
from pathlib import Path

import pytest

from kosine import KosineError, errors

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and value.__module__ == errors.__name__
}
REQUIRED = {"QueueFull": {"retry_after": 1.0}}
OWN_REMEDY = {"CorruptCheckpoint": "save or download it again"}
ROOT = Path(__file__).parent.parent
ROOMS = ("runtime", "export", "bench/kosine_bench", "kernels/kosine_kernels")


def drawn() -> dict[str, tuple[str | None, set[str]]]:
    """name -> (parent, built-in bases), read from the tree in the module's docstring."""
    found: dict[str, tuple[str | None, set[str]]] = {}
    line_of_branch = re.compile(r"^([\s│├└─]*)(\w+)(?: \((\w+)\))?")
    stack: list[tuple[int, str]] = []
    for line in errors.__doc__.split("\n\n")[1].splitlines():
        lead, name, builtin = line_of_branch.match(line).groups()
        while stack and stack[-1][0] >= len(lead):
            stack.pop()
        found[name] = (stack[-1][1] if stack else None, {builtin} - {None})
        stack.append((len(lead), name))
    return found


def test_the_drawing_is_the_tree():
    actual = {
        name: (
            None if value is KosineError else value.__bases__[0].__name__,
            {base.__name__ for base in value.__bases__ if base.__module__ == "builtins"}
            - {"Exception"},
        )
        for name, value in CLASSES.items()
    }
    assert drawn() == actual


def test_all_is_sorted_and_whole():
    assert errors.__all__ == sorted(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_messages_have_three_parts(name):
    error = CLASSES[name](
        "k is 0", limit="at least 1", remedy="ask for more", **REQUIRED.get(name, {})
    )
    assert str(error) == "k is 0; at least 1; ask for more"
    assert (error.problem, error.limit, error.remedy) == ("k is 0", "at least 1", "ask for more")
    assert isinstance(error, KosineError)
    assert CLASSES[name].__doc__
    short = CLASSES[name]("k is 0", **REQUIRED.get(name, {}))
    assert str(short) == "k is 0" + "".join(f"; {part}" for part in [OWN_REMEDY.get(name)] if part)


def test_every_error_that_is_raised_has_a_remedy():
    """By name, wherever one is made; what passes a remedy on has that of somebody else."""
    without = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                given = {word.arg for word in node.keywords}
                if name in CLASSES and name not in OWN_REMEDY and not given & {"remedy", None}:
                    without.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert without == []


@pytest.mark.parametrize(
    ("name", "builtin"),
    [(name, base) for name, (_, bases) in drawn().items() for base in bases],
)
def test_what_callers_already_catch(name, builtin):
    assert issubclass(CLASSES[name], getattr(builtins, builtin))


def test_facts_that_errors_carry():
    assert errors.NonFiniteVector("x", indices=(1, 5)).indices == (1, 5)
    assert errors.NonFiniteVector("x").indices == ()
    assert errors.ParityError("x", report="table").report == "table"
    assert errors.QueueFull("x", retry_after=0.5).retry_after == 0.5


@pytest.mark.parametrize("name", CLASSES)
def test_errors_cross_processes(name):
    error = CLASSES[name](
        "k is 0", limit="at least 1", remedy="ask for more", **REQUIRED.get(name, {})
    )
    for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.args == error.args
        assert vars(again) == vars(error)
