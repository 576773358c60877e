"""What the site needs beyond docs/: pages and files of the repository that its pages link to.

They appear at their own paths under the site's root, and links that leave docs/ by `../` follow.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    *("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *("kernels/README.md", "kernels/emulator/README.md", "bench/README.md"),
)
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, and each file that a page links to outside docs/."""
    wanted = {*PAGES}
    for page in (*(file.src_uri for file in files if file.is_documentation_page()), *PAGES):
        wanted |= set(_outside(page, _source(page).read_text(encoding="utf-8")))
    for name in sorted(wanted):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links go to the places that the files have on the site."""
    here = page.file.src_uri

    def moved(match: re.Match[str]) -> str:
        target = _resolved(here, match[1])
        if target is None:
            return match[0]
        up = "../" * (len(PurePosixPath(here).parts) - 1)
        return f"]({up}{target.removeprefix('docs/')}{match[2] or ''})"

    return LINK.sub(moved, markdown)


def _source(page: str) -> Path:
    return ROOT / page if page in PAGES else ROOT / "docs" / page


def _resolved(page: str, target: str) -> str | None:
    """The file of the repository that a link of a page leads to, relative to the root."""
    path = (_source(page).parent / target).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_file() else None


def _outside(page: str, text: str) -> list[str]:
    found = (_resolved(page, match[1]) for match in LINK.finditer(text))
    return [name for name in found if name and not name.startswith("docs/")]
