"""What the README and the pages under docs/ tell people to run runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
# libraries.md's recipes need those libraries, or stubs of them: test_libraries.py runs them.
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "libraries.md"),
]
MAX_README_BYTES = 9 * 1024


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the one the README is read in."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "export").symlink_to(ROOT / "export")
    (folder / "texts.txt").write_text("첫 문장\n둘째 문장\n", encoding="utf-8")
    (folder / "pairs.tsv").write_text(
        "sentence1\tsentence2\tscore\n"
        "비행기가 이륙한다.\t비행기가 날아오른다.\t4.5\n"
        "비행기가 이륙한다.\t커피를 마신다.\t0.1\n"
        "남자가 기타를 친다.\t남자가 악기를 연주한다.\t3.5\n",
        encoding="utf-8",
    )
    return folder


def run_commands(desk: Path) -> None:
    (block,) = re.findall(r"<!-- run -->\n```bash\n(.*?)```", README, re.S)
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert len(commands) >= 7
    for words in commands:
        assert words[0] == "kosine"
        done = subprocess.run(
            [sys.executable, "-m", "kosine.cli", *words[1:]],
            cwd=desk,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        assert done.stderr == "", f"{words} speaks on stderr: {done.stderr}"


def run_python(page: Path, names: dict[str, object]) -> int:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)
    return len(blocks)


def test_the_command_lines_and_then_the_python(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages go on where the README ends: with its `encoder`."""
    run_commands(desk)
    monkeypatch.chdir(desk)
    names: dict[str, object] = {}
    assert run_python(PAGES[0], names)
    assert names["scores"].shape == (1, 2)
    assert names["best"].indices.tolist() == [[0]]
    for page in PAGES[1:]:
        if page.name != "sparse.md":  # test_heads.py runs it: it needs a bundle with heads
            run_python(page, dict(names))


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= MAX_README_BYTES


def test_every_verb_is_there() -> None:
    from kosine.cli import VERBS

    for verb in VERBS:
        assert f"kosine {verb}" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_that_are_named_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z][a-z-]+)`", page.read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, re.M), f"make {target}"
