"""The progress bar: shown where it was asked for or helps, and never in the way."""

from __future__ import annotations

import sys

import pytest

from kosine.progress import progress_bar


class Terminal:
    def __init__(self, is_terminal: bool) -> None:
        self.is_terminal = is_terminal
        self.text = ""

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    ("total", "show", "terminal", "shown"),
    [
        (10, None, True, False),
        (101, None, True, True),
        (100, None, True, False),
        (None, None, True, True),
        (101, None, False, False),
        (None, None, False, False),
        (1, True, False, True),
        (1000, False, True, False),
    ],
)
def test_where_it_is_shown(monkeypatch, total, show, terminal, shown):
    stderr = Terminal(terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress_bar(total, show, 100) as bar:
        assert (bar is not None) == shown
        if bar is not None:
            bar.update(3)
    assert bool(stderr.text) == shown


def test_it_counts_texts(monkeypatch):
    stderr = Terminal(True)
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress_bar(4, True, 100) as bar:
        for _ in range(4):
            bar.update(1)
    assert "4/4" in stderr.text


def test_without_tqdm_there_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with progress_bar(10**6, True, 100) as bar:
        assert bar is None
