"""`make check` needs no PyTorch: what needs it is found in the source, the rest runs without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import torch_needed

HERE = Path(__file__).parent
BLOCKER = f"""
import sys
for name in {sorted(torch_needed.REFEREE)}:
    sys.modules[name] = None
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
FILES = ["test_encoder.py", "test_checkpoint.py", "test_reference.py", "test_scoring.py"]


def collect(program: tuple[str, ...], *words: str) -> set[str]:
    """The tests that pytest finds, by file and name, without their parameters."""
    done = subprocess.run(
        [sys.executable, *program, "--co", "-q", *words, *(str(HERE / name) for name in FILES)],
        capture_output=True,
        text=True,
        cwd=HERE.parent,
        env={**os.environ, "PYTEST_ADDOPTS": ""},  # -v would print it otherwise
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line]
    return {line.rpartition("/")[2] for line in found}


def test_collection_passes_where_pytorch_cannot_be_imported():
    found = {name.partition(":")[0] for name in collect(("-c", BLOCKER))}
    assert found == set(FILES) - {"test_reference.py"}  # that one is nothing without it


def test_what_needs_it_is_left_out():
    pytest.importorskip("torch")
    whole, without = collect(("-m", "pytest")), collect(("-m", "pytest"), "--without-torch")
    assert without < whole
    needing = collect(("-m", "pytest"), "-m", "torch")
    assert needing == whole - without
    assert not any(name.startswith("test_reference.py") for name in without)
    # In one file some need it and some do not.
    for file in ("test_encoder.py", "test_scoring.py"):
        assert any(name.startswith(file) for name in needing)
        assert any(name.startswith(file) for name in without)


@pytest.mark.parametrize(
    ("source", "needed"),
    [
        ("def test_it(): import torch", True),
        ("def test_it(): pytest.importorskip('transformers')", True),
        ("import torch\ndef test_it(): torch.ones(1)", True),
        ("import torch\ndef test_it(): pass", True),
        ("from peft import PeftModel\ndef test_it(): PeftModel", True),
        ("pytest.importorskip('torch')\ndef test_it(): pass", True),
        ("torch = pytest.importorskip('torch')\ndef test_it(): pass", True),
        ("def make(): import torch\ndef test_it(): make()", True),
        ("def make(): import torch\nMADE = make()\ndef test_it(): assert MADE", True),
        ("def make(): import torch\ndef test_it(): pass", False),
        ("class Test:\n def test_it(self): import torch\n def test_two(self): pass", True),
        ("class Test:\n def test_two(self): import torch\n def test_it(self): pass", False),
        ("import others\ndef test_it(): others.model()", True),
        ("from others import model\ndef test_it(): model()", True),
        ("import others\ndef test_it(): others.text()", False),
        ("def made(): import torch\ndef test_it(made): pass", True),
        ("from torch_and_more import it\ndef test_it(made): it()", False),
    ],
)
def test_the_ways_to_need_it(tmp_path, monkeypatch, source, needed):
    monkeypatch.setattr(torch_needed, "HERE", tmp_path)
    for remembered in (torch_needed._leads_there, torch_needed._uses):
        remembered.cache_clear()
    (tmp_path / "others.py").write_text("def model(): import torch\ndef text(): return ''\n")
    (tmp_path / "test_source.py").write_text(f"import pytest\n{source}\n")
    name = "Test.test_it" if source.startswith("class") else "test_it"
    item = SimpleNamespace(
        path=tmp_path / "test_source.py",
        function=SimpleNamespace(__qualname__=name),
        fixturenames=["made"],
    )
    assert torch_needed.needs_torch(item) == needed
    for remembered in (torch_needed._leads_there, torch_needed._uses):
        remembered.cache_clear()
