"""`make test` draws the same examples every time; `make fuzz` draws others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent

PROBE = """
from hypothesis import given, settings, strategies as st
drawn = []

@settings(max_examples=20)
@given(st.integers(0, 10**9))
def test_probe(number):
    drawn.append(number)

def test_say():
    print("drawn", drawn)
"""


def drawn(folder: Path, *options: str) -> str:
    """What two runs of a property test draw under the suite's own conftest."""
    (folder / "test_probe.py").write_text(PROBE, encoding="utf-8")
    for name in ("conftest.py", "torch_needed.py"):
        (folder / name).write_text((TESTS / name).read_text("utf-8"), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *options, "."],
        cwd=folder,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = re.findall(r"drawn (\[.*\])", done.stdout)
    assert len(line) > 50
    return line


def test_the_suite_draws_the_same_examples_every_time(tmp_path):
    assert drawn(tmp_path) == drawn(tmp_path)


def test_a_longer_run_draws_others(tmp_path):
    random = "--hypothesis-profile=random"
    assert drawn(tmp_path, random) != drawn(tmp_path, random)


def test_no_generator_goes_without_a_seed():
    """Beside hypothesis."""
    unseeded = re.compile(
        r"default_rng\(\)|\bRandom\(\)|np\.random\.(?!default_rng\b|Generator\b)\w+"
    )
    found = {
        path.name: unseeded.findall(path.read_text("utf-8"))
        for path in TESTS.rglob("*.py")
        if path != Path(__file__)
    }
    assert len(found) > 50
    assert {name: places for name, places in found.items() if places} == {}
