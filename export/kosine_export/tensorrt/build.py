"""A TensorRT plan from the typed float16 packed graph.

The graph itself carries every precision, so the network is strongly typed and nothing is left
to the builder but kernels. The weights are read from the safetensors file that the graph points
into. What the build log shows of fusion becomes the plan's evidence.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import onnx

from kosine.bundle.plans import PlanProfile, TensorRTPlan
from kosine.errors import BackendError, UnsupportedCheckpoint
from kosine.progress import progress_bar
from kosine_export.tensorrt.build_log import fusion, read_kernels, shortfalls, tail_of
from kosine_export.tensorrt.library import Library, Watch
from kosine_export.tensorrt.profiles import input_ranges, plan_profiles

__all__ = ["build_plan", "cache_dir"]

GRAPH = "fp16/packed.onnx"
TYPE_NAMES = {"HALF": "float16", "FLOAT": "float32", "BF16": "bfloat16"}
# Where the graph is float16, these stay in float32.
ISLANDS = ("normalization", "softmax", "reduce")
MESSAGES = 3
MESSAGE_LENGTH = 300

logger = logging.getLogger("kosine.tensorrt")


def build_plan(
    folder: Path,
    library: Library,
    *,
    max_tokens: int,
    num_layers: int,
    architectures: Sequence[str],
    show_progress: bool | None = None,
) -> TensorRTPlan:
    """Build the plan of a bundle folder and write it under `folder/tensorrt`.

    Args:
        folder: Holds `fp16/packed.onnx` and its weights.
        library: See `find_library`.
        max_tokens: The longest text.
        num_layers: Of the encoder: as many fused attention kernels are expected per profile.
        architectures: See `Library.architectures`.
        show_progress: A bar on stderr; None draws it where stderr is a terminal.

    Raises:
        UnsupportedCheckpoint: The library's parser does not read the graph.
        BackendError: The build failed; the message ends in the library's last errors.
    """
    profiles = plan_profiles(max_tokens)
    began = time.perf_counter()
    with progress_bar(100, show_progress, 0) as bar:
        if bar is not None:
            bar.unit = "%"
            bar.set_description(library.flavour)
        show = _bar_updates(bar)
        watch = Watch(library, show)
        engine, network = _build(folder / GRAPH, library, watch, profiles, architectures)
        show(1.0)
    seconds = time.perf_counter() - began

    names = "-".join(f"sm{architecture.replace('.', '')}" for architecture in architectures)
    path = f"tensorrt/{library.flavour}-{library.version}-{names}.plan"
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_bytes(memoryview(engine))
    graph = onnx.load(str(folder / GRAPH), load_external_data=False).graph
    found = fusion(read_kernels(watch.lines), profiles, tail_of(graph))
    missing = shortfalls(found, num_layers) + _sunk_islands(network)
    evidence = {
        "attention_kernels": sum(profile["attention"] for profile in found),
        "encoder_layers": num_layers,
        "profiles": found,
        "network": network,
        "shortfalls": missing,
        "build_seconds": round(seconds, 3),
        "engine_bytes": (folder / path).stat().st_size,
    }
    where = tuple(architectures)
    return TensorRTPlan(path, library.flavour, library.version, where, profiles, evidence)


def cache_dir() -> Path:
    """Where timings are kept between builds. `KOSINE_CACHE` moves it."""
    named = os.environ.get("KOSINE_CACHE")
    if named:
        return Path(named) / "tensorrt"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kosine" / "tensorrt"


def _build(
    graph: Path,
    library: Library,
    watch: Watch,
    profiles: Sequence[PlanProfile],
    architectures: Sequence[str],
) -> tuple[Any, dict[str, Any]]:
    """The serialised engine, and what the network says of its own precisions."""
    trt = library.module
    with _as_typed_errors(library, watch):
        builder = trt.Builder(watch.logger)
        network = library.create_network(builder)
        parser = trt.OnnxParser(network, watch.logger)
        if not parser.parse_from_file(str(graph)):
            raise _unread(library, parser)
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        library.set_architectures(config, architectures)
        # On by default, and would leave ten bits of mantissa to the float32 islands' products.
        if hasattr(trt.BuilderFlag, "TF32"):
            config.clear_flag(trt.BuilderFlag.TF32)
        if watch.monitor is not None:
            config.progress_monitor = watch.monitor
        inputs = [network.get_input(i).name for i in range(network.num_inputs)]
        for profile in profiles:
            made = builder.create_optimization_profile()
            for name, (low, opt, high) in input_ranges(profile, inputs).items():
                made.set_shape(name, low, opt, high)
            if config.add_optimization_profile(made) < 0:
                raise _failed(library, watch, f"refused the profile of width {profile.width}")
        kept = cache_dir() / f"{library.flavour}-{library.version}-{architectures[0]}.timing"
        if library.has_timing_cache:
            _use_timings(config, kept)
        engine = builder.build_serialized_network(network, config)
        watch.reraise()
        if engine is None:
            raise _failed(library, watch, "built no plan")
        if library.has_timing_cache:
            _keep_timings(config, kept)
        return engine, _precisions(network)


def _bar_updates(bar: Any) -> Callable[[float], None]:
    shown = 0

    def update(share: float) -> None:
        nonlocal shown
        percent = int(100 * share)
        if bar is not None and percent > shown:
            bar.update(percent - shown)
            shown = percent

    return update


@contextmanager
def _as_typed_errors(library: Library, watch: Watch) -> Iterator[None]:
    """The bindings raise these where the library returns no object."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        watch.reraise()
        raise _failed(
            library, watch, f"failed ({type(error).__name__}: {_line(str(error))})"
        ) from error


def _failed(library: Library, watch: Watch, what: str) -> BackendError:
    said = " | ".join(_line(message) for message in watch.errors[-MESSAGES:])
    return BackendError(
        f"{library.flavour} {library.version} {what}: {said or 'it logged no error'}",
        remedy="choose other --trt-arch or --trt-flavour, or leave target tensorrt-fp16 out; "
        "the logger kosine.tensorrt has every line at level DEBUG",
    )


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MESSAGE_LENGTH else f"{text[:MESSAGE_LENGTH]}…"


def _unread(library: Library, parser: Any) -> UnsupportedCheckpoint:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    listed = " | ".join(_line(f"{error.node_name()}: {error.desc()}") for error in errors)
    return UnsupportedCheckpoint(
        f"{library.flavour} {library.version} does not read the graph: "
        f"{listed or 'it gave no reason'}",
        limit="every operator of the packed graph",
        remedy="leave target tensorrt-fp16 out; onnx-fp16 runs on a GPU too",
    )


def _use_timings(config: Any, path: Path) -> None:
    """Start from an earlier build's timings, where there are any and they fit."""
    try:
        earlier = path.read_bytes()
    except OSError:
        earlier = b""
    for held in (earlier, b"") if earlier else (b"",):
        try:
            timings = config.create_timing_cache(held)
            if timings is not None and config.set_timing_cache(timings, False):
                return
        except (RuntimeError, TypeError, ValueError) as error:
            logger.info("timing cache %s: %s", path, _line(str(error)))
        logger.info("timing cache %s is of another build or damaged, and not used", path)


def _keep_timings(config: Any, path: Path) -> None:
    """Losing them costs the next build time and nothing else."""
    timings = config.get_timing_cache()
    if timings is None:
        return
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(memoryview(timings.serialize()))
        partial.replace(path)
    except OSError as error:
        logger.info("timing cache %s is not kept: %s", path, error.strerror)
        with suppress(OSError):
            partial.unlink()


def _precisions(network: Any) -> dict[str, Any]:
    """Types of inputs, outputs and layers' results; how often each."""
    layers: dict[str, Counter[str]] = {}
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        kinds = layers.setdefault(layer.type.name.lower(), Counter())
        kinds.update(_type_name(layer.get_output(j)) for j in range(layer.num_outputs))
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return {
        "inputs": {tensor.name: _type_name(tensor) for tensor in inputs},
        "outputs": {tensor.name: _type_name(tensor) for tensor in outputs},
        "layers": {kind: dict(layers[kind]) for kind in sorted(layers)},
    }


def _sunk_islands(network: dict[str, Any]) -> list[str]:
    notes = []
    for kind in ISLANDS:
        sunk = sum(n for type_, n in network["layers"].get(kind, {}).items() if type_ != "float32")
        if sunk:
            notes.append(f"{sunk} {kind} layers are not in float32")
    return notes


def _type_name(tensor: Any) -> str:
    name = str(tensor.dtype.name)
    return TYPE_NAMES.get(name, name.lower())
