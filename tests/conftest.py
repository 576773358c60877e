"""Fixtures that most tests share: the sample's bundle, the command line, the shared inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import kosine
from kosine_export.export import export
from torch_needed import REFEREE, needs_torch

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "export" / "sample"
SHARED = ROOT.parent / "shared"
# Files of tests that take many seconds of CPU, or start many processes: not for `make check`.
LONG = {
    "backend", "backends_auto", "batcher_model", "batcher_promises", "batcher_soak",
    "bench_contestant", "bench_contestant_state", "bench_gpu", "bench_gpu_graphs",
    "bench_isa_levels", "bench_load", "bench_machines", "bench_pictures", "bench_report",
    "bench_run", "bench_service", "bench_tei", "bench_worker", "bench_workload",
    "bundle_arrival", "bundle_hostile", "checkpoint", "cli", "cli_bad_input", "completion", "cuda",
    "docs", "e5", "ecosystem",
    "encoder_copies", "encoder_properties", "examples", "exit_gate", "export", "families",
    "five", "fixed_seeds", "fork", "full_size", "gemma3", "golden", "graph", "gte", "info",
    "int8", "jobs_compare", "jobs_embed", "kernels_amx", "kernels_engine", "kernels_int8",
    "kernels_long", "kernels_native", "kernels_process", "libraries", "limits", "long_texts",
    "minilm", "native", "onnx_cuda", "onnx_session", "optimum", "parity", "prefork_memory", "qwen3",
    "readme", "referee", "sentence_transformer", "serve_clients", "serve_hostile", "serve_life",
    "serve_limits", "serve_openai", "serve_page", "serve_reload", "serve_routes", "serving",
    "tensorrt", "tensorrt_export", "tokenizer", "tokenizer_classes", "tokenizer_files",
    "torch_needed", "triton", "types", "variants", "verify",
}  # fmt: skip

# The files that take longest, in order: with two processes they begin first, and none is left to
# one process alone in the end.
FIRST = (
    "ratio_gate", "e5", "batcher_soak", "full_size", "modernbert", "kernels_engine",
    "kernels_native", "minilm", "int8", "kernels_long", "ecosystem", "kernels_int8",
    "encoder_properties", "export",
)  # fmt: skip

# No test may reach for a model hub, and forks after tokenising are meant.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# `make test` draws the same examples everywhere, and no slow machine fails it. What is to be found
# by other examples is found by `make fuzz`, and becomes a case.
UNTIMED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fixed", derandomize=True, **UNTIMED)
settings.register_profile("random", derandomize=False, print_blob=True, **UNTIMED)
settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without-torch",
        action="store_true",
        help="hide PyTorch and what comes with it, and leave out the tests that need it",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--without-torch"):
        for name in REFEREE:
            sys.modules[name] = None  # type: ignore[assignment]  # what `import` calls missing


def name_of(path: Path) -> str:
    return path.stem.removeprefix("test_")


def is_long(path: Path) -> bool:
    return name_of(path) in LONG or path.parent.name == "bench"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file all of whose tests would be left out: that takes many seconds."""
    left_out = "not long" in config.option.markexpr and is_long(collection_path)
    return True if left_out else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is long and what needs PyTorch, and leave this out where that is asked for."""
    place = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(name_of(item.path), len(FIRST)))
    left = []
    for item in items:
        if is_long(item.path):
            item.add_marker("long")
        if needs_torch(item):
            item.add_marker("torch")
            left.append(item)
    if left and config.getoption("--without-torch"):
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


@pytest.fixture(scope="session")
def sample_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample checkpoint exported with every target. Read-only: copy it to change it."""
    path = tmp_path_factory.mktemp("bundles") / "sample.kosine"
    export(SAMPLE, path, targets=("onnx", "onnx-fp16"))
    return path


@pytest.fixture(scope="session")
def sample(sample_bundle: Path) -> kosine.Encoder:
    return kosine.load(sample_bundle, backend="onnx")


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """`shared("data/korsts-dev.tsv")`: a real input beside the repository, or a visible skip."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"../shared/{name} is not here: real inputs are kept beside the repository")
        return path

    return find


@pytest.fixture(scope="session")
def kosine_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a process of its own."""

    def run(*words: object, stdin: str | bytes | None = None) -> subprocess.CompletedProcess[str]:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [sys.executable, "-m", "kosine.cli", *map(str, words)],
            input=data,
            capture_output=True,
            timeout=300,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    return run
