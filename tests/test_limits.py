"""Engines in processes that may have no more memory or no more threads: typed errors, no others."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from native_machine import needs_native

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")

NOBODY = 65534
# Takes what would be imported later before the limits are there.
SCRIPT = """
import os, resource
import kosine
from kosine.backends.registry import make_backend
from kosine.bundle import Bundle
from kosine.errors import BackendError
from kosine.packed import Packed
import kosine.backends.native
from kosine.backends.onnx.library import import_onnxruntime

import_onnxruntime()
bundle = Bundle(BUNDLE)
batch = Packed.of([[5] * 100] * 200)

def memory(megabytes):
    with open("/proc/self/statm") as file:
        used = 4096 * int(file.read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, -1))

def threads(count):
    if os.getuid() == 0:  # whom the limit does not hold
        os.setuid(NOBODY)
    resource.setrlimit(resource.RLIMIT_NPROC, (count, count))

LIMITS = {"memory": memory, "threads": threads}

def make():
    return make_backend(bundle, backend=BACKEND, dtype="float32", threads=4)

try:
    if WHEN == "run":
        backend = make()
        if LIMIT == "memory":  # threads first, or their stacks would be what lacks it
            backend.run(Packed.of([[5] * 100]))
        LIMITS[LIMIT](AMOUNT)
        backend.run(batch)
    else:
        LIMITS[LIMIT](AMOUNT)
        make().run(batch)
except BackendError as error:
    print(type(error).__name__, error)
else:
    print("fine")
"""


@pytest.fixture(scope="module")
def bundle(sample_bundle: Path) -> Iterator[Path]:
    """The sample where another user may read it too."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(shutil.copytree(sample_bundle, Path(folder) / "sample.kosine"))


def run(bundle: Path, backend: str, when: str, limit: str, amount: int) -> str:
    settings = (
        f"BUNDLE, BACKEND, WHEN = {str(bundle)!r}, {backend!r}, {when!r}\n"
        f"LIMIT, AMOUNT, NOBODY = {limit!r}, {amount}, {NOBODY}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", settings + SCRIPT],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("this process may not become another user's")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_native), "onnx"])
class TestLimits:
    @pytest.mark.parametrize("when", ["load", "run"])
    def test_memory(self, bundle: Path, backend: str, when: str) -> None:
        # Wherever it runs out.
        said = [run(bundle, backend, when, "memory", amount) for amount in (1, 8, 4000)]
        assert said[0].startswith("BackendError ")
        assert "no more memory; free memory" in said[0]
        assert said[1] == "fine\n" or "no more memory" in said[1] or "no memory for" in said[1]
        assert said[-1] == "fine\n"

    def test_threads(self, bundle: Path, backend: str) -> None:
        for when in ("load", "run"):
            said = run(bundle, backend, when, "threads", 0)
            if (backend, when) == ("onnx", "run"):
                assert said == "fine\n"  # it has its threads from the start
                continue
            assert said.startswith("BackendError ")
            assert (
                "no more threads, or no memory for their stacks; raise the limit of threads" in said
            )
            assert "threads=1" in said
