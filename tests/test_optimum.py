"""`optimum-cli export kosine`, where optimum is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import SAMPLE
from kosine.bundle import Bundle

pytest.importorskip("optimum.commands.optimum_cli", reason="optimum is not installed")


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
