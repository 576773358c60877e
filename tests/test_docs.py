"""The site builds with no warning and fetches nothing; both first pages say one thing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from conftest import ROOT

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (pip install 'kosine[docs]')")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


class Fetched(HTMLParser):
    """What a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag in ("script", "img", "iframe", "source", "video", "audio"):
            self.found.append(given.get("src") or "")
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.found.append(given.get("href") or "")


def test_no_page_fetches_from_elsewhere(site: Path) -> None:
    pages = [*site.rglob("*.html")]
    assert len(pages) >= 15
    for page in pages:
        reader = Fetched()
        reader.feed(page.read_text("utf-8"))
        assert len(reader.found) > 2
        outside = [url for url in reader.found if re.match(r"(\w+:)?//", url)]
        assert not outside, page.name
        missing = [
            url
            for url in reader.found
            if url and not url.startswith("data:") and page.name != "404.html"
            and not (page.parent / url.partition("?")[0]).exists()
        ]  # fmt: skip
        assert not missing, page.name
        # The theme would fetch the library that draws them.
        assert 'class="mermaid"' not in page.read_text("utf-8")


def test_the_detector_sees_an_outside_script() -> None:
    reader = Fetched()
    reader.feed('<script src="https://elsewhere.example/x.js"></script>')
    assert reader.found == ["https://elsewhere.example/x.js"]


def test_the_reference_holds_the_public_surface(site: Path) -> None:
    import kosine

    page = (site / "reference.html").read_text("utf-8")
    own = [name for name in kosine.__all__ if name != "errors"]
    missing = [name for name in own if not re.search(rf'id="kosine\.[\w.]*\b{name}"', page)]
    assert not missing


def commands(page: Path) -> list[str]:
    """The fenced code of a page without comments, which are in its language."""
    code = re.findall(r"```\w+\n(.*?)```", page.read_text("utf-8"), re.S)
    return [re.sub(r"\s+# .*$", "", block, flags=re.M) for block in code]


def test_both_first_pages_give_the_same_commands() -> None:
    english = commands(DOCS / "index.md")
    assert len(english) >= 5
    assert commands(DOCS / "start.ko.md") == english


def test_the_korean_readme_is_the_readmes() -> None:
    korean, english = commands(ROOT / "README.ko.md"), commands(ROOT / "README.md")
    python = [
        block for block in english if block.startswith("\nimport") or "import kosine" in block
    ]
    assert [block for block in korean if "import kosine" in block] == python
    for line in (line for block in korean for line in block.splitlines() if line):
        assert any(line in block for block in english) or line == "kosine serve  ko.kosine", line
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / "README.ko.md").read_text("utf-8")):
        assert (ROOT / target).exists(), target


def test_the_memory_of_a_million_texts_is_that_of_the_newest_run() -> None:
    newest = max((ROOT / "bench" / "results" / "embed").glob("*.json"))
    runs = json.loads(newest.read_text("utf-8"))["runs"]
    said = (DOCS / "command-line.md").read_text("utf-8")
    assert newest.name in said
    for run in runs:
        assert f"{run['texts']:,}" in said
        assert f" {run['peak_mib']:.0f}" in said
    assert runs[-1]["peak_mib"] < runs[0]["peak_mib"] + 64
