"""A user's program under strict type checkers: what is right is clean, what is wrong is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

PROGRAM = Path(__file__).with_name("typed_user.py")
PATHS = [str(ROOT / name) for name in ("runtime", "kernels")]
# Each line is a mistake, and the only one of its kind.
MISTAKES = """
import kosine
encoder = kosine.load("ko.kosine", backend="natvie")
encoder.encode("한 문장", precision="int4")
encoder.encode_query("한 문장", prompt_nam="query")
encoder.encode(["한 문장"], truncate_dim="32")
kosine.top_k([[1.0]], [[1.0]], similarity="jaccard")
encoder.count_tokens("한 문장").append(1)
kosine.Batcher(encoder).submit("한 문장").result().no_such_method()
encoder.encode("한 문장", output="colbert")
encoder.encode("한 문장", output="sparse").shape
"""


@pytest.fixture(params=["mypy", "pyright"])
def check(request, tmp_path):
    """Run a checker; gives its findings by line."""
    node = ROOT / ".venvs" / "node" / "node_modules" / ".bin"  # what `make test-libraries` brings
    places = os.pathsep.join([str(Path(sys.executable).parent), str(node), os.environ["PATH"]])
    found = shutil.which(request.param, path=places)
    if found is None:
        pytest.skip(f"{request.param} is not on the path: npm install pyright, or pip install mypy")
    if request.param == "mypy":
        (tmp_path / "mypy.ini").write_text(
            f"[mypy]\nstrict = True\nmypy_path = {':'.join(PATHS)}\n"
        )
        cache = ["--cache-dir", str(ROOT / ".mypy_cache" / "user")]
        command = [found, "--config-file", str(tmp_path / "mypy.ini"), *cache]
    else:
        config = f'{{"typeCheckingMode": "strict", "extraPaths": {PATHS!r}}}'.replace("'", '"')
        (tmp_path / "pyrightconfig.json").write_text(config)
        command = [found, "--project", str(tmp_path), "--pythonpath", sys.executable]

    def run(source: str) -> dict[int, str]:
        path = tmp_path / "program.py"
        path.write_text(source, "utf-8")
        done = subprocess.run(
            [*command, str(path)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode in (0, 1), done.stderr
        errors = [
            line for line in done.stdout.splitlines() if ": error: " in line or " - error: " in line
        ]
        assert bool(errors) == bool(done.returncode), done.stdout
        return {int(line.partition("program.py:")[2].split(":")[0]): line for line in errors}

    return run


def test_a_program(check):
    assert check(PROGRAM.read_text("utf-8")) == {}


def test_mistakes_are_found(check):
    lines = MISTAKES.splitlines()
    assert set(check(MISTAKES)) == set(range(3, len(lines) + 1))
