"""The page at /, in headless Chromium: in Korean and English, at a desk and on a phone."""

from __future__ import annotations

import re

import httpx
import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from browser import CHROMIUM, Browser
from serve_machine import InThread, running

TEXTS = ["한 남자가 기타를 친다.", "A man plays the guitar.", "긴 문장 " * 200]
DONE = "!document.getElementById('result').hidden"


@pytest.fixture(scope="module")
def thread(sample_bundle):
    with InThread(sample_bundle) as service:
        yield service


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt install chromium)")
    with Browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


def test_nothing_comes_from_outside(thread):
    answer = httpx.get(thread.url)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.findall(r"""(?:src|href)\s*=|https?://|@import|url\(""", answer.text)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("ko", ("비교하기", "코사인 유사도", "지연 시간", "잘림: 128", "토큰화", "엔진")),
        ("en", ("Compare", "Cosines", "Latency", "cut to 128", "tokenising", "engine")),
    ],
)
def test_what_it_shows(thread, tab, sample, tmp_path, width, language, words):
    tab.open(f"{thread.url}/?lang={language}", width)
    tab.wait_for("typeof info === 'object' && info !== null")
    text = "\\n".join(TEXTS)
    tab.value(f"document.getElementById('texts').value = '{text}'; document.activeElement.blur()")
    tab.value("document.getElementById('go').click()")
    tab.wait_for(DONE)
    shown = tab.value("document.body.innerText")
    for word in words:
        assert word in shown, word
    assert tab.value("document.documentElement.lang") == language
    cells = tab.value("[...document.querySelectorAll('#heat td')].map((cell) => cell.innerText)")
    vectors = sample.encode(TEXTS)
    np.testing.assert_allclose(np.array(cells, float), (vectors @ vectors.T).ravel(), atol=0.006)
    assert sample.fingerprint in shown
    assert "onnx/float32" in shown
    counts = sample.count_tokens(TEXTS)
    notes = tab.value("[...document.querySelectorAll('#tokens .note')].map((x) => x.innerText)")
    for note, count in zip(notes, counts, strict=True):
        assert str(count) in note
    assert tab.value("document.querySelectorAll('#tokens .cut').length") > 0
    # Nothing sticks out sideways, and fingers hit the button.
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value("document.getElementById('go').offsetHeight") >= 44
    assert len(tab.screenshot(tmp_path / "page.png")) > 20_000
    assert not tab.refused


def test_the_other_language_is_a_click_away(thread, tab):
    tab.open(f"{thread.url}/?lang=en&run", 390)
    tab.wait_for(DONE)
    tab.value("document.getElementById('language').click()")
    assert "코사인 유사도" in tab.value("document.body.innerText")


def test_with_a_key(sample_bundle, tab, tmp_path):
    """It asks for the key, and then works."""
    key = "a-key-for-the-page"
    with running(tmp_path / "log", sample_bundle, env={"KOSINE_API_KEY": key}) as service:
        tab.open(f"{service.url}/?lang=en", 390)
        tab.wait_for("!document.getElementById('key').hidden")
        assert "API key" in tab.value("document.getElementById('error').innerText")
        tab.value(f"document.getElementById('key').value = '{key}'")
        tab.value("document.getElementById('go').click()")
        tab.wait_for(DONE)
        assert tab.value("document.querySelectorAll('#heat td').length") == 25
