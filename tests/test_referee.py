"""The referee where its packages are not all there: exactly which, everywhere it is said."""

from __future__ import annotations

import importlib.util
import json

import pytest

import factories
from conftest import SAMPLE
from kosine import cli
from kosine.errors import MissingExtra
from kosine_export.export import export
from kosine_export.parity.referee import Referee, missing_packages


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch):
    """Make some packages look as if they were not installed."""

    def hide(*names: str) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name in names else find(name)
        )

    return hide


@pytest.mark.parametrize(
    ("hidden", "said"),
    [
        (("sentence_transformers",), "sentence-transformers {} not installed"),
        (("torch",), "torch {} not installed"),
        (("sentence_transformers", "torch"), "sentence-transformers, torch {} not installed"),
    ],
)
def test_what_is_missing_for_parity_is_named(hidden, said, absent, tmp_path, capsys) -> None:
    absent(*hidden)
    bundle = tmp_path / "out.kosine"
    assert cli.main(["export", str(SAMPLE), str(bundle)]) == 0
    told = capsys.readouterr().out
    assert f"parity not measured: {said.format('is' if len(hidden) == 1 else 'are')}" in told
    assert "pip install 'kosine[torch]'" in told
    assert cli.main(["info", str(bundle)]) == 0
    told = capsys.readouterr().out
    assert said.format("was" if len(hidden) == 1 else "were") in told
    assert "pip install 'kosine[torch]'" in told
    assert "PyTorch" not in told
    with pytest.raises(MissingExtra, match=said.format("is" if len(hidden) == 1 else "are")):
        Referee(SAMPLE)


def test_an_adapter_needs_peft_for_its_parity(absent, tmp_path) -> None:
    adapter, base = factories.build_legal(tmp_path)
    absent("peft")
    done = export(adapter, tmp_path / "out.kosine", base=base)
    assert done.manifest.parity is None
    assert done.manifest.source["referee_missing"] == ["peft"]
    assert missing_packages() == ()


@pytest.mark.parametrize("stated", [None, [], 5])
def test_a_bundle_that_does_not_say_what_was_missing(stated, absent, tmp_path, capsys) -> None:
    """As bundles were before the manifest recorded it (None)."""
    absent("torch")
    bundle = export(SAMPLE, tmp_path / "out.kosine").path
    text = (bundle / "manifest.json").read_text(encoding="utf-8")
    value = json.loads(text)
    assert value["source"].pop("referee_missing") == ["torch"]
    if stated is not None:
        value["source"]["referee_missing"] = stated
    (bundle / "manifest.json").write_text(json.dumps(value), encoding="utf-8")
    assert cli.main(["info", str(bundle)]) == 0
    assert "not measured at export: PyTorch or sentence-transformers was" in capsys.readouterr().out
