"""A `tokenizer.json` is judged before the tokenizers package sees it, at export and at load."""

from __future__ import annotations

import base64
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kosine
from hostile import rewrite, small_bundle, small_tokenizer
from kosine.bundle import Bundle
from kosine.bundle.tokenizerscan import scan_tokenizer
from kosine.errors import ManifestError, UnsafeBundle
from kosine.tokenizer import Tokenizer

Edit = Callable[[dict[str, Any]], object]
SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def charsmap(longest: int) -> dict[str, Any]:
    table = struct.pack("<I", 8) + bytes(8) + b"a\0" + b"b" * longest + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


def in_sequence(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": parts}


REFUSED: dict[str, tuple[Edit, str]] = {
    "nested quantifier": (lambda d: d.update(pre_tokenizer=SPLIT), "pre_tokenizer 'Split'"),
    "nested quantifier in a sequence": (
        lambda d: d.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT]}),
        "pre_tokenizer 'Split'",
    ),
    "expression of its own": (
        lambda d: d.update(normalizer=replace({"Regex": "(a+)+$"}, "")),
        "a regular expression of its own",
    ),
    "expression in a decoder": (
        lambda d: d.update(decoder=replace({"Regex": "(a|a)*b"}, "")),
        "a regular expression of its own",
    ),
    "text made longer": (
        lambda d: d.update(normalizer=replace({"String": "a"}, "a" * 1000)),
        "puts in 1000 characters",
    ),
    "prefix made long": (
        lambda d: d.update(normalizer={"type": "Prepend", "prepend": "ab"}),
        "puts in 2 characters",
    ),
    "character made long": (lambda d: d.update(normalizer=charsmap(9999)), "makes 9999 bytes"),
    "many components": (
        lambda d: d.update(normalizer=in_sequence([{"type": "NFC"}] * 17)),
        "17 components",
    ),
    "unknown component": (lambda d: d.update(post_processor={"type": "Evil"}), "'Evil'"),
    "unknown model": (lambda d: d["model"].update(type="WordLevel"), "model 'WordLevel'"),
    "long words": (
        lambda d: d["model"].update(max_input_chars_per_word=10**6),
        "max_input_chars_per_word 1000000; at most 1000",
    ),
    "dropout": (lambda d: d["model"].update(dropout=0.1), "dropout 0.1; the same ids"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_at_load_before_tokenizers_sees_it(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tokenizers

    edit, named = REFUSED[case]
    path = small_bundle(tmp_path / "b.kosine")
    value = json.loads(small_tokenizer())
    edit(value)
    rewrite(path, "tokenizer.json", json.dumps(value).encode())
    monkeypatch.setattr(tokenizers, "Tokenizer", None)
    with pytest.raises(UnsafeBundle, match=named) as caught:
        Tokenizer(Bundle(path))
    assert "kosine export" in caught.value.remedy


def test_a_bundle_with_such_a_file_does_not_load(sample_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.kosine"
    shutil.copytree(sample_bundle, path)
    value = json.loads((path / "tokenizer.json").read_bytes())
    rewrite(path, "tokenizer.json", json.dumps({**value, "pre_tokenizer": SPLIT}).encode())
    with pytest.raises(UnsafeBundle, match="pre_tokenizer 'Split'"):
        kosine.load(path, backend="onnx")


DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON"),
    "not an object": (b"[]", "not an object"),
    "cut off": (small_tokenizer().encode()[:-9], "not JSON"),
    "nested": (b"[" * 100_000, "not JSON"),
    "not UTF-8": (b'{"model": "\xff"}', "cannot be read"),
    "a key twice": (
        small_tokenizer()
        .replace('"pre_tokenizer"', '"pre_tokenizer":null,"pre_tokenizer"')
        .encode(),
        "unique keys",
    ),
    "no model": (b'{"model": null}', "no model"),
    "a list for WordPiece": (b'{"model": {"type": "WordPiece", "vocab": [1]}}', "is a list"),
    "no charsmap": (b'{"normalizer": {"type": "Precompiled"}}', "not base64"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named_at_load(case: str, tmp_path: Path) -> None:
    data, named = DAMAGED[case]
    path = small_bundle(tmp_path / "b.kosine")
    rewrite(path, "tokenizer.json", data)
    with pytest.raises(ManifestError, match=named) as caught:
        Tokenizer(Bundle(path))
    assert "\n" not in str(caught.value)


def test_an_oversized_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_bundle(tmp_path / "b.kosine")
    monkeypatch.setattr("kosine.tokenizer.MAX_TOKENIZER_BYTES", 100)
    with pytest.raises(UnsafeBundle, match="at most 100 bytes"):
        Tokenizer(Bundle(path))


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        charsmap(33),
        replace({"String": "``"}, '"'),
        replace({"Regex": " {2,}"}, " "),
        {"type": "Prepend", "prepend": "▁"},
        in_sequence([{"type": "NFKC"}, in_sequence([{"type": "Lowercase"}])]),
    ],
)
def test_what_the_supported_families_use_goes_through(normalizer: dict[str, Any] | None) -> None:
    value = {**json.loads(small_tokenizer()), "normalizer": normalizer}
    found, kind = scan_tokenizer(json.dumps(value))
    assert (found, kind) == (value, "wordpiece")
