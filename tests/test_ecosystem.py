"""A bundle in the hands of tools that are not kosine's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

import factories
import kosine
from conftest import ROOT
from kosine_export.export import export

TEXTS = [
    "한 남자가 기타를 치고 있다.",
    "비행기가 이륙하고 있다.",
    "강아지에게 하루에 몇 번 밥을 줘야 하나요?",
    "",
    "이모지 🙂 와 [SEP] 그리고 English",
]
OPTIMUM = ROOT / ".venvs" / "optimum" / "bin" / "python"
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def two_bundles(sample_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The sample (RoBERTa) and a BERT with token types and a vocab.txt."""
    folder = tmp_path_factory.mktemp("ecosystem")
    checkpoint = factories.build_matching(folder / "checkpoint")
    return [sample_bundle, export(checkpoint, folder / "bert.kosine").path]


def padded(bundle: Path) -> dict[str, np.ndarray]:
    """What a tool with the tokenizers package alone would feed."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    pad = kosine.load(bundle, backend="onnx").manifest.special_ids["pad"]
    tokenizer.enable_padding(pad_id=pad)
    encodings = tokenizer.encode_batch(TEXTS)
    return {
        "input_ids": np.array([e.ids for e in encodings], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encodings], np.int64),
        "token_type_ids": np.array([e.type_ids for e in encodings], np.int64),
    }


@pytest.mark.parametrize("which", [0, 1])
def test_plain_onnxruntime(two_bundles: list[Path], which: int) -> None:
    import onnxruntime

    bundle = two_bundles[which]
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"))
    names = [node.name for node in session.get_inputs()]
    assert names == ["input_ids", "attention_mask", "token_type_ids"][: len(names)]
    assert len(names) == (2, 3)[which]
    outputs = [node.name for node in session.get_outputs()]
    assert outputs == ["sentence_embedding", "last_hidden_state"]
    feed = padded(bundle)
    embedding, hidden = session.run(None, {name: feed[name] for name in names})
    ours = kosine.load(bundle, backend="onnx").encode(TEXTS)
    np.testing.assert_allclose(embedding, ours, atol=TOLERANCE)
    mask = feed["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(mean / np.linalg.norm(mean, axis=1)[:, None], ours, atol=TOLERANCE)


@pytest.mark.parametrize("which", [0, 1])
def test_openvino(two_bundles: list[Path], which: int) -> None:
    openvino = pytest.importorskip("openvino")
    bundle = two_bundles[which]
    core = openvino.Core()
    model = core.compile_model(
        str(bundle / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    feed = padded(bundle)
    found = model({node.any_name: feed[node.any_name] for node in model.inputs})[0]
    ours = kosine.load(bundle, backend="onnx").encode(TEXTS)
    np.testing.assert_allclose(found, ours, atol=TOLERANCE)


@pytest.mark.parametrize("which", [0, 1])
def test_fastembed_custom_model(two_bundles: list[Path], which: int) -> None:
    pytest.importorskip("fastembed")
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    bundle = two_bundles[which]
    encoder = kosine.load(bundle, backend="onnx")
    name = f"kosine/ecosystem-{which}"
    TextEmbedding.add_custom_model(
        model=name,
        pooling=PoolingType.DISABLED,
        normalization=False,
        sources=ModelSource(hf=name),
        dim=encoder.dim,
        model_file="model.onnx",
    )
    found = np.array(list(TextEmbedding(name, specific_model_path=str(bundle)).embed(TEXTS)))
    np.testing.assert_allclose(found, encoder.encode(TEXTS), atol=TOLERANCE)


@pytest.mark.parametrize("which", [0, 1])
def test_sentence_transformers_on_its_onnx_backend(
    two_bundles: list[Path], which: int, tmp_path: Path
) -> None:
    if not OPTIMUM.exists():
        pytest.skip("no .venvs/optimum: `make test` makes it (optimum-onnx pins transformers<4.58)")
    bundle = two_bundles[which]
    script = (
        "import sys, numpy as np\n"
        "from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(sys.argv[1], backend='onnx')\n"
        "np.save(sys.argv[2], model.encode(sys.argv[3:], normalize_embeddings=True))\n"
    )
    out = tmp_path / "vectors.npy"
    subprocess.run(
        [str(OPTIMUM), "-c", script, str(bundle), str(out), *TEXTS],
        check=True,
        capture_output=True,
        timeout=300,
    )
    ours = kosine.load(bundle, backend="onnx").encode(TEXTS)
    np.testing.assert_allclose(np.load(out), ours, atol=TOLERANCE)
