"""Exporting: what is written, what is refused, what is left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import kosine
from conftest import SAMPLE
from kosine.bundle import Bundle
from kosine.bundle.canary import Canary, compare
from kosine.errors import BundleExists, CheckpointNotFound, InputError, ParityError, UnknownOption
from kosine.quantization import calibrated_ranges
from kosine_export import calibration
from kosine_export import export as export_module
from kosine_export.export import export
from kosine_export.graph.emit import Graph
from kosine_export.graph.packed import packed_graph


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "missing_packages", lambda **_: ("torch",))


@pytest.mark.usefixtures("without_torch")
def test_without_torch_parity_is_null_and_the_canary_is_numpys(
    tmp_path: Path, sample_bundle: Path
) -> None:
    done = export(SAMPLE, tmp_path / "out.kosine")
    assert done.manifest.parity is None
    assert json.loads((done.path / "manifest.json").read_text())["parity"] is None
    mine, torchs = Canary.read(Bundle(done.path)), Canary.read(Bundle(sample_bundle))
    assert mine.texts == torchs.texts
    found = compare(mine.vectors, torchs.vectors)
    assert found.min_cosine >= 0.9999999
    assert found.max_abs_error > 0  # two implementations, not one read twice


def test_graphs_hold_no_weights_and_pass_the_checker(sample_bundle: Path) -> None:
    for name in ("model.onnx", "packed.onnx", "fp16/model.onnx", "fp16/packed.onnx"):
        path = sample_bundle / name
        onnx.checker.check_model(str(path), full_check=True)
        assert path.stat().st_size < 100_000
        graph = onnx.load(str(path), load_external_data=False)
        assert [opset.version for opset in graph.opset_import] == [17]
        external = [t for t in graph.graph.initializer if t.data_location == t.EXTERNAL]
        assert len(external) == 5 + 12 * 4
        where = {e.value for t in external for e in t.external_data if e.key == "location"}
        assert where == {"weights.safetensors"}
        offsets = [int(e.value) for t in external for e in t.external_data if e.key == "offset"]
        assert all(offset % 64 == 0 for offset in offsets)


def test_the_pooling_and_the_norm_are_inside_every_graph(sample_bundle: Path) -> None:
    for name in ("model.onnx", "packed.onnx", "fp16/model.onnx", "fp16/packed.onnx"):
        graph = onnx.load(str(sample_bundle / name), load_external_data=False).graph
        kinds = [node.op_type for node in graph.node]
        assert kinds.count("Sqrt") == 1
        assert "ReduceL2" not in kinds
        assert kinds.count("LayerNormalization") == 2 * 4 + 1
        outputs = [output.name for output in graph.output]
        expected = ["vectors", "norms"] if "packed" in name else [
            "sentence_embedding", "last_hidden_state",
        ]  # fmt: skip
        assert outputs == expected


def test_float16_graphs_are_strongly_typed_with_float32_islands(sample_bundle: Path) -> None:
    model = onnx.load(str(sample_bundle / "fp16" / "packed.onnx"))
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    types |= {t.name: t.data_type for t in model.graph.initializer}
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    seen = {"MatMul": set(), "LayerNormalization": set(), "Softmax": set(), "Erf": set()}
    for node in model.graph.node:
        if node.op_type in seen:
            seen[node.op_type].add(types[node.input[0]])
    assert seen["LayerNormalization"] == {full}
    assert seen["Softmax"] == {full}
    assert seen["Erf"] == {half}
    pooled = [n for n in model.graph.node if n.op_type == "MatMul" and types[n.input[0]] == full]
    assert len(pooled) == 1  # the pooling product; every other product is float16
    assert seen["MatMul"] == {half, full}


def test_every_float16_tensor_is_in_the_certificate(sample_bundle: Path) -> None:
    """The list that the certificate measures is the list that type inference finds."""
    bundle = Bundle(sample_bundle)
    graph = onnx.load(str(sample_bundle / "fp16" / "packed.onnx"))
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True)
    half = {
        v.name
        for v in inferred.graph.value_info
        if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    }
    assert len(half) == bundle.manifest.certificates["onnx-fp16"]["tensors"]


def test_a_bundle_is_hardly_larger_than_its_weights(tmp_path: Path) -> None:
    """1.02 times from base size on; the sample's 25 MB carry 0.4 MB of tokenizer and canary."""
    done = export(SAMPLE, tmp_path / "out.kosine")
    total = sum(path.stat().st_size for path in done.path.rglob("*") if path.is_file())
    weights = (done.path / "weights.safetensors").stat().st_size
    assert total - weights < 600_000


def test_manifest_lists_every_file(sample_bundle: Path) -> None:
    listed = set(Bundle(sample_bundle).manifest.files()) | {"manifest.json"}
    found = {p.relative_to(sample_bundle).as_posix() for p in sample_bundle.rglob("*.*")}
    assert {name for name in found if (sample_bundle / name).is_file()} == listed


def test_an_existing_bundle_is_kept_unless_forced(tmp_path: Path, sample_bundle: Path) -> None:
    path = tmp_path / "out.kosine"
    shutil.copytree(sample_bundle, path)
    before = (path / "manifest.json").read_bytes()
    with pytest.raises(BundleExists):
        export(SAMPLE, path)
    with pytest.raises(CheckpointNotFound):
        export(tmp_path / "nothing-here", path, force=True)
    assert (path / "manifest.json").read_bytes() == before
    export(SAMPLE, path, force=True, max_tokens=64)
    assert Bundle(path).manifest.max_tokens == 64
    assert [child.name for child in tmp_path.iterdir()] == ["out.kosine"]


def test_overrides_are_honoured_and_recorded(tmp_path: Path) -> None:
    done = export(SAMPLE, tmp_path / "out.kosine", max_tokens=16, prompts={"query": "질문: "})
    assert done.manifest.max_tokens == 16
    assert done.manifest.prompts["query"] == "질문: "
    assert done.manifest.source["overrides"] == {"max_tokens": 16, "prompts": {"query": "질문: "}}
    encoder = kosine.load(done.path, backend="onnx")
    assert encoder.prepare(["가 나 다 라 마 바 사 " * 20]).batch.lengths.tolist() == [16]


@pytest.mark.parametrize("source", ["file", "texts"])
def test_ranges_come_from_the_texts_that_are_given(
    tmp_path: Path, sample: kosine.Encoder, source: str
) -> None:
    texts = [f"{number}번째 손님이 커피를 주문했습니다." for number in range(40)] + [
        "",
        "가 " * 200,
    ]
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    prompts = {"query": "질문: ", "document": "문서: "}
    done = export(
        SAMPLE,
        tmp_path / "out.kosine",
        prompts=prompts,
        calibrate=file if source == "file" else iter(texts),
    )
    assert done.manifest.source["overrides"]["calibration_texts"] == 42
    used = [prompt for prompt in done.manifest.prompts.values() if prompt]  # in their order
    assert {*prompts.values()} <= {*used}
    rows = [sample.encode(texts)]
    rows += [sample.encode(texts[i :: len(used)], prompt=each) for i, each in enumerate(used)]
    assert done.manifest.ranges == calibrated_ranges(np.concatenate(rows))
    assert done.manifest.ranges != sample.manifest.ranges
    other = kosine.load(done.path, backend="onnx")
    assert other.fingerprint != sample.fingerprint


@pytest.mark.parametrize(
    "texts", [[], ["가"] * 100, [str(n) for n in range(31)] + ["", " ", "\t"], "가\n나\n"]
)
def test_too_few_texts_to_calibrate_with(tmp_path: Path, texts: list[str] | str) -> None:
    given = texts
    if isinstance(texts, str):
        given = tmp_path / "texts.txt"
        given.write_text(texts, encoding="utf-8")
    with pytest.raises(InputError, match=r"\d+ different texts .*at least 32.*hundreds"):
        export(SAMPLE, tmp_path / "out.kosine", calibrate=given)
    assert not (tmp_path / "out.kosine").exists()


def test_a_long_calibration_file_is_taken_from_all_over() -> None:
    found = calibration.read_calibration(map(str, range(25_001)))
    assert len(found) <= calibration.MAX_CALIBRATION
    assert (found[0], found[-1]) == ("0", "24999")


def test_the_command_line_calibrates(tmp_path: Path, kosine_command) -> None:
    few = tmp_path / "few.txt"
    few.write_text("가\n나\n", encoding="utf-8")
    for name, message in ((few, "2 different texts"), (tmp_path / "none.txt", "No such file")):
        done = kosine_command("export", SAMPLE, tmp_path / "out.kosine", "--calibrate", name)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out.kosine").exists()


def test_exports_without_torch_have_the_same_ranges(
    tmp_path: Path, sample: kosine.Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "missing_packages", lambda **_: ("torch",))
    done = export(SAMPLE, tmp_path / "out.kosine")
    assert done.manifest.ranges == sample.manifest.ranges
    assert kosine.load(done.path, backend="onnx").fingerprint == sample.fingerprint


def test_nfc_is_done_only_where_asked(tmp_path: Path, sample: kosine.Encoder) -> None:
    composed, decomposed = "한글", "\u1112\u1161\u11ab\u1100\u1173\u11af"
    plain = sample.prepare([composed, decomposed]).batch
    assert plain.take([0]).ids.tolist() != plain.take([1]).ids.tolist()
    encoder = kosine.load(export(SAMPLE, tmp_path / "out.kosine", unicode="NFC").path)
    assert encoder.manifest.unicode == "NFC"
    batch = encoder.prepare([composed, decomposed]).batch
    assert batch.take([0]).ids.tolist() == batch.take([1]).ids.tolist()
    assert encoder.fingerprint != sample.fingerprint


@pytest.mark.parametrize(
    "options", [{"targets": ("onnx", "tensorrt-int4")}, {"unicode": "NFKD"}, {"targets": ("fp16",)}]
)
def test_unknown_options_are_refused(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(UnknownOption, match="known:"):
        export(SAMPLE, tmp_path / "out.kosine", **options)
    assert not list(tmp_path.iterdir())


def test_a_misread_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a graph with the wrong epsilon must not become a bundle."""
    import dataclasses

    read = export_module.read_checkpoint

    def misread(*args: object, **options: object) -> object:
        found = read(*args, **options)
        wrong = dataclasses.replace(found.spec.layers[0].norm, eps=0.05)
        layers = tuple(dataclasses.replace(block, norm=wrong) for block in found.spec.layers)
        return dataclasses.replace(found, spec=dataclasses.replace(found.spec, layers=layers))

    monkeypatch.setattr(export_module, "read_checkpoint", misread)
    with pytest.raises(ParityError, match="min cosine"):
        export(SAMPLE, tmp_path / "out.kosine")
    assert not list(tmp_path.iterdir())


def test_constants_of_two_types_do_not_share_a_name() -> None:
    g = Graph({}, "weights.safetensors", "float32")
    assert g.ints("one", 1) != g.number("one", 1.0)


def test_a_shadow_has_the_names_of_its_float16_graph(sample_bundle: Path) -> None:
    bundle = Bundle(sample_bundle)
    from kosine_export.checkpoint.checkpoint import read_checkpoint

    spec = read_checkpoint(SAMPLE).spec
    entries = bundle.tensors("fp16/weights.safetensors").entries
    half, names = packed_graph(spec, entries, max_tokens=128, precision="float16")
    shadow, shadowed = packed_graph(spec, entries, max_tokens=128, precision="float16", shadow=True)
    assert names == shadowed
    assert [n.output for n in half.graph.node] == [n.output for n in shadow.graph.node]
    assert np.all([n.op_type for n in half.graph.node] == [n.op_type for n in shadow.graph.node])
