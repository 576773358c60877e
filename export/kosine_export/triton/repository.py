"""Write a bundle as two models of a Triton model repository.

    REPO/NAME/          Python backend: text in, unit vectors out; tokenizer, packed rows
    REPO/NAME_graph/    ONNX Runtime or TensorRT: the packed graph

Clients ask NAME. Its dynamic batcher gathers their requests, and what it gathers is laid out in
rows together, so that no padding is computed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from kosine.bundle import Bundle
from kosine.bundle.folder import MANIFEST, WEIGHTS
from kosine.errors import BundleExists, InputError, MissingTarget

__all__ = ["check_repository", "write_repository"]

# Texts of one call to NAME, and how long the oldest may wait for others where none computes.
MAX_BATCH = 256
QUEUE_DELAY_US = 0
MAX_QUEUE = 512
MODEL = Path(__file__).with_name("model.py")
OUTPUTS = ("vectors", "norms")


def model_name(bundle: str | Path) -> str:
    """The model's name in Triton: that of the bundle's folder.

    Raises:
        InputError: It has other characters than letters, digits, `_` and `-`.
    """
    name = Path(bundle).name.removesuffix(".kosine")
    if not name.replace("_", "a").replace("-", "a").isalnum() or not name.isascii():
        raise InputError(
            f"the bundle's name {name[:60]!r} cannot be that of a Triton model",
            limit="letters, digits, _ and -",
            remedy="give the bundle another name",
        )
    return name


def check_repository(bundle: str | Path, repository: str | Path, *, force: bool = False) -> None:
    """Raise what would keep `write_repository` from writing, before the bundle is made.

    Raises:
        InputError: See `model_name`; or the repository is no folder, or cannot be written.
        BundleExists: A model of that name is there, and `force` is not given.
    """
    place = Path(repository).absolute()
    there = next(each for each in (place, *place.parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(
            f"no model repository can be written at {str(repository)!r}",
            limit="a folder, or a place for a new one",
            remedy="name another for --triton",
        )
    for each in _folders(Path(repository), model_name(bundle)):
        if each.exists() and not force:
            raise BundleExists(
                f"{each} exists",
                remedy="choose another repository or name, or replace it with --force",
            )


def write_repository(bundle: str | Path, repository: str | Path, *, force: bool = False) -> Path:
    """Write the models and return the folder of the one that clients ask.

    Where the bundle has a TensorRT plan, it is the graph; otherwise `packed.onnx` is, in float32.

    Raises:
        InputError, BundleExists: See `check_repository`.
        MissingTarget: The bundle's only plan is for TensorRT-RTX, which Triton has no backend for.
    """
    check_repository(bundle, repository, force=force)
    opened = Bundle(bundle)
    opened.verify_all()
    name = model_name(bundle)
    asked, graph = _folders(Path(repository), name)
    Path(repository).mkdir(parents=True, exist_ok=True)
    inputs = _input_names(opened)
    plan = next((each for each in opened.manifest.plans if each.flavour == "tensorrt"), None)
    if opened.manifest.plans and plan is None:
        raise MissingTarget(
            "the bundle's plan is for TensorRT-RTX, which Triton has no backend for",
            limit="flavour tensorrt, or no plan",
            remedy="export again with --trt-flavour tensorrt, or without target tensorrt-fp16",
        )
    config = _python_config(name, opened.manifest.dim, inputs, plan is not None)
    whole = [
        (opened.path / each, f"bundle/{each}") for each in (MANIFEST, *opened.manifest.files())
    ]
    _write(asked, config, [*whole, (MODEL, "model.py")])
    kept = asked / "1" / "bundle"
    if plan is not None:
        config = _graph_config(name, "tensorrt", inputs, opened.manifest.dim)
        profiles = ", ".join(f'"{number}"' for number in range(len(plan.profiles)))
        config += f"instance_group [{{ kind: KIND_GPU, profile: [{profiles}] }}]\n"
        _write(graph, config, [(kept / plan.path, "model.plan")], _again)
    else:
        config = _graph_config(name, "onnxruntime", inputs, opened.manifest.dim)
        names = {"packed.onnx": "model.onnx", WEIGHTS: WEIGHTS}
        _write(graph, config, [(kept / name, target) for name, target in names.items()], _again)
    return asked


def _folders(repository: Path, name: str) -> tuple[Path, Path]:
    return repository / name, repository / f"{name}_graph"


def _input_names(bundle: Bundle) -> dict[str, int]:
    """Name to rank of the packed graph's inputs."""
    from onnx import load_model_from_string

    graph = load_model_from_string(bundle.graph("packed.onnx").data).graph
    weights = {tensor.name for tensor in graph.initializer}
    return {
        each.name: len(each.type.tensor_type.shape.dim)
        for each in graph.input
        if each.name not in weights
    }


def _write(
    folder: Path,
    config: str,
    files: Iterable[tuple[Path, str]],
    place: Callable[[Path, Path], object] = shutil.copyfile,
) -> None:
    """A model's folder, made beside its place and moved there whole."""
    made = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(made, ignore_errors=True)
    for source, target in files:
        path = made / "1" / target
        path.parent.mkdir(parents=True, exist_ok=True)
        place(source, path)
    (made / "config.pbtxt").write_text(config, encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    made.rename(folder)


def _again(source: Path, target: Path) -> None:
    """A second name for the file, so that a repository's weights lie there once; else a copy."""
    try:
        os.link(source, target)
    except OSError:  # a file system without second names
        shutil.copyfile(source, target)


def _python_config(name: str, dim: int, inputs: Iterable[str], profiles: bool) -> str:
    parameters = {
        "graph": f"{name}_graph",
        "inputs": ",".join(inputs),
        "profiles": "yes" if profiles else "no",
    }
    return f"""\
name: "{name}"
backend: "python"
max_batch_size: {MAX_BATCH}
input [
  {{ name: "text", data_type: TYPE_STRING, dims: [1] }},
  {{ name: "prompt_name", data_type: TYPE_STRING, dims: [1], optional: true }}
]
output [{{ name: "embedding", data_type: TYPE_FP32, dims: [{dim}] }}]
dynamic_batching {{
  max_queue_delay_microseconds: {QUEUE_DELAY_US}
  default_queue_policy {{ max_queue_size: {MAX_QUEUE} }}
}}
instance_group [{{ kind: KIND_CPU, count: 1 }}]
""" + "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in parameters.items()
    )


def _graph_config(name: str, backend: str, inputs: dict[str, int], dim: int) -> str:
    # Rows, slots and sentences are dimensions of their own, so nothing here is Triton's batch.
    takes = ",\n  ".join(
        f'{{ name: "{each}", data_type: TYPE_INT64, dims: [{", ".join(["-1"] * rank)}] }}'
        for each, rank in inputs.items()
    )
    return f"""\
name: "{name}_graph"
backend: "{backend}"
max_batch_size: 0
input [
  {takes}
]
output [
  {{ name: "vectors", data_type: TYPE_FP32, dims: [-1, {dim}] }},
  {{ name: "norms", data_type: TYPE_FP32, dims: [-1] }}
]
"""
