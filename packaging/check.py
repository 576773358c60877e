"""The dry run of a release: what is in dist/ is read, installed and run. Uploads nothing.

    python packaging/check.py [DIST]

1. Names, versions, metadata, and what the archives hold.
2. Each wheel in a fresh environment of each Python of this machine, with no compiler on PATH: the
   sample's first vector on every engine, the native one's bits as tests/golden has them.
3. The wheel with no engine and nothing beside it says at its first use what to install.
4. The sdist installs where there is no compiler, and runs on ONNX Runtime.
5. The start page's commands, as they stand, lead to a service that OpenAI's client asks.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

from pythons import pythons
from walk import walk

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
PACKAGES = {"kosine", "kosine_export", "kosine_kernels", "kosine_bench"}
NATIVE_MODULE = re.compile(r"kosine_kernels/_native\..*so")
# Runs in each environment, given the bundle, the golden vectors, and the engines to be seen.
PROBE = """
import json, sys
import numpy as np, kosine
from kosine.packed import Packed
bundle, golden, expected = sys.argv[1], np.load(sys.argv[2]), sys.argv[3].split(",")
first = {}
for name in expected:
    encoder = kosine.load(bundle, backend=name, dtype="float32")
    vector = encoder.encode("비행기가 이륙하고 있다.")
    assert vector.shape == (encoder.dim,) and abs(np.linalg.norm(vector) - 1) < 1e-6
    first[name] = vector
    if name == "native":
        from kosine_kernels import engine
        isa = next(i for i in reversed(engine.isa_levels()) if f"native.float32.{i}" in golden)
        found = encoder.compute(Packed(golden["ids"], golden["starts"])).vectors
        want = golden[f"native.float32.{isa}"]
        assert (found.view(np.uint32) == want.view(np.uint32)).all(), "other bits than the golden"
vectors = list(first.values())
assert all(abs(float(v @ vectors[0]) - 1) < 1e-6 for v in vectors)
auto = kosine.load(bundle)
print(json.dumps({"kosine": kosine.__version__, "auto": repr(auto), "file": kosine.__file__}))
"""


def check_archives(dist: Path) -> str:
    """The version, after names, metadata and contents were found right."""
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    plugin = tomllib.loads((ROOT / "export/optimum_plugin/pyproject.toml").read_text())
    assert plugin["project"]["version"] == stated, "kosine-optimum has another version"
    assert f"\n## {stated}" in (ROOT / "CHANGELOG.md").read_text(), "CHANGELOG has no such release"
    archives = sorted([*dist.glob("*.whl"), *dist.glob("*.tar.gz")])
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *archives], check=True)
    names = {archive.name for archive in archives}
    linux = "manylinux_2_28_x86_64"
    expected = {
        f"kosine-{stated}.tar.gz",
        f"kosine-{stated}-py3-none-any.whl",
        f"kosine-{stated}-cp311-cp311-{linux}.whl",
        f"kosine-{stated}-cp312-abi3-{linux}.whl",
        f"kosine_optimum-{stated}.tar.gz",
        f"kosine_optimum-{stated}-py3-none-any.whl",
    }
    # auditwheel names the oldest platform that a wheel runs on, too.
    found = {re.sub(r"manylinux[^-]*x86_64\.whl", f"{linux}.whl", name) for name in names}
    assert found == expected, names
    for archive in dist.glob("kosine-*.whl"):
        inside = zipfile.ZipFile(archive).namelist()
        tops = {name.split("/")[0] for name in inside}
        assert tops == PACKAGES | {f"kosine-{stated}.dist-info"}, (archive.name, tops)
        native = [name for name in inside if NATIVE_MODULE.fullmatch(name)]
        assert len(native) == (0 if "none-any" in archive.name else 1), (archive.name, native)
        other = [n for n in inside if n.endswith((".so", ".cpp", ".h", ".a", ".safetensors"))]
        assert other == native, (archive.name, other)
        for package in PACKAGES:
            assert f"{package}/py.typed" in inside, (archive.name, package)
    with tarfile.open(dist / f"kosine-{stated}.tar.gz") as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CMakeLists.txt", "kernels/src/engine.cpp", "LICENSE", "README.md"} <= inside
    assert not [n for n in inside if n.startswith(("tests/", "export/sample/", ".ci/", "dist/"))]
    print("archives: names, metadata and contents are right")
    return str(stated)


class Environment:
    """A fresh virtual environment whose PATH holds nothing but itself."""

    def __init__(self, python: Path, folder: Path) -> None:
        subprocess.run([python, "-m", "venv", folder], check=True)
        self.bin = folder / "bin"
        self.variables = {
            **{k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CC", "CXX")},
            "PATH": str(self.bin),
            "PIP_CONSTRAINT": str(CONSTRAINTS),
        }

    def run(self, *words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [str(self.bin / words[0]), *map(str, words[1:])]
        done = subprocess.run(
            command, env=self.variables, cwd=self.bin, capture_output=True, text=True, check=False
        )
        if done.returncode != code:
            raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def install(self, *what: str | Path) -> None:
        self.run("python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *what)

    def probe(self, bundle: Path, engines: Sequence[str]) -> str:
        golden = ROOT / "tests" / "golden" / "vectors.npz"
        said = json.loads(self.run("python", "-c", PROBE, bundle, golden, ",".join(engines)).stdout)
        assert Path(said["file"]).is_relative_to(self.bin.parent), said
        return str(said["auto"])


def suits(wheel: Path, version: str) -> bool:
    return "none-any" in wheel.name or (
        "-cp311-" in wheel.name if version == "3.11" else "-abi3-" in wheel.name
    )


def check(dist: Path) -> None:
    stated = check_archives(dist)
    found = pythons()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        bundle = folder / "sample.kosine"
        for version, python in found.items():
            for wheel in dist.glob("kosine-*.whl"):
                if not suits(wheel, version):
                    continue
                bare = "none-any" in wheel.name
                here = Environment(python, folder / f"{version}{'-bare' * bare}")
                here.install("--only-binary", ":all:", wheel)
                if not bundle.exists():
                    first = Environment(python, folder / "export")
                    wanted = f"kosine[onnx,export] @ {wheel.as_uri()}"
                    first.install("--only-binary", ":all:", wanted)
                    first.run("kosine", "export", ROOT / "export" / "sample", bundle)
                    first.run("kosine", "verify", bundle)
                if bare:
                    said = here.run("kosine", "score", bundle, "하나", "둘", code=2).stderr
                    assert said.count("\n") == 1, said
                    assert "pip install 'kosine[onnx]'" in said, said
                    print(f"{version}, no engine: {said.strip()}")
                    here.install("--only-binary", ":all:", f"kosine[onnx] @ {wheel.as_uri()}")
                engine = here.probe(bundle, ["onnx"] if bare else ["native"])
                print(f"{version}, {wheel.name}: {engine}", flush=True)
        version, python = next(iter(found.items()))
        here = Environment(python, folder / "sdist")
        here.install(f"kosine[onnx] @ {(dist / f'kosine-{stated}.tar.gz').as_uri()}")
        print(f"{version}, sdist with no compiler: {here.probe(bundle, ['onnx'])}", flush=True)
    version, python = [*found.items()][-1]
    walk(dist, python)
    print(f"{version}, docs/index.md: from its first command to its last")


if __name__ == "__main__":
    check(Path(*sys.argv[1:]) if sys.argv[1:] else ROOT / "dist")
