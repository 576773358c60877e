"""Imports point down the floors, and each package keeps to its own side."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "kosine": ROOT / "runtime" / "kosine",
    "kosine_export": ROOT / "export" / "kosine_export",
    "kosine_kernels": ROOT / "kernels" / "kosine_kernels",
    "kosine_bench": ROOT / "bench" / "kosine_bench",
}
# The floors of kosine, bottom first. On them stand rooms: folders, and modules outside any folder.
# A room imports from floors below its own; within a folder modules may use one another. What stands
# under `TYPE_CHECKING` counts.
FLOORS = [
    {"errors", "packed", "spec", "threads", "progress", "clock", "exit_gate"},
    {
        "backend",
        "batching",
        "positions",
        "quantization",
        "tensors",
        "texts",
        "native_search",
        "spec_fields",
        "first_tokens",
        "token_scores",
    },
    {"bundle", "scoring"},
    {"tokenizer", "mining", "backends", "backends.rows"},
    {
        "backends.onnx",
        "backends.tensorrt",
        "backends.cuda",
        "computing",
        "counting",
        "encode_options",
    },
    {"sentence_transformer", "encoding_stages", "heads"},
    {"encoder"},
    {"loading", "serving", "jobs"},
    {"__init__", "batcher_stats", "testing"},
    {"serving.http", "ray", "spark"},
    {"commands"},
    {"cli"},
    {"completion"},
]
OPTIONAL = ("tokenizers", "tqdm", "onnxruntime", "prometheus_client", "pyarrow", "torch")


def modules(package: str) -> dict[str, ast.Module]:
    folder = PACKAGES[package]
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts): ast.parse(path.read_text("utf-8"))
        for path in sorted(folder.rglob("*.py"))
    }


RUNTIME = modules("kosine")
# What the runtime's modules may take from outside the standard library.
OUTSIDE = {
    "numpy": None,  # anywhere
    "tokenizers": {"tokenizer", "serving.http.models"},
    "tqdm": {"progress"},
    "pyarrow": {"jobs.inputs", "jobs.outputs"},
    "onnxruntime": {"backends.onnx.cpu", "backends.onnx.library"},
    "kosine_kernels": {
        "backends.lowering",
        "backends.native",
        "backends.cuda.calls",
        "backends.cuda.forward",
        "backends.cuda.weights",
        "native_search",
    },
    "torch": {"tensors"},
    "prometheus_client": {"batcher_stats", "serving.http.metrics"},
    "uvicorn": {"serving.http.server", "serving.http.connection"},
    "starlette": {"serving.http.serve"},
    "orjson": {"serving.http.wire"},
    "msgspec": {name for name in RUNTIME if name.startswith("serving.http.")},
}


def imports(tree: ast.Module) -> list[tuple[str, bool]]:
    """(module, whether at the top level) of each import; `from a import b` gives a and a.b."""
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(name, id(node) in top) for name in (node.module, *names)]
    return found


def room_of(name: str) -> str:
    """The folder of a module, dotted; what lies in none is a room of its own."""
    return name.rpartition(".")[0] or name


def floor_of(room: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if room in floor)


def inside(name: str) -> set[str]:
    """The modules of kosine that a module imports; "__init__" is the package itself."""
    found = set()
    for target, _ in imports(RUNTIME[name]):
        rest = target.removeprefix("kosine").removeprefix(".")
        if target.partition(".")[0] != "kosine" or (not rest and not plainly(name)):
            continue
        if rest in RUNTIME:
            found.add(rest)
        elif f"{rest}.__init__" in RUNTIME:
            found.add(f"{rest}.__init__")
        elif rest.count(".") == 0:  # a name that the package itself holds
            found.add("__init__")
    return found - {name}


def plainly(name: str) -> bool:
    """Whether a module says `import kosine`, and so takes whatever the package has."""
    return any(
        isinstance(node, ast.Import) and any(alias.name == "kosine" for alias in node.names)
        for node in ast.walk(RUNTIME[name])
    )


def test_every_room_has_one_floor():
    rooms = {room_of(name) for name in RUNTIME}
    placed = set().union(*FLOORS)
    assert rooms == placed, "put new rooms on a floor, and take away what is gone"
    assert sum(map(len, FLOORS)) == len(placed)


@pytest.mark.parametrize("name", RUNTIME)
def test_imports_point_down(name):
    here = room_of(name)
    for target in inside(name):
        there = room_of(target)
        assert there == here or floor_of(there) < floor_of(here), f"{name} imports {target}"


def test_there_are_no_circles():
    graph = {name: inside(name) for name in RUNTIME}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name in done:
            return
        for target in graph[name]:
            visit(target, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_the_walk_sees_imports():
    """It would notice: what it finds for a module that is known to import much."""
    expected = {
        "bundle.__init__",
        "errors",
        "packed",
        "tokenizer",
        "scoring.__init__",
        "backends.registry",
    }
    assert expected <= inside("loading") | inside("encoder") | inside("sentence_transformer")
    assert {"threads", "backends.onnx.library"} <= inside("backends.onnx.cpu")
    assert "__init__" in inside("commands.options")
    tree = ast.parse("""
from kosine import errors
if TYPE_CHECKING:
    from kosine.encoder import Encoder
def late():
    import tqdm.auto
""")
    assert ("kosine.errors", True) in imports(tree)
    assert ("kosine.encoder", False) in imports(tree)
    assert ("tqdm.auto", False) in imports(tree)


@pytest.mark.parametrize("name", RUNTIME)
def test_the_runtime_takes_little_from_outside(name):
    import sys

    for target, _ in imports(RUNTIME[name]):
        head = target.partition(".")[0]
        if head == "kosine" or head in sys.stdlib_module_names:
            continue
        assert head in OUTSIDE, f"{name} imports {target}"
        assert OUTSIDE[head] is None or name in OUTSIDE[head], f"{name} imports {target}"


# The room of the service is itself imported only when it is used: by the verb `serve`.
@pytest.mark.parametrize("name", [name for name in RUNTIME if not name.startswith("serving.http.")])
def test_optional_packages_are_imported_when_they_are_used(name):
    assert not any("serving.http" in target and at_top for target, at_top in imports(RUNTIME[name]))
    for target, at_top in imports(RUNTIME[name]):
        if target.partition(".")[0] in (
            "tokenizers",
            "tqdm",
            "onnxruntime",
            "prometheus_client",
            "pyarrow",
            "torch",
        ):
            assert not at_top, f"{name} imports {target} at once"


def test_only_the_command_line_knows_the_exporter_and_by_name_alone():
    allowed = {"cli", "commands.verify"}
    for name, tree in RUNTIME.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                first = node.value.partition(".")[0]
                if first in ("kosine_export", "kosine_bench"):
                    assert name in allowed, f"{name} names {node.value}"


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("kosine_kernels", {"kosine", "kosine_export", "kosine_bench", "torch", "onnx"}),
        ("kosine_export", {"kosine_bench"}),
    ],
)
def test_packages_keep_apart(package, never):
    for name, tree in modules(package).items():
        for target, _ in imports(tree):
            assert target.partition(".")[0] not in never, f"{package}.{name} imports {target}"


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_state_what_they_export(package):
    for name, tree in modules(package).items():
        assert ast.get_docstring(tree), f"{package}.{name} has no docstring"
        names = [
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        ]
        if not name.endswith("__init__") and len(tree.body) > 3:
            assert "__all__" in names, f"{package}.{name} has no __all__"
