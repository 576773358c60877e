"""Weights of bytes from the checkpoint to the user: export, bundle, engine, commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import factories
import kosine
import kosine_export.int8 as int8_module
from conftest import SAMPLE
from kosine import cli
from kosine.backends.lowering import lower
from kosine.backends.native import NativeBackend
from kosine.backends.registry import make_backend
from kosine.bundle import Bundle
from kosine.bundle.canary import GATES, Canary, replay
from kosine.bundle.int8 import INT8_WEIGHTS
from kosine.bundle.tensorfile import TensorFile, write_tensors
from kosine.errors import (
    BackendError,
    BackendUnavailable,
    IntegrityError,
    MissingTarget,
    ParityError,
)
from kosine.packed import Packed
from kosine.positions import position_ids
from kosine.serving.http.models import load_verified
from kosine_export.checkpoint.checkpoint import read_checkpoint
from kosine_export.export import export
from kosine_export.int8 import MAX_ERROR, quantize_layers
from kosine_kernels import engine
from kosine_kernels.quantized import products
from kosine_kernels.reference import encode
from native_machine import BYTES_TABLES, needs_native, tables
from rehash import change_tensor, rehash
from specs import spec_of_sizes
from test_kernels_int8 import ALL, check_product

pytestmark = needs_native
DTYPES = ("w8a16", "int8")
TEXTS = ["한 남자가 기타를 치고 있다.", "A man is playing a guitar.", "", "커피 한 잔 주세요. " * 9]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """The sample with target native-int8. Read-only: copy it to change it."""
    pytest.importorskip("sentence_transformers", reason="the referee, kosine[torch], is absent")
    path = tmp_path_factory.mktemp("bundles") / "sample.kosine"
    export(SAMPLE, path, targets=("native-int8",))
    return path


@pytest.fixture
def copy(bundle, tmp_path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy.kosine"))


@pytest.fixture
def run(capsys):
    def call(*words: object) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


class TestBundle:
    def test_what_is_written_is_recorded_with_its_parity(self, bundle):
        manifest = Bundle(bundle).manifest
        assert manifest.targets == ("onnx", "native-int8")
        assert {name for name in manifest.files() if name.startswith("int8/")} == {INT8_WEIGHTS}
        record = manifest.int8
        assert record.tokens > 1500
        assert record.max_error == MAX_ERROR
        assert set(record.errors) == set(products(lower(manifest.spec)))
        assert all(0.001 < error < 0.03 for error in record.errors.values())
        assert (record.bytes_only, record.bytes_only_share) == ((), 0)
        for dtype in DTYPES:
            found = manifest.parity["others"][dtype]
            assert found["passed"]
            assert (found["backend"], found["dtype"]) == ("native", dtype)
            assert found["gate"] == GATES[dtype].to_json()
            assert found["centred"]["min_cosine"] >= 0.9995  # a trained model, above its gate

    def test_the_bytes_stand_for_the_weights(self, bundle):
        opened = Bundle(bundle)
        exact, file = opened.tensors(), opened.tensors(INT8_WEIGHTS)
        names = products(lower(opened.manifest.spec))
        for name, source in names.items():
            weight, scale = file[f"{name}.weight"], file[f"{name}.scale"]
            assert weight.dtype == np.int8
            assert abs(weight.astype(int)).max() <= 127
            step = scale * file[f"{source}.smooth"][:, None]
            # To the nearest step, but for what makes up for the rounding of other rows.
            steps = np.abs(weight * step - exact[f"{name}.weight"]) / step
            assert steps.max() <= 5
            assert (steps <= 0.501).mean() >= 0.7
        assert all(entry.offset % 64 == 0 for entry in file.entries.values())
        assert (bundle / INT8_WEIGHTS).stat().st_size < 0.27 * sum(
            exact.entries[f"{name}.weight"].nbytes for name in names
        )

    def test_it_is_written_the_same_again(self, bundle, tmp_path, monkeypatch):
        monkeypatch.setattr("kosine_export.export.missing_packages", lambda **_: ("torch",))
        done = export(SAMPLE, tmp_path / "again.kosine", targets=("native-int8",))
        assert done.manifest.parity is None
        old = Bundle(bundle).manifest
        assert done.manifest.files()[INT8_WEIGHTS] == old.files()[INT8_WEIGHTS]
        assert done.manifest.int8 == old.int8


class TestQuantizing:
    """`quantize_layers` on an encoder of random numbers, one of whose columns is far too large."""

    SPEC = spec_of_sizes(hidden=64, heads=2, inner=128, layers=2, vocab=90)
    BATCH = Packed.of([np.arange(i, i + 12, dtype=np.int32) for i in range(70)])

    @pytest.fixture
    def tensors(self):
        rng = np.random.default_rng(0)
        shapes = {
            "embeddings.word.weight": (90, 64),
            "embeddings.position.weight": (64, 64),
            "embeddings.token_type.weight": (2, 64),
        }
        norms = ["embeddings.norm"]
        for i in range(2):
            at = f"layers.{i}"
            for name, rows, columns in (
                ("attention.qkv", 64, 192), ("attention.output", 64, 64),
                ("ffn.up", 64, 128), ("ffn.down", 128, 64),
            ):  # fmt: skip
                shapes |= {
                    f"{at}.{name}.weight": (rows, columns), f"{at}.{name}.bias": (columns,)
                }  # fmt: skip
            norms += [f"{at}.attention.norm", f"{at}.ffn.norm"]
        tensors = {
            name: (rng.standard_normal(shape) * 0.125).astype(np.float32)
            for name, shape in shapes.items()
        }
        for norm in norms:
            tensors[f"{norm}.weight"] = np.ones(64, np.float32)
            tensors[f"{norm}.bias"] = np.zeros(64, np.float32)
        return tensors

    def outlying(self, tensors):
        """A column sixty times larger, which the weight makes up for: the same function."""
        tensors["layers.0.attention.norm.weight"][7] = 60
        tensors["layers.0.ffn.up.weight"][7] /= 60
        return tensors

    def test_factors_share_between_the_two_sides(self, tensors):
        arrays, record = quantize_layers(self.SPEC, self.outlying(tensors), self.BATCH)
        smooth = arrays["layers.0.ffn.up.smooth"]
        assert smooth[7] < 0.05 * np.median(smooth)
        assert record.errors["layers.0.ffn.up"] < 0.02
        assert record.bytes_only == ()
        assert (record.texts, record.tokens) == (70, 840)

    def test_without_them_that_product_stays(self, tensors, monkeypatch):
        monkeypatch.setattr(
            int8_module,
            "smoothing_factors",
            lambda largest, *_: np.ones(len(largest), np.float32),
        )
        _, record = quantize_layers(self.SPEC, self.outlying(tensors), self.BATCH)
        assert record.errors["layers.0.ffn.up"] > MAX_ERROR > record.errors["layers.0.ffn.down"]
        assert record.bytes_only == ("layers.0.ffn.up",)
        layer = 64 * 192 + 64 * 64 + 2 * 64 * 128
        assert record.bytes_only_share == pytest.approx(64 * 128 / (2 * layer))

    def test_what_is_not_finite_does_not_pass_the_probe(self, tensors):
        tensors["layers.1.attention.output.weight"][3, 3] = np.nan
        with np.errstate(all="ignore"):
            _, record = quantize_layers(self.SPEC, tensors, self.BATCH)
        assert "layers.1.attention.output" in record.bytes_only

    def test_of_many_texts_some_and_of_long_ones_the_beginning(self, tensors, monkeypatch):
        monkeypatch.setattr(int8_module, "MAX_TOKENS", 100)
        monkeypatch.setattr(int8_module, "MAX_LENGTH", 5)
        _, record = quantize_layers(self.SPEC, tensors, self.BATCH)
        assert (record.texts, record.tokens) == (18, 90)


class TestEngine:
    @tables(BYTES_TABLES)
    @pytest.mark.parametrize("threads", [1, 2])
    def test_the_canary_passes(self, bundle, dtype, isa, threads, monkeypatch):
        monkeypatch.setenv(engine.ISA_VARIABLE, isa)
        opened = Bundle(bundle)
        backend = NativeBackend(opened, dtype=dtype, threads=threads)
        assert (backend.name, backend.dtype, backend.isa) == ("native", dtype, isa)
        found = replay(Canary.read(opened), backend)
        assert found.passes(GATES[dtype]), found
        assert found.centred.min_cosine >= 0.9995

    @tables(BYTES_TABLES)
    def test_a_text_has_the_same_bits_alone_and_anywhere(self, bundle, dtype, isa, monkeypatch):
        monkeypatch.setenv(engine.ISA_VARIABLE, isa)
        opened = Bundle(bundle)
        batch = Canary.read(opened).batch
        backends = [NativeBackend(opened, dtype=dtype, threads=threads) for threads in (1, 2)]
        whole = backends[0].run(batch)
        order = np.random.default_rng(0).permutation(len(batch))
        for backend in backends:
            mixed = backend.run(batch.take(order))
            assert mixed.vectors.tobytes() == whole.vectors[order].tobytes()
            assert mixed.norms.tobytes() == whole.norms[order].tobytes()
            for i in order[:10]:
                alone = backend.run(batch.take([i])).vectors
                assert alone.tobytes() == whole.vectors[i].tobytes()

    def test_auto_takes_neither(self, bundle):
        assert make_backend(Bundle(bundle)).dtype not in DTYPES
        assert make_backend(Bundle(bundle), backend="native").dtype not in DTYPES

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_batcher_gives_the_same_bits(self, bundle, dtype):
        encoder = kosine.load(bundle, dtype=dtype)
        assert (encoder.backend.name, encoder.backend.dtype) == ("native", dtype)
        expected = encoder.encode(TEXTS)
        with kosine.Batcher(encoder) as batcher:
            found = [future.result(60) for future in [batcher.submit(text) for text in TEXTS]]
        assert np.stack(found).tobytes() == expected.tobytes()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_service_takes_it(self, bundle, dtype):
        assert load_verified(bundle, {"dtype": dtype}).backend.dtype == dtype

    def test_products_that_stay_run_as_in_w8a16(self, tmp_path, monkeypatch, bundle):
        errors = sorted(Bundle(bundle).manifest.int8.errors.values())
        monkeypatch.setattr(int8_module, "MAX_ERROR", errors[len(errors) // 3])
        monkeypatch.setattr("kosine_export.export.missing_packages", lambda **_: ("torch",))
        manifest = export(SAMPLE, tmp_path / "b.kosine", targets=("native-int8",)).manifest
        assert 0.3 < manifest.int8.bytes_only_share < 1
        some, none = (kosine.load(path, dtype="int8") for path in (tmp_path / "b.kosine", bundle))
        exact = kosine.load(bundle, backend="native", dtype="float32").encode(TEXTS)
        errors = [np.abs(each.encode(TEXTS) - exact).max() for each in (some, none)]
        assert errors[0] < errors[1]
        assert some.fingerprint != none.fingerprint
        w8a16 = [kosine.load(path, dtype="w8a16") for path in (tmp_path / "b.kosine", bundle)]
        assert w8a16[0].fingerprint == w8a16[1].fingerprint

    @pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells it")
    @pytest.mark.parametrize("dtype", [*DTYPES, "bfloat16"])
    def test_no_weights_of_the_bundle_stay_in_memory(self, bundle, dtype):
        """What is packed is; the files' pages go back."""
        if dtype == "bfloat16" and not engine_runs("bfloat16"):
            pytest.skip("this CPU has no bfloat16 products")
        code = (
            "import re, sys, kosine\n"
            "encoder = kosine.load(sys.argv[1], backend='native', dtype=sys.argv[2])\n"
            "for entry in re.split(r'(?m)^(?=[0-9a-f]+-)', open('/proc/self/smaps').read()):\n"
            "    if 'weights.safetensors' in entry:\n"
            "        print(re.search(r'Size: +(\\d+)', entry)[1],\n"
            "              re.search(r'Rss: +(\\d+)', entry)[1])\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(bundle), dtype],
            capture_output=True, text=True, timeout=120, check=True, env=os.environ,
        )  # fmt: skip
        found = [list(map(int, line.split())) for line in done.stdout.splitlines()]
        assert len(found) == 2  # the float32 file, and the one of bytes
        assert max(size for size, _ in found) > 10_000
        assert all(resident == 0 for _, resident in found), found


def engine_runs(dtype: str) -> bool:
    try:
        engine.select_isa(dtype)
    except engine.Unavailable:
        return False
    return True


UP = "layers.0.ffn.up"


def flip(path: Path) -> None:
    data = bytearray((path / INT8_WEIGHTS).read_bytes())
    data[-100] ^= 1
    (path / INT8_WEIGHTS).write_bytes(data)


def rewrite(change):
    """Change the tensors of the file, and the manifest's sha256 with them."""

    def do(path: Path) -> None:
        file = path / INT8_WEIGHTS
        found = TensorFile(file).tensors()
        tensors = {name: np.array(value) for name, value in found.items() if name[0] != "_"}
        change(tensors)
        write_tensors(file, tensors)
        rehash(path)

    return do


def put(name, index, value):
    return rewrite(lambda tensors: tensors[name].__setitem__(index, value))


def swap(name, change):
    return rewrite(lambda tensors: tensors.__setitem__(name, change(tensors[name])))


DAMAGE = {
    "a bit": (flip, IntegrityError, r"int8/weights\.safetensors has sha256"),
    "missing": (lambda path: (path / INT8_WEIGHTS).unlink(), IntegrityError, "is missing"),
    "cut": (
        lambda path: os.truncate(path / INT8_WEIGHTS, 1000), IntegrityError, "is 1000 bytes long"
    ),
    "a tensor less": (
        rewrite(lambda tensors: tensors.pop(f"{UP}.scale")),
        IntegrityError, rf"lacks tensor '{UP}\.scale'",
    ),
    "a tensor more": (
        rewrite(lambda tensors: tensors.update({"extra": np.ones(3, np.float32)})),
        IntegrityError, "has tensor 'extra'",
    ),
    "NaN": (put(f"{UP}.scale", 3, np.nan), IntegrityError, "scales nothing"),
    "infinite": (put(f"{UP}.smooth", 3, np.inf), IntegrityError, "scales nothing"),
    "zero": (put(f"{UP}.smooth", 0, 0), IntegrityError, "scales nothing"),
    "another shape": (
        swap(f"{UP}.weight", lambda x: np.ascontiguousarray(x.T)),
        BackendError, rf"{UP}\.weight has shape \(1024, 256\)",
    ),
    "a short scale": (
        swap(f"{UP}.scale", lambda x: x[:-1]), BackendError, rf"{UP}\.scale has shape \(1023\)"
    ),
    "floats": (
        swap(f"{UP}.weight", lambda x: x.astype(np.float32)), BackendError, "int8 is needed"
    ),
    "float64": (swap(f"{UP}.scale", lambda x: x.astype(np.float64)), BackendError, "float32"),
}  # fmt: skip


class TestRefusals:
    @pytest.mark.parametrize("what", DAMAGE)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_file_that_was_tampered_with(self, copy, what, dtype):
        damage, error, message = DAMAGE[what]
        damage(copy)
        with pytest.raises(error, match=message) as caught:
            kosine.load(copy, dtype=dtype)
        assert "\n" not in str(caught.value)

    def test_float32_does_not_read_it(self, copy):
        flip(copy)
        assert kosine.load(copy, backend="native", dtype="float32").encode(["가"]).shape == (1, 256)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("named", ["auto", "native"])
    def test_a_bundle_without_the_target(self, sample_bundle, dtype, named):
        with pytest.raises(MissingTarget, match=rf"weights of bytes.*{dtype}.*its targets: onnx"):
            kosine.load(sample_bundle, backend=named, dtype=dtype)

    @pytest.mark.parametrize("verb", ["verify", "embed", "score", "eval", "search", "compare"])
    def test_every_verb_says_which_target(self, verb, sample_bundle, run, tmp_path):
        file = tmp_path / "t.tsv"
        file.write_text("sentence1\tsentence2\tscore\n가\t나\t1\n가\t다\t2\n", encoding="utf-8")
        words = {
            "verify": [sample_bundle],
            "embed": [sample_bundle, file, "-o", tmp_path / "v.npy"],
            "score": [sample_bundle, "가", "나"],
            "eval": [sample_bundle, file],
            "search": [sample_bundle, file, "가"],
            "compare": [sample_bundle, sample_bundle, "--texts", file],
        }[verb]
        code, out, err = run(verb, *words, "--dtype", "int8")
        assert (code, out) == (2, "")
        assert "export it again with --target native-int8" in err
        assert err.count("\n") == 1

    def test_an_export_where_the_engine_does_not_run(self, tmp_path, monkeypatch):
        monkeypatch.setattr(engine, "_native_missing", ImportError("not built"))
        with pytest.raises(BackendUnavailable, match=r"cannot run in int8 here.*not built"):
            export(tmp_path / "no checkpoint", tmp_path / "b.kosine", targets=("native-int8",))

    def test_an_export_of_what_the_engine_does_not_run_names_the_field(self, tmp_path):
        path = factories.build(tmp_path / "m", sizes={"hidden_size": 32, "num_attention_heads": 4})
        with pytest.raises(BackendError, match=r"layers\[0\]\.attention\.head_size is 8") as caught:
            export(path, tmp_path / "b.kosine", targets=("native-int8",))
        assert caught.value.remedy == "leave target native-int8 out"
        assert not (tmp_path / "b.kosine").exists()

    @pytest.mark.parametrize("torch", [True, False])
    def test_a_bundle_that_misses_parity_is_not_written(self, tmp_path, monkeypatch, torch):
        right = int8_module.round_weight

        def coarse(weight, smooth, gram):
            found, scale = right(weight, smooth, gram)
            return (found // 16 * 16).astype(np.int8), scale

        monkeypatch.setattr(int8_module, "round_weight", coarse)
        monkeypatch.setattr(int8_module, "MAX_ERROR", 1.0)
        if not torch:
            monkeypatch.setattr("kosine_export.export.missing_packages", lambda **_: ("torch",))
        with pytest.raises(ParityError, match="w8a16"):
            export(SAMPLE, tmp_path / "b.kosine", targets=("native-int8",))
        assert not (tmp_path / "b.kosine").exists()


class TestCommands:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_verify_takes_float32_first(self, run, bundle, dtype):
        code, out, err = run("verify", bundle, "--dtype", dtype, "--json")
        assert (code, err) == (0, "")
        value = json.loads(out)
        assert [entry["dtype"] for entry in value["checks"]] == ["float32", dtype]
        assert (value["backend"], value["dtype"], value["passed"]) == ("native", dtype, True)
        assert value["gate"] == GATES[dtype].to_json()
        assert value["centred"]["min_cosine"] >= value["gate"]["centred_min_cosine"]

    def test_verify_tells_wrong_bytes_from_wrong_weights(self, run, copy):
        change_tensor(copy, "layers.1.ffn.down.scale", lambda x: x * np.float32(0.5), INT8_WEIGHTS)
        code, out, _ = run("verify", copy, "--dtype", "int8", "--json")
        assert code == 1
        assert [entry["passed"] for entry in json.loads(out)["checks"]] == [True, False]

    def test_info(self, run, bundle):
        code, out, _ = run("info", bundle, "--json")
        value = json.loads(out)
        assert code == 0
        engines = {(entry["backend"], entry["dtype"]): entry for entry in value["engines"]}
        for dtype in DTYPES:
            fingerprint = kosine.load(bundle, dtype=dtype).fingerprint
            assert engines["native", dtype]["fingerprint"] == fingerprint
        assert value["auto"]["dtype"] not in DTYPES
        assert value["int8"]["bytes_only_share"] == 0
        text = run("info", bundle)[1]
        assert "int8         0 of 16 products stay in w8a16, 0.0% of the multiply-adds" in text
        assert "in int8     min cosine 0.99" in text

    def test_eval_score_and_embed(self, run, bundle, tmp_path):
        pairs = tmp_path / "pairs.tsv"
        rows = "".join(f"{TEXTS[0]} {i}\t{TEXTS[1] * (i % 3)} {i}\t{i}\n" for i in range(9))
        pairs.write_text("sentence1\tsentence2\tscore\n" + rows, encoding="utf-8")
        found = {}
        for dtype in ("float32", *DTYPES):
            words = (pairs, "--backend", "native", "--dtype", dtype, "--json")
            code, out, err = run("eval", bundle, *words)
            assert code == 0, err
            found[dtype] = json.loads(out)["cosine"]["pearson"]
        assert found["float32"] == pytest.approx(found["int8"], abs=0.01)
        code, out, _ = run("score", bundle, *TEXTS[:2], "--dtype", "int8", "--json")
        assert code == 0
        file = tmp_path / "t.txt"
        file.write_text("\n".join(TEXTS[:2]) + "\n", encoding="utf-8")
        target = tmp_path / "v.npy"
        assert run("embed", bundle, file, "-o", target, "--dtype", "int8")[0] == 0
        vectors = np.load(target)
        assert vectors.tobytes() == kosine.load(bundle, dtype="int8").encode(TEXTS[:2]).tobytes()

    def test_export_says_what_stays(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr("kosine_export.export.missing_packages", lambda **_: ("torch",))
        code, out, err = run("export", SAMPLE, tmp_path / "b.kosine", "--target", "native-int8")
        assert code == 0, err
        assert "int8: 0 of 16 products stay in w8a16 (0.0% of the multiply-adds)" in out


def test_the_texts_that_are_given_decide(tmp_path, bundle, monkeypatch):
    monkeypatch.setattr("kosine_export.export.missing_packages", lambda **_: ("torch",))
    file = tmp_path / "mine.txt"
    file.write_text("".join(f"주문 번호 {n}\n" for n in range(40)), encoding="utf-8")
    done = export(SAMPLE, tmp_path / "b.kosine", targets=("native-int8",), calibrate=file)
    assert done.manifest.int8.texts == 40
    ours, theirs = (
        Bundle(path).tensors(INT8_WEIGHTS)[f"{UP}.smooth"] for path in (done.path, bundle)
    )
    assert np.abs(np.log(ours / theirs)).max() > 0.05


def check_products(bundle: Path, dtype: str, isa: str, texts: list[str]) -> int:
    """Every product of an encoder's layers on what it reads in float32, held to numpy's integers;
    how many there are.
    """
    opened = Bundle(bundle)
    batch = kosine.load(bundle, backend="native", dtype="float32").prepare(texts, prompt="").batch
    spec, exact, in_bytes = opened.manifest.spec, opened.tensors(), opened.tensors(INT8_WEIGHTS)
    steps = lower(spec)
    reads = products(steps)
    tensors = {name: exact[name] for name, e in exact.entries.items() if e.dtype == np.float32}
    inputs: dict[str, np.ndarray] = {}
    encode(
        steps, tensors, batch.ids, batch.starts, None,
        position_ids(batch.ids, batch.starts, spec.embeddings.positions),
        observe=lambda name, x: inputs.setdefault(name, np.ascontiguousarray(x, np.float32)),
    )  # fmt: skip
    for name, source in reads.items():
        weight, scale = in_bytes[f"{name}.weight"], in_bytes[f"{name}.scale"]
        bias = tensors.get(f"{name}.bias", np.zeros(weight.shape[1], np.float32))
        check_product(dtype, isa, inputs[source], weight, scale, bias, in_bytes[f"{source}.smooth"])
    return len(reads)


@ALL
def test_each_product_of_a_trained_encoder_is_numpys(bundle, dtype, isa):
    assert check_products(bundle, dtype, isa, TEXTS * 4) == 16


@pytest.mark.parametrize(("dtype", "most"), [("w8a16", 0.0005), ("int8", 0.0015)])
def test_korsts_hardly_moves(run, bundle, shared, dtype, most):
    found = {}
    for each in ("float32", dtype):
        words = (shared("data/korsts-dev.tsv"), "--backend", "native", "--dtype", each, "--json")
        code, out, err = run("eval", bundle, *words)
        assert code == 0, err
        found[each] = json.loads(out)["cosine"]["spearman"]
    print(found)
    assert abs(found[dtype] - found["float32"]) <= most


FAMILIES = {
    "bert": {"family": "bert", "dense": [{"outputs": 48}]},
    "xlm-roberta": {"family": "xlm-roberta", "generation": "5.4", "pooling": "cls"},
    "mpnet": {"family": "mpnet", "generation": "5.4"},
    "modernbert": {"family": "modernbert", "sizes": {"local_attention": 17}},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_block(family, tmp_path):
    """Of random weights, which lie no closer to their bytes than trained ones."""
    pytest.importorskip("sentence_transformers", reason="the referee, kosine[torch], is absent")
    path = factories.build(tmp_path / "m", **FAMILIES[family])
    done = export(path, tmp_path / "b.kosine", targets=("native-int8",))
    names = products(lower(read_checkpoint(path).spec))
    assert set(done.manifest.int8.errors) == set(names)
    for dtype in DTYPES:
        assert done.parity[dtype].passed
        encoder = kosine.load(done.path, dtype=dtype)
        together = encoder.encode(TEXTS)
        for text, vector in zip(TEXTS, together, strict=True):
            assert encoder.encode(text).tobytes() == vector.tobytes()
