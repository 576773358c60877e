"""BGE-M3's sparse and multi-vector heads: every engine against plain PyTorch."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

import factories
import kosine
import numpy_encoder
from conftest import ROOT
from family_checks import engines
from kosine import cli
from kosine.backend import CPU_BATCH_TOKENS
from kosine.backends.fake import FakeBackend
from kosine.backends.lowering import lower
from kosine.bundle import Bundle
from kosine.encoder import Encoder
from kosine.errors import (
    BackendError,
    CorruptCheckpoint,
    InputError,
    IntegrityError,
    NonFiniteVector,
    UnknownOption,
)
from kosine.heads import TokenHeads
from kosine.packed import Pooled
from kosine.spec import Heads
from kosine.token_scores import lexical_scores, max_sim
from kosine_export.checkpoint.checkpoint import read_checkpoint
from kosine_export.export import export
from kosine_kernels import reference
from native_machine import MISSING, why_not

torch = pytest.importorskip("torch", reason="the referee, kosine[torch], is absent")

MULTI = 48  # columns, fewer than the encoder's 64
PROMPT = "검색 질문: "
TEXTS = [
    "한국어 문장 임베딩 한국어 한국어",
    "",
    "안녕",
    "문장 " * 200,
    "<s> 안녕 </s> <mask> ☃",
    "임베딩 문장을 찾는 질문입니다",
]


def build(path, **options):
    """As BGE-M3 is published: CLS, Normalize, pickles."""
    path = factories.build(
        path,
        family="xlm-roberta",
        pooling="cls",
        normalize=True,
        weights="bin",
        prompts={"query": PROMPT},
        **options,
    )
    factories.write_heads(path, 64, multi=MULTI)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    path = build(folder / "m")
    done = export(path, folder / "b.kosine", allow_pickle=True)
    return path, done.path, factories.referee(path)


def expected(path, model, texts, prompt=""):
    """FlagEmbedding's definitions, text by text."""
    layers = [
        torch.load(path / file, weights_only=True)
        for file in ("sparse_linear.pt", "colbert_linear.pt")
    ]
    (sparse, multi) = ({name: each.float() for name, each in one.items()} for one in layers)
    tokenizer = model.tokenizer
    unused = {
        tokenizer.convert_tokens_to_ids(tokenizer.special_tokens_map[name])
        for name in ("cls_token", "eos_token", "pad_token", "unk_token")
    }
    weights, vectors = [], []
    for ids in factories.referee_ids(model, [prompt + text for text in texts]):
        with torch.no_grad():
            hidden = model[0].auto_model(torch.tensor([ids])).last_hidden_state[0]
            each = torch.relu(hidden @ sparse["weight"].T + sparse["bias"])[:, 0]
            own = hidden[1:] @ multi["weight"].T + multi["bias"]
            vectors.append(torch.nn.functional.normalize(own, dim=-1).numpy())
        found: dict[int, float] = {}
        for token, weight in zip(ids, each.tolist(), strict=True):
            if token not in unused and weight > 0:
                found[token] = max(weight, found.get(token, 0.0))
        weights.append(found)
    return weights, vectors


def check_sparse(found, wanted, error):
    for own, other in zip(found, wanted, strict=True):
        for token in own.keys() | other.keys():  # a weight of 0 is not there
            assert abs(own.get(token, 0.0) - other.get(token, 0.0)) <= error


def check_multi(found, wanted, error):
    for own, other in zip(found, wanted, strict=True):
        assert own.dtype == np.float32
        assert own.shape == other.shape
        assert np.abs(own - other).max() <= error


@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_every_engine_gives_what_pytorch_gives(exported, prompt):
    path, bundle, model = exported
    sparse, multi = expected(path, model, TEXTS, prompt)
    assert sum(map(len, sparse)) >= 4
    for backend, dtype, error in engines():
        encoder = kosine.load(bundle, backend=backend, dtype=dtype)
        check_sparse(encoder.encode(TEXTS, prompt=prompt, output="sparse"), sparse, 4 * error)
        check_multi(encoder.encode(TEXTS, prompt=prompt, output="multi"), multi, 4 * error)


def test_the_numpy_reference_gives_what_pytorch_gives(exported):
    path, bundle, model = exported
    checkpoint = read_checkpoint(path, allow_pickle=True)
    assert checkpoint.spec.heads == Heads(sparse=True, multi=MULTI)
    heads = TokenHeads(Bundle(bundle), ("sparse", "multi"))
    sparse, multi = [], []
    for ids in map(np.int32, numpy_encoder.token_ids(checkpoint, TEXTS)):
        states = np.empty((len(ids), 64), np.float32)
        starts = np.array([0, len(ids)], np.int32)
        positions = numpy_encoder.positions(checkpoint, ids)
        steps = lower(checkpoint.spec)
        reference.encode(steps, checkpoint.tensors, ids, starts, None, positions, states=states)
        sparse.append(heads.sparse(ids, states))
        multi.append(heads.multi(states))
    wanted = expected(path, model, TEXTS)
    check_sparse(sparse, wanted[0], 2e-5)
    check_multi(multi, wanted[1], 2e-5)


def test_several_outputs_of_one_pass(exported, monkeypatch):
    _, bundle, _ = exported
    for backend, dtype, _ in engines():
        encoder = kosine.load(bundle, backend=backend, dtype=dtype)
        alone = {name: encoder.encode(TEXTS, output=name) for name in ("sparse", "multi")}
        calls = []
        run = type(encoder.backend).run_tokens
        monkeypatch.setattr(
            type(encoder.backend),
            "run_tokens",
            lambda self, batch, run=run, calls=calls: calls.append(len(batch)) or run(self, batch),
        )
        found = encoder.encode(TEXTS, output=["sparse", "dense", "multi"])
        assert list(found) == ["sparse", "dense", "multi"]
        assert sum(calls) == len(TEXTS)
        np.testing.assert_array_equal(found["dense"], encoder.encode(TEXTS))
        assert found["sparse"] == alone["sparse"]
        check_multi(found["multi"], alone["multi"], 0)
        one = encoder.encode_query("안녕", output=("dense", "sparse"))
        np.testing.assert_array_equal(one["dense"], encoder.encode_query("안녕"))
        assert one["sparse"] == encoder.encode(["안녕"], prompt=PROMPT, output="sparse")[0]
        assert encoder.encode([], output="sparse") == []
        assert encoder.encode(TEXTS, output=("dense",), truncate_dim=8)["dense"].shape == (6, 8)


def test_no_text_changes_another_and_batches_change_nothing(exported):
    _, bundle, _ = exported
    for backend, dtype, error in engines():
        exact = 0 if backend == "native" else error
        encoder = kosine.load(bundle, backend=backend, dtype=dtype, threads=2)
        before = encoder.counts()["texts"]
        sparse = encoder.encode(TEXTS * 30, output="sparse", batch_size=7)
        multi = encoder.encode(TEXTS * 30, output="multi")
        assert encoder.counts()["texts"] - before == 2 * 30 * len(TEXTS)
        small = kosine.load(bundle, backend=backend, dtype=dtype, max_batch_tokens=40)
        for i, text in enumerate(TEXTS):
            one = small.encode(text, output="sparse")
            check_sparse([sparse[i], sparse[-len(TEXTS) + i]], [one, one], 4 * exact)
            own = small.encode(text, output="multi")
            check_multi([multi[i], multi[-len(TEXTS) + i]], [own, own], 4 * exact)


def test_more_texts_than_a_window_stay_in_order(exported):
    _, bundle, _ = exported
    encoder = kosine.load(bundle, backend="onnx")
    texts = [f"문장 {'가나다라'[i % 4]}" for i in range(2050)]
    found = encoder.encode(texts, output="sparse")
    assert len(found) == len(texts)
    check_sparse(found[2046:], encoder.encode(texts[2046:], output="sparse"), 2e-5)


@pytest.mark.skipif(bool(MISSING), reason="no native engine")
def test_int8_weights_keep_the_heads(tmp_path):
    for dtype in ("w8a16", "int8"):
        if why_not(dtype, ""):
            pytest.skip(f"{dtype} does not run here: {why_not(dtype, '')}")
    path = build(tmp_path / "m")
    bundle = export(path, tmp_path / "b.kosine", allow_pickle=True, targets=["native-int8"]).path
    wanted = kosine.load(bundle, backend="native", dtype="float32").encode(TEXTS, output="multi")
    for dtype in ("w8a16", "int8"):
        encoder = kosine.load(bundle, backend="native", dtype=dtype)
        found = encoder.encode(TEXTS, output="multi")
        least = min((a * b).sum(axis=1).min() for a, b in zip(found, wanted, strict=True))
        assert 0.98 < least < 1 - 1e-7  # the encoder is rounded, and nothing else


class TestScores:
    def test_lexical(self):
        a, b = {5: 0.5, 7: 2.0, 9: 1.0}, {7: 0.25, 5: 4.0, 8: 3.0}
        assert lexical_scores(a, b).tolist() == [[2.5]]
        found = lexical_scores([a, {}, b], [b, {8: 2.0}])
        assert found.dtype == np.float32
        assert found.tolist() == [[2.5, 0.0], [0.0, 0.0], [0.0625 + 16 + 9, 6.0]]
        assert lexical_scores([], [a]).shape == (0, 1)

    def test_max_sim(self):
        rng = np.random.default_rng(3)
        queries, documents = (
            [rng.standard_normal((n, 6)).astype(np.float32) for n in lengths]
            for lengths in ((3, 1, 5), (4, 2))
        )
        wanted = [[(q @ d.T).max(axis=1).mean() for d in documents] for q in queries]
        np.testing.assert_allclose(max_sim(queries, documents), wanted, rtol=1e-6)
        np.testing.assert_allclose(max_sim(queries[0], documents[1]), [[wanted[0][1]]], rtol=1e-6)
        assert max_sim([], documents).shape == (0, 2)

    @pytest.mark.parametrize(
        "documents", [np.zeros((2, 5)), np.zeros((0, 6)), [np.zeros(6)], [np.zeros((2, 6, 1))]]
    )
    def test_what_does_not_fit(self, documents):
        with pytest.raises(InputError):
            max_sim(np.zeros((3, 6)), documents)

    def test_they_are_those_of_the_definitions(self, exported):
        path, bundle, model = exported
        encoder = kosine.load(bundle, backend="onnx")
        pair = TEXTS[0], TEXTS[5]
        (a, b), (q, p) = expected(path, model, pair)
        lexical = sum(weight * b[token] for token, weight in a.items() if token in b)
        late = torch.einsum("in,jn->ij", torch.tensor(q), torch.tensor(p))
        late = late.max(-1).values.sum() / len(q)
        sparse, multi = (encoder.encode(pair, output=name) for name in ("sparse", "multi"))
        assert lexical > 0
        assert lexical_scores(*sparse) == pytest.approx(lexical, abs=1e-4)
        assert max_sim(*multi) == pytest.approx(float(late), abs=1e-5)


class TestRefusals:
    def test_a_bundle_without_heads(self, sample):
        for output in ("sparse", ["dense", "multi"]):
            with pytest.raises(UnknownOption, match="gives no output") as caught:
                sample.encode("안녕", output=output)
            assert "it gives dense" in str(caught.value)

    @pytest.mark.parametrize("output", ["colbert", "", [], ["dense", "x"], [["dense"]], None, 7])
    def test_unknown_outputs(self, exported, output):
        encoder = kosine.load(exported[1], backend="onnx")
        with pytest.raises(UnknownOption, match="known: dense, sparse, multi"):
            encoder.encode("안녕", output=output)

    @pytest.mark.parametrize(
        "option",
        [
            {"precision": "int8"},
            {"truncate_dim": 8},
            {"normalize_embeddings": False},
            {"convert_to_tensor": True},
            {"convert_to_numpy": False},
        ],
    )
    def test_options_of_dense_vectors(self, exported, option):
        encoder = kosine.load(exported[1], backend="onnx")
        with pytest.raises(
            InputError, match=f"{next(iter(option))} was given, with output 'multi'"
        ):
            encoder.encode(["안녕"], output="multi", **option)
        assert len(encoder.encode(["안녕"], output=["dense", "multi"], **option)["multi"]) == 1

    def test_engines_that_hand_out_no_tokens(self, exported, tmp_path):
        path, bundle, _ = exported
        fake = Encoder(Bundle(bundle), FakeBackend(64))
        with pytest.raises(BackendError, match="'fake' on cpu gives no output 'sparse'"):
            fake.encode("안녕", output="sparse")
        half = export(path, tmp_path / "b.kosine", allow_pickle=True, targets=["onnx-fp16"]).path
        encoder = kosine.load(half, backend="onnx", dtype="float16")
        with pytest.raises(BackendError, match=r"fp16/packed\.onnx gives no vectors of tokens"):
            encoder.encode("안녕", output="sparse")
        assert not [
            n for n in Bundle(half).tensors("fp16/weights.safetensors").entries if "heads" in n
        ]

    def test_a_manifest_whose_heads_are_not_in_the_weights(self, exported, tmp_path):
        folder = tmp_path / "b.kosine"
        shutil.copytree(exported[1], folder)
        value = json.loads((folder / "manifest.json").read_text("utf-8"))
        value["spec"]["heads"]["multi"] = MULTI + 1
        (folder / "manifest.json").write_text(json.dumps(value), "utf-8")
        encoder = kosine.load(folder, backend="onnx")
        with pytest.raises(IntegrityError, match=r"heads\.multi\.weight of shape \(64, 49\)"):
            encoder.encode("안녕", output="multi")
        assert encoder.encode("안녕", output="sparse")


class Broken:
    """Vectors of tokens that are NaN: in company for all, alone for texts of `length` tokens."""

    name, dtype, device, threads, batch_tokens, dim = (
        "x",
        "float32",
        "cpu",
        1,
        CPU_BATCH_TOKENS,
        64,
    )

    def __init__(self, length):
        self.length = length

    def run(self, batch):
        return Pooled(np.ones((len(batch), 64), np.float32), np.ones(len(batch), np.float32))

    def run_tokens(self, batch):
        hidden = np.ones((batch.num_tokens, 64), np.float32)
        if self.length in batch.lengths:
            hidden[:] = np.nan
        return self.run(batch), hidden

    def close(self):
        pass


def test_a_text_that_comes_out_nan_is_named_and_harms_no_other(exported):
    texts = ["안녕", "안녕 안녕 안녕 안녕", "문장"]
    encoder = Encoder(Bundle(exported[1]), Broken(10_000))
    lengths = encoder.count_tokens(texts)
    assert len(encoder.encode(texts, output="sparse")) == 3
    broken = Encoder(Bundle(exported[1]), Broken(lengths[1]))
    with pytest.raises(NonFiniteVector) as caught:
        broken.encode(texts, output="sparse")
    assert caught.value.indices == (1,)


def test_the_examples_of_the_page(exported, tmp_path, monkeypatch, capsys):
    (tmp_path / "m3.kosine").symlink_to(exported[1])
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "sparse.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 3
    exec("\n".join(blocks), {})
    weights, shape, several, lexical, late = capsys.readouterr().out.splitlines()
    assert eval(weights)
    assert shape.endswith(f", {MULTI})")
    assert several == "(2, 64) 2 2"
    assert lexical.startswith("[[")
    assert late.startswith("[[")


def test_info_lists_what_a_bundle_gives(exported, sample_bundle, capsys):
    for bundle, given in ((exported[1], "dense, sparse, multi"), (sample_bundle, "dense")):
        assert cli.main(["info", str(bundle)]) == 0
        text = capsys.readouterr().out
        assert (f"  outputs      {given}\n" in text) == (given != "dense")
        assert cli.main(["info", str(bundle), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["outputs"] == given.split(", ")


class TestCheckpoints:
    def test_pickles_are_read_where_that_is_allowed(self, tmp_path):
        path = factories.build(tmp_path / "m", family="xlm-roberta", pooling="cls")
        plain = read_checkpoint(path)
        factories.write_heads(path, 64)
        left = read_checkpoint(path)
        assert left.spec == plain.spec
        assert any("sparse_linear.pt and colbert_linear.pt left out" in note for note in left.notes)
        read = read_checkpoint(path, allow_pickle=True)
        assert read.spec.heads == Heads(sparse=True, multi=64)
        assert {"sparse_linear.pt", "colbert_linear.pt"} < read.source["sha256"].keys()
        assert any("came from a pickle" in note for note in read.notes)
        assert read.tensors["heads.sparse.weight"].shape == (64, 1)

    @pytest.mark.parametrize("name", ["sparse", "multi"])
    def test_one_head_alone(self, name, tmp_path):
        path = build(tmp_path / "m")
        gone = {"sparse": "colbert_linear.pt", "multi": "sparse_linear.pt"}[name]
        (path / gone).unlink()
        heads = read_checkpoint(path, allow_pickle=True).spec.heads
        assert heads == {"sparse": Heads(True, None), "multi": Heads(False, MULTI)}[name]

    @pytest.mark.parametrize(
        "state",
        [
            {"weight": (1, 63), "bias": (1,)},
            {"weight": (2, 64), "bias": (2,)},
            {"weight": (1, 64)},
            {"weight": (1, 64), "bias": (1,), "more": (1,)},
            {"weight": (64,), "bias": (1,)},
        ],
    )
    def test_layers_that_do_not_fit(self, state, tmp_path):
        path = build(tmp_path / "m")
        zeros = {name: torch.zeros(shape) for name, shape in state.items()}
        torch.save(zeros, path / "sparse_linear.pt")
        with pytest.raises(CorruptCheckpoint, match=r"sparse_linear\.pt holds"):
            read_checkpoint(path, allow_pickle=True)

    def test_nothing_but_tensors_is_unpickled(self, tmp_path):
        path = build(tmp_path / "m")
        torch.save(torch.nn.Linear(64, 1), path / "sparse_linear.pt")
        with pytest.raises(CorruptCheckpoint, match="weights_only=True"):
            read_checkpoint(path, allow_pickle=True)

    def test_only_bundles_with_heads_have_the_output(self, exported, sample_bundle):
        import onnx

        for bundle, more in ((exported[1], ["last_hidden_state"]), (sample_bundle, [])):
            graph = onnx.load(bundle / "packed.onnx", load_external_data=False).graph
            assert [each.name for each in graph.output] == ["vectors", "norms", *more]
