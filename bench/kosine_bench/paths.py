"""Where files are found and kept: checkout, results, environments, model cache."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = [
    *("PACKAGE", "PAGE", "cache_dir", "checkout", "data_dir", "environments_dir", "page"),
    *("results_dir", "shared_dir"),
]

PACKAGE = Path(__file__).resolve().parent
# The page that holds the generated tables and pictures, from the top of the checkout.
PAGE = "docs/benchmarks.md"


def checkout() -> Path | None:
    """The source checkout this package runs from, or None when it was installed from a wheel."""
    root = PACKAGE.parent.parent
    return root if (root / "pyproject.toml").is_file() and (root / "bench").is_dir() else None


def cache_dir() -> Path:
    """Checkpoints and converted models; gigabytes. `KOSINE_BENCH_CACHE` moves it."""
    named = os.environ.get("KOSINE_BENCH_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kosine" / "bench"


def environments_dir() -> Path:
    """The rivals' virtual environments: `.venvs` of the checkout, else in the cache."""
    root = checkout()
    return root / ".venvs" if root else cache_dir() / "venvs"


def results_dir() -> Path:
    """Result files: `bench/results` of the checkout, else the current folder."""
    root = checkout()
    return root / "bench" / "results" if root else Path.cwd()


def page() -> Path | None:
    """The page that holds the generated tables, or None outside a checkout."""
    root = checkout()
    return root / PAGE if root else None


def readme() -> Path | None:
    """The README, which holds a summary of that page, or None outside a checkout."""
    root = checkout()
    return root / "README.md" if root else None


def shared_dir() -> Path | None:
    """The folder of real data and tokenizers beside the checkout, where there is one."""
    root = checkout()
    shared = root.parent / "shared" if root else None
    return shared if shared and shared.is_dir() else None


def data_dir() -> Path | None:
    """Real Korean sentences (`korsts-*.tsv`): `KOSINE_BENCH_DATA` or `../shared/data`."""
    named = os.environ.get("KOSINE_BENCH_DATA")
    if named:
        return Path(named)
    shared = shared_dir()
    return shared / "data" if shared and (shared / "data").is_dir() else None
