"""The rivals' virtual environments: made on first use, from pinned versions."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kosine_bench import paths
from kosine_bench.contestants.contestant import Absent

__all__ = ["ENVIRONMENTS", "Environment", "python"]

TORCH = "torch==2.13.0"


@dataclass(frozen=True, slots=True)
class Environment:
    """What goes into an environment; versions come from its constraints file in `bench/`."""

    name: str
    constraints: str
    packages: tuple[str, ...]


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment(
            "rivals",
            "constraints-rivals.txt",
            (
                *("sentence-transformers", "transformers", "onnx", "onnxruntime", "openvino"),
                *("nncf", "ctranslate2", "fastembed", "tokenizers", "safetensors", "numpy"),
                *("fastapi", "uvicorn"),
            ),
        ),
        # infinity holds on to transformers 4.48 and NumPy 1, which nothing else does.
        Environment(
            "infinity",
            "constraints-rivals-infinity.txt",
            ("infinity-emb[server,torch]", "optimum", "transformers", "tokenizers", "numpy"),
        ),
        # Only where no interpreter at hand has a PyTorch that sees the GPU.
        Environment(
            "gpu",
            "constraints-rivals-gpu.txt",
            ("sentence-transformers", "transformers", "tokenizers", "safetensors", "numpy"),
        ),
    )
}


GPU_PROBE = """
import sentence_transformers, torch
assert torch.cuda.is_available(), "this PyTorch sees no GPU"
"""


def _candidates() -> list[str]:
    """Interpreters that may have PyTorch for CUDA: the named one, this one, the system's."""
    found = (os.environ.get("KOSINE_BENCH_GPU_PYTHON"), sys.executable, shutil.which("python3"))
    return list(dict.fromkeys(python for python in found if python))


@functools.cache
def _sees_gpu(interpreter: str) -> bool:
    done = subprocess.run([interpreter, "-c", GPU_PROBE], capture_output=True, check=False)
    return done.returncode == 0


def python(name: str, say: Callable[[str], None], *, install: bool = True) -> Path:
    """The interpreter of environment `name`, which is made where it is missing or out of date.

    Raises:
        Absent: It is not there and `install` is false, or it could not be installed.
    """
    if name == "own":
        return Path(sys.executable)
    if name == "gpu":
        for candidate in _candidates():
            if _sees_gpu(candidate):
                return Path(candidate)
    environment = ENVIRONMENTS[name]
    folder = paths.environments_dir() / name
    interpreter = folder / "bin" / "python"
    root = paths.checkout()
    constraints = root / "bench" / environment.constraints if root else None
    if constraints is None or not constraints.is_file():
        raise Absent(f"{environment.constraints} is in a source checkout only")
    digest = hashlib.sha256(
        "\n".join((constraints.read_text("utf-8"), *environment.packages)).encode()
    ).hexdigest()
    stamp = folder / "installed"
    if stamp.is_file() and stamp.read_text("utf-8") == digest and interpreter.is_file():
        return interpreter
    if not install:
        raise Absent(f"environment {name!r} is not installed: run `make bench` once")
    say(f"installing environment {name!r} (several GB with PyTorch; once)")
    if not interpreter.is_file():
        venv.create(folder, with_pip=True)
    # PyTorch goes first and alone: its build must not change under the packages that use it.
    for packages in ((TORCH,), (TORCH, *environment.packages)):
        done = subprocess.run(
            [
                *(str(interpreter), "-m", "pip", "install", "--quiet"),
                *("--disable-pip-version-check", "--constraint", str(constraints), *packages),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = errors[-1] if errors else f"pip exited with {done.returncode}"
            raise Absent(f"environment {name!r} could not be installed: {reason[:200]}")
    stamp.write_text(digest, "utf-8")
    return interpreter
