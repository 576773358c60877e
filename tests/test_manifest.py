"""The manifest: what it was written with comes back, and every wrong value is named by its path."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostile import DIM, small_manifest
from kosine.backends.registry import BACKENDS
from kosine.bundle.int8 import INT8_WEIGHTS, Int8Weights
from kosine.bundle.manifest import (
    MAX_MANIFEST_BYTES,
    NUMERICS,
    SCHEMA,
    Artifact,
    FileEntry,
    Manifest,
)
from kosine.bundle.plans import PlanProfile, TensorRTPlan
from kosine.bundle.typed_json import build
from kosine.errors import KosineError, ManifestError, SchemaTooNew
from kosine.spec import Buckets, Dense, EncoderSpec, Heads, Norm, Pooling
from kosine.spec_fields import leaves
from specs import spec_of_sizes

SMALL = small_manifest().spec
DENSE = (Dense(DIM, 8, True, "tanh", False), Dense(8, DIM, False, "identity", True))
ROPE = dataclasses.replace(
    SMALL.layers[0].attention,
    positions="rope",
    rope_theta=160_000.0,
    window=4,
    rope_divisor=2.0,
    causal=True,
    query_key_norm=Norm("rms_norm", 1e-6, bias=False),
)
BUCKETS = dataclasses.replace(
    SMALL.layers[0].attention, positions="buckets", buckets=Buckets(32, 128)
)
FULL = small_manifest(
    spec=dataclasses.replace(
        SMALL,
        dense=DENSE,
        layers=(
            SMALL.layers[0],
            dataclasses.replace(SMALL.layers[0], attention=ROPE),
            dataclasses.replace(SMALL.layers[0], attention=BUCKETS),
        ),
        final_norm=Norm("layer_norm", 1e-5, bias=False),
        heads=Heads(sparse=True, multi=24),
    ),
    ranges={"min": [-1.0, -0.5, -1.0, -1.0], "max": [1.0, 0.5, 1.0, 1.0]},
    default_prompt_name="query",
    artifacts=(
        Artifact("tokenizer", "", (FileEntry("tokenizer.json", 5, "0" * 64),)),
        Artifact("onnx", "float32", (FileEntry("weights.safetensors", 7, "1" * 64),)),
        Artifact("native-int8", "int8", (FileEntry(INT8_WEIGHTS, 8, "3" * 64),)),
        Artifact("tensorrt-fp16", "float16", (FileEntry("tensorrt/a.plan", 9, "4" * 64),)),
    ),
    parity={"min_cosine": 1.0},
    certificates={"onnx-fp16": {"largest": 3.5}},
    plans=(
        TensorRTPlan(
            "tensorrt/a.plan",
            "tensorrt-rtx",
            "1.7.1.116",
            ("8.6", "12.0"),
            (PlanProfile(32, 1, 1, 1, 1), PlanProfile(32, 1, 64, 512, 16)),
            {"attention_kernels": 8},
        ),
    ),
    int8=Int8Weights(
        100,
        2000,
        0.05,
        {"a": 0.01, "b": 0.06},
        ("b",),
        0.5,
    ),
)


def value_of(manifest: Manifest = FULL) -> dict:
    return json.loads(manifest.to_json())


def read(value: object) -> Manifest:
    return Manifest.from_json(json.dumps(value).encode())


def put(value: dict, path: str, new: object) -> dict:
    """Set what lies at a path such as "artifacts.0.files.0.bytes"; `...` deletes it."""
    *heads, last = path.split(".")
    at = value
    for head in heads:
        at = at[int(head)] if isinstance(at, list) else at[head]
    if new is ...:
        del at[int(last) if isinstance(at, list) else last]
    elif isinstance(at, list):
        at[int(last)] = new
    else:
        at[last] = new
    return value


def test_round_trip():
    assert Manifest.from_json(FULL.to_json().encode()) == FULL
    assert value_of()["schema"] == SCHEMA


def test_what_the_exporter_writes(sample_bundle):
    text = (sample_bundle / "manifest.json").read_bytes()
    manifest = Manifest.from_json(text)
    assert Manifest.from_json(manifest.to_json().encode()) == manifest
    assert len(text) < MAX_MANIFEST_BYTES / 50
    assert manifest.schema == SCHEMA


@pytest.mark.parametrize("key", ["parity", "certificates", "plans", "plans.0.evidence", "int8"])
def test_what_was_not_measured_may_be_left_out(key):
    assert read(put(value_of(), key, ...)) is not None


def test_ints_are_read_where_floats_belong():
    assert read(put(value_of(), "ranges.min.0", -2)).ranges["min"][0] == -2.0


def paths(value: object, at: str = "") -> list[str]:
    """Every path in a JSON value, but not into what has no fixed shape."""
    here = [at] if at else []
    if at.split(".")[0] in ("source", "parity", "certificates") or at.endswith(".evidence"):
        return here
    if isinstance(value, dict):
        return here + [p for k, v in value.items() for p in paths(v, f"{at}.{k}".lstrip("."))]
    if isinstance(value, list):
        return here + [p for k, v in enumerate(value[:1]) for p in paths(v, f"{at}.{k}")]
    return here


PATHS = paths(value_of())
NULLABLE = (
    "default_prompt_name", "ranges", "parity", "spec.layers.0.attention.window", "spec.final_norm",
    "spec.layers.2.attention.buckets", "spec.layers.0.attention.query_key_norm", "int8",
    "spec.heads", "spec.heads.multi",
)  # fmt: skip
OPTIONAL = (
    "parity", "certificates", "plans", "plans.0.evidence", "int8", "int8.errors.a", "prompts.query",
    "special_ids.mask", "special_ids.unk", "special_ids.cls",
    "spec.layers.0.attention.rope_divisor", "spec.layers.0.attention.causal",
    "spec.layers.0.attention.query_key_norm", "spec.heads",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("wrong", [None, True, 7, 1.5, "text", [], {}, [[]], {"a": {}}, -1, 10**30])
def test_wrong_types_are_named_by_their_path(path, wrong):
    right = value_of()
    for part in path.split("."):
        right = right[int(part)] if isinstance(right, list) else right[part]
    value = put(value_of(), path, wrong)
    try:
        manifest = read(value)
    except SchemaTooNew:
        assert path == "schema"
        return
    except ManifestError as error:
        message = str(error)
        assert message.startswith("manifest.json: $")
        assert len(message) < 500
        named = message.split(" is ")[0]
        heads = path.replace(".0", "[0]").split(".")
        # At the value itself, or at something that it has to agree with.
        assert heads[0].split("[")[0] in named or agrees(path)
        return
    # What was read must be of the type that was there: nothing is converted on the quiet.
    back = json.loads(manifest.to_json())
    for part in path.split("."):
        back = back[int(part)] if isinstance(back, list) else back[part]
    assert back == (float(wrong) if isinstance(right, float) else wrong)
    assert same_kind(right, wrong) or (path in NULLABLE and wrong is None)


def agrees(path: str) -> bool:
    return path in (
        "spec.hidden_size",
        "spec.embeddings.vocab_size",
        "spec.embeddings.positions.rows",
        "prompts",
        "prompts.query",
        "spec.dense",
        "spec.dense.0",
        "spec.dense.0.out_features",
        "artifacts",  # must hold the plans' files, and those of int8
        "int8.errors",  # must hold those that stay
    )


def same_kind(right: object, wrong: object) -> bool:
    if isinstance(right, float):
        return type(wrong) in (int, float)
    return type(right) is type(wrong) or (right is None and isinstance(wrong, dict | int))


@pytest.mark.parametrize("path", [p for p in PATHS if not p.split(".")[-1].isdigit()])
def test_missing_keys(path):
    value = put(value_of(), path, ...)
    if path in OPTIONAL:
        if path == "prompts.query":
            value["default_prompt_name"] = None
        read(value)
        return
    with pytest.raises(ManifestError):
        read(value)


@pytest.mark.parametrize(
    "path",
    [
        "", "spec", "spec.embeddings", "spec.layers.0", "spec.layers.0.attention", "spec.pooling",
        "spec.dense.0", "spec.heads", "artifacts.0", "artifacts.0.files.0", "plans.0",
        "plans.0.profiles.0",
    ],
)  # fmt: skip
def test_unknown_keys(path):
    value = put(value_of(), f"{path}.extra".lstrip("."), 1)
    with pytest.raises(ManifestError, match="'extra'"):
        read(value)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("spec.heads", {"sparse": False, "multi": None}),
        ("spec.heads.multi", 0),
        ("spec.pooling.modes", ["median"]),
        ("spec.pooling.modes", []),
        ("spec.pooling.modes", ["mean"] * (1 << 18)),
        ("similarity", "jaccard"),
        ("unicode", "NFKC"),
        ("spec.embeddings.positions.rule", "rotary"),
        ("spec.layers.1.norm.kind", "batch_norm"),
        ("spec.layers.1.norm_placement", "around"),
        ("spec.layers.1.attention.query_key_norm.kind", "batch_norm"),
        ("spec.layers.1.attention.rope_divisor", 0.5),
        ("spec.layers.1.attention.rope_divisor", 1e12),
        ("spec.layers.0.feed_forward.activation", "relu"),
        ("spec.embeddings.norm", None),
        ("spec.dense.0.activation", "swish"),
        ("max_tokens", 2),
        ("max_tokens", 33),
        ("spec.layers", []),
        ("spec.layers.1.attention.num_key_value_heads", 3),
        ("spec.layers.0.attention.num_heads", 0),
        ("spec.layers.1.attention.window", -1),
        ("spec.layers.0.attention.positions", "rope"),
        ("spec.layers.0.attention.rope_theta", 10000.0),
        ("spec.layers.1.attention.positions", "none"),
        ("spec.layers.1.attention.rope_theta", 1.0),
        ("spec.layers.1.attention.rope_theta", 1e12),
        ("spec.layers.1.attention.head_size", 3),
        ("spec.layers.0.attention_norm", False),
        ("spec.layers.0.attention.positions", "buckets"),
        ("spec.layers.0.attention.buckets", {"count": 32, "max_distance": 128}),
        ("spec.layers.2.attention.buckets.count", 2),
        ("spec.layers.2.attention.buckets.count", 256),
        ("spec.layers.2.attention.buckets.max_distance", 0),
        ("spec.final_norm.eps", 0.0),
        ("spec.hidden_size", 1 << 21),
        ("spec.embeddings.token_types", -1),
        ("spec.embeddings.positions.pad_id", 7),
        ("spec.layers.0.norm.eps", 0.0),
        ("spec.layers.0.norm.eps", 1.0),
        ("spec.embeddings.norm.eps", 10**400),
        ("spec.dense.0.in_features", 5),
        ("spec.dense.1.in_features", 5),
        ("ranges.min", [0.0] * (DIM + 1)),
        ("special_ids.cls", -1),
        ("special_ids.unk", 7),
        ("special_ids.pad", ...),
        ("default_prompt_name", "passage"),
        ("ranges", {"min": [0.0], "max": [1.0]}),
        ("ranges", {"min": [0.0] * DIM}),
        ("ranges", {"min": [0.0] * DIM, "max": [0.0] * DIM}),
        ("ranges", {"min": [1.0] * DIM, "max": [0.0] * DIM}),
        ("ranges.max.0", 10**400),
        ("artifacts.0.files.0.path", "weights.safetensors"),
        ("artifacts.0.files.0.path", "other.json"),
        ("artifacts.2.files.0.path", "tensorrt/b.plan"),
        ("plans.0.path", "tensorrt/b.plan"),
        ("plans.0.path", "../a.plan"),
        ("plans.0.path", ""),
        ("plans.0.flavour", "tensorrt_rtx"),
        ("plans.0.flavour", "os"),
        ("plans.0.architectures", []),
        ("plans.0.architectures.0", 8.6),
        ("plans.0.profiles", []),
        ("plans.0.profiles.0.min_rows", 0),
        ("plans.0.profiles.0.min_rows", 2),
        ("plans.0.profiles.1.opt_rows", 513),
        ("plans.0.profiles.1.max_rows", 63),
        ("plans.0.profiles.1.max_rows", 1 << 40),
        ("plans.0.profiles.0.max_slots", 0),
        ("plans.0.profiles.0.max_slots", 33),
        ("plans.0.profiles.0.width", 0),
        ("plans.0.profiles.0.width", -32),
        ("plans.0.profiles.0.width", 1 << 40),
        ("plans.0.profiles", [{**dataclasses.asdict(FULL.plans[0].profiles[0]), "width": 15}]),
        ("plans.0.evidence", {"a": [[[[[[[[[[[[[[]]]]]]]]]]]]]]}),
        ("schema", 0),
        ("schema", -1),
        ("schema", "1"),
        ("schema", 1.0),
        ("schema", True),
        ("schema", None),
        ("schema", ...),
    ],
)
def test_values_that_contradict_the_schema_or_one_another(path, wrong):
    with pytest.raises(ManifestError):
        read(put(value_of(), path, wrong))


@pytest.mark.parametrize("schema", [SCHEMA + 1, 99, 10**30])
def test_a_later_schema_is_told_apart(schema):
    value = {"schema": schema, "anything": "else"}
    with pytest.raises(SchemaTooNew, match="reads up to 2; upgrade kosine"):
        read(value)


def test_roberta_needs_room_for_its_offset():
    value = put(value_of(), "spec.embeddings.positions.rule", "roberta")
    assert read(put(value, "max_tokens", 30)).max_tokens == 30
    with pytest.raises(ManifestError, match="3 to 30 position rows"):
        read(put(value, "max_tokens", 31))


GOOD = FULL.to_json().encode()
NOT_JSON = {
    "empty": b"",
    "truncated": GOOD[:-2],
    "list": b"[]",
    "string": b'"schema"',
    "null": b"null",
    "Latin-1": GOOD.replace("가".encode(), b"\xe9"),
    "UTF-16": GOOD.decode().encode("utf-16"),
    "BOM": b"\xef\xbb\xbf" + GOOD,
    "NaN": GOOD.replace(b"3.5", b"NaN"),
    "Infinity": GOOD.replace(b"3.5", b"-Infinity"),
    "1e999": GOOD.replace(b"3.5", b"1e999"),
    "lone surrogate": GOOD.replace("가".encode(), b"\\ud800"),
    "lone surrogate in a key": GOOD.replace(b'"largest"', b'"\\udfff"'),
    "key twice": GOOD.replace(b'"max_tokens": 16', b'"max_tokens": 16, "max_tokens": 16'),
    "inner key twice": GOOD.replace(b'"rule"', b'"rule": "roberta", "rule"'),
    "5000 digits": GOOD.replace(b'"max_tokens": 16', b'"max_tokens": ' + b"4" * 5000),
    "4000 digits": GOOD.replace(b'"max_tokens": 16', b'"max_tokens": ' + b"4" * 4000),
    "deep list": b'{"schema": 1, "source": ' + b"[" * 500_000,
    "deep object": b'{"schema": 1, "source": ' + b'{"a":' * 200_000,
    "deep but whole": GOOD.replace(b"3.5", b"[" * 20 + b"]" * 20),
    "deeper but whole": GOOD.replace(b"3.5", b'{"a":' * 900 + b"1" + b"}" * 900),
    "too large": GOOD + b" " * MAX_MANIFEST_BYTES,
    "comment": GOOD + b"// end",
    "two objects": GOOD + GOOD,
    "NUL": GOOD + b"\0",
}


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_is_not_plain_json(name):
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(NOT_JSON[name])
    assert len(str(caught.value)) < 400


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_mutated_bytes_are_read_or_refused(data):
    raw = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        if data.draw(st.booleans()):
            raw[at] = data.draw(st.integers(0, 255))
        else:
            raw[at : at + 1] = data.draw(st.binary(max_size=6))
    try:
        manifest = Manifest.from_json(bytes(raw))
    except KosineError:
        return
    assert Manifest.from_json(manifest.to_json().encode()) == manifest


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300)
@given(path=st.sampled_from(PATHS), new=JSON)
def test_mutated_values_are_read_or_refused(path, new):
    try:
        read(put(value_of(), path, new))
    except KosineError as error:
        assert "\n" not in str(error)  # noqa: PT017


# The fingerprint

FACTS = {
    "weights": {
        "artifacts": (
            FULL.artifacts[0],
            Artifact("onnx", "float32", (FileEntry("weights.safetensors", 7, "2" * 64),)),
        )
    },
    "tokenizer": {
        "artifacts": (
            Artifact("tokenizer", "", (FileEntry("tokenizer.json", 5, "3" * 64),)),
            FULL.artifacts[1],
        )
    },
    "max_tokens": {"max_tokens": 15},
    "family": {"spec": dataclasses.replace(FULL.spec, family="electra")},
    "pooling mode": {"spec": dataclasses.replace(FULL.spec, pooling=Pooling(("cls",), True))},
    "include_prompt": {"spec": dataclasses.replace(FULL.spec, pooling=Pooling(("mean",), False))},
    "dense": {"spec": dataclasses.replace(FULL.spec, dense=())},
    "normalized": {"spec": dataclasses.replace(FULL.spec, normalize=True)},
    "prompts": {"prompts": {"query": "나 "}},
    "default prompt": {"default_prompt_name": None},
    "heads": {"spec": spec_of_sizes(hidden=DIM, heads=1, vocab=7, positions=32, pad_id=1)},
    "depth": {"spec": dataclasses.replace(FULL.spec, layers=SMALL.layers)},
    "special ids": {"special_ids": {**FULL.special_ids, "sep": 1}},
    "unicode": {"unicode": "NFC"},
    "ranges": {"ranges": {**FULL.ranges, "min": [-1.0, -0.75, -1.0, -1.0]}},
}
NOT_FACTS = {
    "parity": {"parity": None},
    "certificates": {"certificates": {}},
    "plans": {"plans": ()},
    "int8": {"int8": None},  # but in int8, see below
    "kosine": {"kosine": "9.9"},
    "source": {"source": {"name": "copy"}},
    "targets": {"targets": ("onnx", "onnx-fp16")},
}


def test_each_fact_changes_the_fingerprint():
    prints = {"as it is": FULL.fingerprint("onnx", "float32")}
    for name, change in FACTS.items():
        prints[name] = dataclasses.replace(FULL, **change).fingerprint("onnx", "float32")
    prints["backend"] = FULL.fingerprint("native", "float32")
    prints["dtype"] = FULL.fingerprint("onnx", "float16")
    assert len(set(prints.values())) == len(prints)
    assert all(len(each) == 32 and int(each, 16) >= 0 for each in prints.values())


OTHER = {
    "absolute": "roberta", "mean": "cls", "tanh": "relu", "identity": "gelu", "bert": "b",
    "none": "rope", "rope": "none", "buckets": "none", "post": "pre",
    "layer_norm": "rms_norm", "rms_norm": "layer_norm", "gelu": "silu",
}  # fmt: skip


def another(value):
    if value is None or type(value) is int:
        return (value or 0) + 1
    if isinstance(value, str):
        return OTHER[value]
    return not value if isinstance(value, bool) else value / 2


def test_each_value_of_the_spec_changes_the_fingerprint():
    prints = [FULL.fingerprint("native", "float32")]
    for where, _, value, _ in leaves(FULL.spec):
        if where.endswith(("buckets", "query_key_norm")):
            continue
        spec = put(value_of()["spec"], where.replace("[", ".").replace("]", ""), another(value))
        spec = build(EncoderSpec, spec, "$")
        prints.append(dataclasses.replace(FULL, spec=spec).fingerprint("native", "float32"))
    assert len(set(prints)) == len(prints) > 40


@pytest.mark.parametrize("name", NOT_FACTS)
def test_what_vectors_do_not_depend_on_leaves_the_fingerprint(name):
    changed = dataclasses.replace(FULL, **NOT_FACTS[name])
    assert changed.fingerprint("onnx", "float32") == FULL.fingerprint("onnx", "float32")


FLOAT32 = ("tokenizer.json", "weights.safetensors")
FLOAT16 = ("fp16/weights.safetensors",)
INT8 = ("int8/weights.safetensors", "int8/scales.safetensors")
READ = {
    ("native", "float32"): FLOAT32,
    ("native", "bfloat16"): FLOAT32,
    ("native", "w8a16"): (*FLOAT32, *INT8),
    ("native", "int8"): (*FLOAT32, *INT8),
    ("onnx", "float32"): (*FLOAT32, "packed.onnx"),
    ("onnx", "float16"): (*FLOAT32, *FLOAT16, "fp16/packed.onnx"),
    ("tensorrt", "float16"): (*FLOAT32, *FLOAT16, "fp16/packed.onnx"),
    ("cuda", "float16"): FLOAT32,
    ("cuda", "bfloat16"): FLOAT32,
}


@pytest.mark.parametrize("engine", READ, ids="/".join)
def test_the_fingerprint_covers_the_files_that_are_read(engine):
    others = ("model.onnx", "fp16/model.onnx", "canary.safetensors", "tensorrt/a.plan", "README.md")
    paths = sorted({*others, *(path for read in READ.values() for path in read)})

    def of(changed=None):
        files = (FileEntry(p, 5, ("1" if p == changed else "2") * 64) for p in paths)
        artifacts = (Artifact("all", "", tuple(files)),)
        return dataclasses.replace(FULL, artifacts=artifacts).fingerprint(*engine)

    assert {path for path in paths if of(path) != of()} == set(READ[engine])


def test_what_stays_in_w8a16_is_a_fact_of_int8_alone():
    def of(dtype, *names):
        record = dataclasses.replace(FULL.int8, bytes_only=names, errors={"a": 1.0, "b": 1.0})
        return dataclasses.replace(FULL, int8=record).fingerprint("native", dtype)

    assert len({of("int8"), of("int8", "a"), of("int8", "b"), of("int8", "a", "b")}) == 4
    assert of("int8", "a", "b") == of("int8", "b", "a")
    assert of("w8a16") == of("w8a16", "a")


@pytest.mark.parametrize(
    ("path", "wrong", "message"),
    [
        ("artifacts.2", ..., r"\$\.int8 is there without int8/weights\.safetensors"),
        ("int8.bytes_only.0", "layers.9", r"\$\.int8\.bytes_only is a name that is not in errors"),
        ("int8.bytes_only", "up", "a str"),
        ("int8.bytes_only_share", 1.5, r"bytes_only_share is 1\.5; expected 0 to 1"),
        ("int8.bytes_only_share", -0.1, "bytes_only_share"),
        ("int8.max_error", -1.0, r"\$\.int8\.max_error"),
        ("int8.errors.a", -1.0, r"\$\.int8\.errors\.a is -1\.0"),
        ("int8.errors.a", "small", r"\$\.int8\.errors\.a is a str"),
        ("int8.tokens", 0, r"\$\.int8\.tokens is 0"),
        ("int8.extra", 1, r"\$\.int8 is an object with key 'extra'"),
        ("int8.texts", ..., r"\$\.int8\.texts is no value"),
    ],
)
def test_a_wrong_record_of_int8(path, wrong, message):
    with pytest.raises(ManifestError, match=message):
        read(put(value_of(), path, wrong))


@pytest.mark.parametrize("backend", NUMERICS)
def test_a_revision_of_the_numerics_is_a_fact_of_its_backend(backend, monkeypatch):
    before = {each: FULL.fingerprint(each, "float32") for each in NUMERICS}
    monkeypatch.setitem(NUMERICS, backend, NUMERICS[backend] + 1)
    after = {each: FULL.fingerprint(each, "float32") for each in NUMERICS}
    assert [each for each in NUMERICS if before[each] != after[each]] == [backend]


def test_every_backend_has_a_revision():
    assert set(NUMERICS) == set(BACKENDS)


def test_every_field_is_a_fact_or_is_not():
    """A new field must be put on one side or the other."""
    covered = {
        *(key for change in (*FACTS.values(), *NOT_FACTS.values()) for key in change),
        "similarity",  # concerns scores, not vectors
        "do_lower_case",  # stands in tokenizer.json
        "schema",
    }
    assert covered == {f.name for f in dataclasses.fields(Manifest)}


# Schema 1

SCHEMA_1 = Path(__file__).parent / "fixtures" / "manifest-schema-1.json"


def test_schema_1_as_it_was_first_written_stays_readable():
    """A manifest written by kosine 0.1.0, kept as it was: later versions must go on reading it."""
    manifest = Manifest.from_json(SCHEMA_1.read_bytes())
    assert manifest.schema == 1
    assert manifest.parity["passed"]
    assert {"model.onnx", "packed.onnx", "weights.safetensors"} <= set(manifest.files())
    assert (manifest.dim, manifest.max_tokens) == (256, 128)
    assert manifest.spec == spec_of_sizes(
        family="roberta",
        hidden=256,
        heads=4,
        inner=1024,
        layers=4,
        vocab=12000,
        positions=130,
        rule="roberta",
        pad_id=1,
        token_types=1,
        eps=1e-5,
    )


def test_schema_1_is_written_again_as_schema_2_under_the_same_fingerprint():
    old = Manifest.from_json(SCHEMA_1.read_bytes())
    new = Manifest.from_json(old.to_json().encode())
    assert new == old
    assert new.schema == SCHEMA
    assert new.fingerprint("native", "float32") == old.fingerprint("native", "float32")


OLD_PATHS = paths(json.loads(SCHEMA_1.read_bytes()))


@pytest.mark.parametrize("path", OLD_PATHS)
@pytest.mark.parametrize("wrong", [..., None, True, "text", [], {}, -1, 0, 10**30])
def test_a_wrong_schema_1_is_refused_by_a_path_or_read(path, wrong):
    value = put(json.loads(SCHEMA_1.read_bytes()), path, wrong)
    try:
        read(value)
    except KosineError as error:
        assert str(error).startswith("manifest.json: $") or isinstance(error, SchemaTooNew)  # noqa: PT017


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("architecture.num_heads", 3),
        ("architecture.num_layers", 0),
        ("architecture.num_layers", 1 << 40),
        ("architecture.position_rule", "rotary"),
        ("architecture.extra", 1),
        ("dim", 255),
        ("special_ids.pad", ...),
        ("pooling.mode", "median"),
        ("spec", {}),
        ("int8", None),
        ("extra", 1),
    ],
)
def test_what_schema_1_never_held(path, wrong):
    with pytest.raises(ManifestError):
        read(put(json.loads(SCHEMA_1.read_bytes()), path, wrong))
