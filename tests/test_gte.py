"""GTE: both published spellings, against a referee of our own and transformers' class."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import factories
import kosine
from family_checks import MAX_ABS_ERROR, check_engines, check_padded_graph, engines
from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint
from kosine_export.checkpoint.checkpoint import read_checkpoint
from kosine_export.export import export
from kosine_export.families.config import read_config
from kosine_export.parity.referee import Referee, missing_packages
from new_model import NewModel

pytest.importorskip("sentence_transformers", reason="the referee, kosine[torch], is absent")

LENGTHS = (2, 3, 15, 16, 17, 63, 64, 65, 130, 511, 512)


@pytest.fixture(scope="module", autouse=True)
def transformers_class():
    if missing_packages(model_type="new"):
        pytest.skip("this transformers has no GteModel")


def words(tokens: int) -> str:
    """A text of that many tokens, <s> and </s> among them."""
    return "<mask>" * (tokens - 2) if tokens < 4 else "<mask><unk>" + "".join(
        ("<mask>", "<unk>", "<pad>")[i * i % 3] for i in range(tokens - 4)
    )  # fmt: skip


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    """A checkpoint as gte-multilingual-base is published, its bundle, and how it was exported."""
    folder = tmp_path_factory.mktemp("new")
    path = factories.build(
        folder / "m",
        family="new",
        pooling="cls",
        normalize=True,
        max_length=512,
        prefix="new.",
        sizes={"num_hidden_layers": 3},
    )
    (path / "modeling.py").write_text("raise SystemExit('code of the checkpoint was run')\n")
    return path, export(path, folder / "b.kosine")


def test_it_equals_transformers_class(new):
    path, done = new
    assert done.parity["float32"].passed
    assert done.manifest.spec.family == "gte"
    config = json.loads((done.path / "config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in config
    assert config["model_type"] == "gte"
    assert config["rope_parameters"]["rope_theta"] == 160_000.0
    texts = [words(length) for length in LENGTHS]
    encoder = kosine.load(done.path, backend="onnx")
    ids = [encoder.prepare([text]).batch.ids.tolist() for text in texts]
    expected = np.stack([NewModel(path).unit_cls(row) for row in ids])
    assert np.abs(Referee(path).encode(texts) - expected).max() <= MAX_ABS_ERROR


def test_every_engine_equals_the_referee_of_our_own(new):
    path, done = new
    texts = [words(length) for length in LENGTHS]
    model = NewModel(path)
    for backend, dtype, error in engines():
        encoder = kosine.load(done.path, backend=backend, dtype=dtype)
        assert encoder.count_tokens(texts) == list(LENGTHS)
        ids = [encoder.prepare([text]).batch.ids.tolist() for text in texts]
        expected = np.stack([model.unit_cls(row) for row in ids])
        assert np.abs(encoder.encode(texts) - expected).max() <= error, (backend, dtype)


@pytest.fixture(scope="module")
def gte(tmp_path_factory):
    """As arctic-embed-m-v2.0 is published."""
    folder = tmp_path_factory.mktemp("gte")
    path = factories.build(folder / "m", family="gte", pooling="cls", max_length=512)
    return path, export(path, folder / "b.kosine").path, factories.referee(path)


def test_the_other_spelling_equals_sentence_transformers(gte):
    _, bundle, model = gte
    check_engines(bundle, model, [*map(words, LENGTHS), words(513)])


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padded_graph_takes_padding_on_either_side(gte, side):
    _, bundle, model = gte
    check_padded_graph(bundle, model, [words(length) for length in LENGTHS if length < 300], side)


def test_every_layout_holds_the_same_tensors(tmp_path):
    packed = factories.build(tmp_path / "packed", family="new", prefix="new.")
    found = read_checkpoint(packed).tensors
    for layout, family in (("apart", "new"), ("transformers", "gte")):
        sizes = {"pack_qkv": False}
        path = factories.build(tmp_path / layout, family=family, layout=layout, sizes=sizes)
        other = read_checkpoint(path).tensors
        assert found.keys() == other.keys()
        for name, value in found.items():
            assert np.array_equal(value, other[name]), name
    stored = load_file(packed / "model.safetensors")
    both = stored["new.encoder.layer.0.mlp.up_gate_proj.weight"]
    assert np.array_equal(found["layers.0.ffn.up.weight"], both[len(both) // 2 :].T)


def test_without_token_types(tmp_path):
    path = factories.build(tmp_path / "m", family="gte", sizes={"type_vocab_size": 0})
    bundle = export(path, tmp_path / "b.kosine").path
    check_engines(bundle, factories.referee(path), [words(9)])


NEW = factories.transformers_config("new", 300)
ARCTIC = factories.transformers_config("gte", 300)


def test_scalings():
    attention = read_config(NEW).layers[0].attention
    assert attention.rope_theta == 160_000.0
    assert attention.rope_divisor == 8 ** (2 / 32)
    plain = read_config({**NEW, "rope_scaling": None}).layers[0].attention
    assert (plain.rope_theta, plain.rope_divisor) == (20_000.0, 1.0)
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    spelled = {**ARCTIC, "rope_theta": None, "rope_parameters": linear}
    attention = read_config(spelled).layers[0].attention
    assert (attention.rope_theta, attention.rope_divisor) == (5000.0, 2.0)
    assert read_config({"model_type": "gte"}).layers[0].attention.rope_theta == 160_000.0


@pytest.mark.parametrize(
    ("entries", "error", "named"),
    [
        ({"auto_map": {"AutoModel": "modeling.OtherModel"}}, UnsupportedCheckpoint, "auto_map"),
        ({"auto_map": ["modeling.NewModel"]}, UnsupportedCheckpoint, "auto_map"),
        ({"model_type": "bert"}, UnsupportedCheckpoint, "auto_map"),
        ({"hidden_act": "silu"}, UnsupportedCheckpoint, "hidden_act 'silu'"),
        ({"position_embedding_type": "absolute"}, UnsupportedCheckpoint, "position_embedding_type"),
        ({"layer_norm_type": "rms_norm"}, UnsupportedCheckpoint, "layer_norm_type is 'rms_norm'"),
        ({"logn_attention_scale": True}, UnsupportedCheckpoint, "logn_attention_scale is True"),
        ({"logn_attention_clip1": True}, UnsupportedCheckpoint, "logn_attention_clip1 is True"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, UnsupportedCheckpoint, "'dynamic'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, UnsupportedCheckpoint, "'yarn'"),
        (
            {"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.6}},
            UnsupportedCheckpoint,
            "mixed_b 0.6",
        ),
        ({"rope_scaling": {"type": "ntk"}}, CorruptCheckpoint, "factor of rope_scaling is None"),
        ({"rope_scaling": {"type": "ntk", "factor": 0.5}}, CorruptCheckpoint, "is 0.5"),
        ({"rope_scaling": [8]}, CorruptCheckpoint, "rope_scaling is a list"),
        ({"rope_theta": None}, CorruptCheckpoint, "rope_theta is None"),
        ({"rope_theta": 1}, CorruptCheckpoint, "rope_theta is 1"),
        ({"hidden_size": None}, CorruptCheckpoint, "hidden_size is None"),
        ({"num_attention_heads": 3}, CorruptCheckpoint, "multiple of 3 heads"),
        ({"partial_rotary_factor": 0.5}, UnsupportedCheckpoint, "partial_rotary_factor 0.5"),
    ],
    ids=str,
)
def test_what_a_config_must_not_say(entries, error, named):
    with pytest.raises(error, match=named):
        read_config({**NEW, **entries})
