"""`optimum-cli export kosine`, where optimum is installed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import ROOT, SAMPLE
from kosine.bundle import Bundle

pytest.importorskip("optimum.commands.optimum_cli", reason="optimum is not installed")
pytest.importorskip(
    "optimum.commands.register.register_kosine", reason="export/optimum_plugin is not installed"
)


def optimum_cli(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "optimum-cli", "export", "kosine", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_it_is_listed_and_exports(tmp_path: Path) -> None:
    done = optimum_cli(SAMPLE, tmp_path / "out.kosine", "--max-tokens", "32")
    assert done.returncode == 0, done.stderr
    assert Bundle(tmp_path / "out.kosine").manifest.max_tokens == 32


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    done = optimum_cli(tmp_path / "nothing", tmp_path / "out.kosine")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().startswith("kosine: no checkpoint")


def test_kosine_itself_puts_nothing_into_other_namespaces() -> None:
    """Else `find_spec("optimum")` would find what is not there."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["scikit-build"]
    names = {Path(package).name for package in build["wheel"]["packages"]}
    assert all(name.startswith("kosine") for name in names)
