"""Hostile bundles: each is refused by type, at once, and only what it lists is opened."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kosine
from hostile import (
    DIM,
    edit_manifest,
    external,
    field,
    floats,
    graph,
    model,
    node,
    opened_files,
    read_everything,
    rehash,
    rewrite,
    safetensors,
    small_bundle,
    small_tokenizer,
    tensor,
)
from kosine.bundle.manifest import SCHEMA
from kosine.bundle.tensorfile import TensorFile, write_tensors
from kosine.errors import (
    BundleNotFound,
    IntegrityError,
    KosineError,
    ManifestError,
    SchemaTooNew,
    TextError,
    UnsafeBundle,
)
from test_graphscan import REFUSED
from test_manifest import NOT_JSON
from test_tensorfile import DAMAGED

# name -> (what spoils the bundle, given it and a folder outside, and the errors that may come)
CASES: dict[str, tuple[Callable[[Path, Path], None], tuple[type[KosineError], ...]]] = {}


def case(name: str, *errors: type[KosineError]):
    def add(function: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        assert name not in CASES
        CASES[name] = function, errors
        return function

    return add


# Files that are not what the manifest says


NAMES = ("tokenizer.json", "weights.safetensors", "packed.onnx", "canary.safetensors")

for name in NAMES:

    @case(f"{name} truncated", IntegrityError)
    def _(path, _outside, name=name):
        (path / name).write_bytes((path / name).read_bytes()[:-1])

    @case(f"{name} emptied", IntegrityError)
    def _(path, _outside, name=name):
        (path / name).write_bytes(b"")

    @case(f"{name} longer", IntegrityError)
    def _(path, _outside, name=name):
        (path / name).write_bytes((path / name).read_bytes() + b"\0")

    @case(f"{name} with one bit changed", IntegrityError)
    def _(path, _outside, name=name):
        data = bytearray((path / name).read_bytes())
        data[len(data) // 2] ^= 4
        (path / name).write_bytes(data)

    @case(f"{name} missing", IntegrityError)
    def _(path, _outside, name=name):
        (path / name).unlink()

    if name != "packed.onnx":  # which is never missed until an engine asks for it

        @case(f"{name} not listed", ManifestError)
        def _(path, _outside, name=name):
            edit_manifest(path, lambda value: drop(value, name))

    @case(f"{name} a folder", UnsafeBundle)
    def _(path, _outside, name=name):
        (path / name).unlink()
        (path / name).mkdir()

    @case(f"{name} a pipe", UnsafeBundle)
    def _(path, _outside, name=name):
        (path / name).unlink()
        os.mkfifo(path / name)

    @case(f"{name} a link to other bytes of its size", IntegrityError)
    def _(path, outside, name=name):
        (outside / "other").write_bytes(b"x" * (path / name).stat().st_size)
        link(path / name, outside / "other")

    @case(f"{name} a link to bytes of another size", IntegrityError)
    def _(path, outside, name=name):
        link(path / name, outside / "bait")

    @case(f"{name} a link to nothing", IntegrityError)
    def _(path, outside, name=name):
        link(path / name, outside / "nothing")

    @case(f"{name} a link to itself", IntegrityError)
    def _(path, _outside, name=name):
        link(path / name, Path(name))

    @case(f"{name} a link to a folder", UnsafeBundle)
    def _(path, outside, name=name):
        link(path / name, outside)

    @case(f"{name} a link to a pipe", UnsafeBundle)
    def _(path, outside, name=name):
        os.mkfifo(outside / "pipe")
        link(path / name, outside / "pipe")

    @case(f"{name} a link to a device", UnsafeBundle)
    def _(path, _outside, name=name):
        link(path / name, Path("/dev/zero"))


def link(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def drop(value, name):
    for artifact in value["artifacts"]:
        artifact["files"] = [file for file in artifact["files"] if file["path"] != name]


def listed(value, name):
    return next(f for a in value["artifacts"] for f in a["files"] if f["path"] == name)


@case("manifest a dangling link", BundleNotFound)
def _(path, outside):
    (path / "manifest.json").unlink()
    (path / "manifest.json").symlink_to(outside / "nothing")


@case("manifest a folder", BundleNotFound)
def _(path, _outside):
    (path / "manifest.json").unlink()
    (path / "manifest.json").mkdir()


@case("manifest a pipe", BundleNotFound)
def _(path, _outside):
    (path / "manifest.json").unlink()
    os.mkfifo(path / "manifest.json")


@case("manifest a link to a device", BundleNotFound)
def _(path, _outside):
    link(path / "manifest.json", Path("/dev/zero"))


@case("manifest a link to itself", BundleNotFound)
def _(path, _outside):
    link(path / "manifest.json", Path("manifest.json"))


@case("manifest missing", BundleNotFound)
def _(path, _outside):
    (path / "manifest.json").unlink()


@case("listed file behind a file", IntegrityError)
def _(path, _outside):
    listed_as(path, "packed.onnx", "tokenizer.json/packed.onnx")


@case("other bytes behind a linked folder", IntegrityError)
def _(path, outside):
    (path / "sub").symlink_to(outside)
    listed_as(path, "packed.onnx", "sub/bait")


# Paths


def listed_as(path: Path, name: str, new: str) -> None:
    edit_manifest(path, lambda value: listed(value, name).update(path=new))


BAIT = "{outside}/bait"
PATHS = [
    "../outside/bait", "../../etc/passwd", "/etc/passwd", BAIT, "sub/../../outside/bait", "..",
    ".", "", "./packed.onnx", "packed.onnx/", "a//b", "a/./b", "/", "//server/share",
    "..\\outside\\bait", "C:\\Windows\\win.ini", "C:packed.onnx", "packed.onnx:stream",
    "\\\\server\\share", "packed.onnx\0", "a\0b", "packed.onnx\n", "a\x1b[2J", "a?", "a*", "a|b",
    "<a>", 'a"b', "packed.onnx.", "packed.onnx ", "a /b", "a./b", "manifest.json",
    "MANIFEST.JSON", "a\u202eb", "~/.bashrc/..", "sub/..",
]  # fmt: skip

for number, hard in enumerate(PATHS):

    @case(f"path {number} {hard!r}", UnsafeBundle)
    def _(path, outside, hard=hard):
        listed_as(path, "packed.onnx", hard.format(outside=outside) if hard is BAIT else hard)


@case("path of 5000 characters", IntegrityError, UnsafeBundle)
def _(path, _outside):
    listed_as(path, "packed.onnx", "x" * 5000)


@case("path not there", UnsafeBundle, IntegrityError)
def _(path, _outside):
    listed_as(path, "packed.onnx", "other.onnx")


@case("path with a lone surrogate", ManifestError)
def _(path, _outside):
    listed_as(path, "packed.onnx", "\ud800")


@case("path listed twice", ManifestError)
def _(path, _outside):
    edit_manifest(path, lambda v: v["artifacts"].append(v["artifacts"][0]))


@case("paths that differ in case only", UnsafeBundle)
def _(path, _outside):
    (path / "Packed.onnx").write_bytes((path / "packed.onnx").read_bytes())

    def change(value):
        files = value["artifacts"][0]["files"]
        files.append({**listed(value, "packed.onnx"), "path": "Packed.onnx"})

    edit_manifest(path, change)


@case("300 files", UnsafeBundle)
def _(path, _outside):
    files = [{"path": f"f{i}", "bytes": 0, "sha256": "0" * 64} for i in range(300)]
    edit_manifest(path, lambda value: value["artifacts"][0]["files"].extend(files))


# The manifest: its own table is in test_manifest; here each is a file of a bundle

for name, text in NOT_JSON.items():

    @case(f"manifest: {name}", ManifestError)
    def _(path, _outside, text=text):
        (path / "manifest.json").write_bytes(text)


@case("manifest of a later schema", SchemaTooNew)
def _(path, _outside):
    edit_manifest(path, lambda value: value.update(schema=SCHEMA + 1, shards=[]))


for key, wrong in {
    "bytes": -1,
    "sha256": "0" * 64,
    "sha256 in capitals": None,
    "sha256 empty": "",
    "sha256 of a prefix": None,
}.items():

    @case(f"file entry: {key}", IntegrityError)
    def _(path, _outside, key=key, wrong=wrong):
        def change(value):
            file = listed(value, "weights.safetensors")
            right = file["sha256"]
            new = {"sha256 in capitals": right.upper() + " ", "sha256 of a prefix": right[:8]}
            file[key.split()[0]] = new.get(key, wrong)

        edit_manifest(path, change)


@case("bytes of 10^30", IntegrityError)
def _(path, _outside):
    edit_manifest(path, lambda value: listed(value, "packed.onnx").update(bytes=10**30))


@case("no artifacts", ManifestError)
def _(path, _outside):
    edit_manifest(path, lambda value: value.update(artifacts=[]))


@case("no artifacts and no files", ManifestError)
def _(path, _outside):
    edit_manifest(path, lambda value: value.update(artifacts=[]))
    for name in NAMES:
        (path / name).unlink()


@case("unknown key", ManifestError)
def _(path, _outside):
    edit_manifest(path, lambda value: value.update(auto_map={"AutoModel": "evil.Model"}))


# Tensors and graphs, with true sizes and hashes

for name, data in DAMAGED.items():

    @case(f"weights: {name}", IntegrityError)
    def _(path, _outside, data=data):
        rewrite(path, "weights.safetensors", data)


for name, data in REFUSED.items():

    @case(f"graph: {name}", UnsafeBundle)
    def _(path, _outside, data=data):
        rewrite(path, "packed.onnx", data)


LOCATIONS = (
    "../outside/bait", "/etc/passwd", BAIT, "tokenizer.json", "canary.safetensors", "",
    "./weights.safetensors", "weights.safetensors\0", "sub/../weights.safetensors",
    "Weights.safetensors", "fp16/weights.safetensors", "weights.safetensors ",
    "*/_ORT_MEM_ADDR_/*", "/proc/self/mem", "/dev/zero", "http://localhost/weights",
    "file:///etc/passwd", "..\\outside\\bait", "\\\\server\\share\\x", "packed.onnx",
)  # fmt: skip

for number, location in enumerate(LOCATIONS):

    @case(f"external data in {number} {location!r}", UnsafeBundle)
    def _(path, outside, location=location):
        place = TensorFile(path / "weights.safetensors").entries["a"]
        where = location.format(outside=outside) if location is BAIT else location
        put_graph(path, external(place.offset, place.nbytes, where))


def put_graph(path: Path, data: bytes, dims: tuple[int, ...] = (DIM, DIM)) -> None:
    body = graph(node("MatMul", ("x", "a")), initializers=[tensor("a", dims, data)])
    rewrite(path, "packed.onnx", model(body))


for name, (shift, longer) in {
    "one byte late": (1, 0),
    "one byte early": (-1, 0),
    "one byte short": (0, -1),
    "one byte long": (0, 1),
    "inside a tensor": (16, -16),
    "across two tensors": (0, 64),
    "in the header": (-200, 0),
    "past the end": (10**6, 0),
    "of all the file": (-(10**9), 10**9),
    "of 2^63": (2**63, 0),
    "of 2^64": (2**64, 0),
}.items():

    @case(f"external data {name}", UnsafeBundle)
    def _(path, _outside, shift=shift, longer=longer):
        place = TensorFile(path / "weights.safetensors").entries["a"]
        put_graph(path, external(max(0, place.offset + shift), place.nbytes + longer))


@case("external data of no bytes", UnsafeBundle)
def _(path, _outside):
    put_graph(path, external(0, 0))


@case("external data in an unused initializer", UnsafeBundle)
def _(path, _outside):
    place = TensorFile(path / "weights.safetensors").entries["a"]
    good = tensor("a", (DIM, DIM), external(place.offset, place.nbytes))
    bad = tensor("z", (1,), external(0, 8, "../outside/bait"))
    rewrite(path, "packed.onnx", model(graph(node("MatMul"), initializers=[good, bad])))


@case("second graph that reaches outside", UnsafeBundle)
def _(path, _outside):
    bad = graph(node("MatMul"), initializers=[tensor("z", (1,), external(0, 8, "/etc/passwd"))])
    rewrite(path, "packed.onnx", (path / "packed.onnx").read_bytes() + field(7, bad))


@case("graph in a folder without weights", UnsafeBundle, ManifestError)
def _(path, _outside):
    (path / "fp16").mkdir()
    (path / "fp16" / "packed.onnx").write_bytes((path / "packed.onnx").read_bytes())

    def change(value):
        files = value["artifacts"][0]["files"]
        files.append({**listed(value, "packed.onnx"), "path": "fp16/packed.onnx"})

    edit_manifest(path, change)


# Tokenizers

SMALL = json.loads(small_tokenizer())
for name, text in {
    "empty": b"",
    "not JSON": b"{",
    "a list": b"[]",
    "no model": json.dumps({**SMALL, "model": None}).encode(),
    "unknown model": json.dumps({**SMALL, "model": {"type": "Evil"}}).encode(),
    "unknown normalizer": json.dumps({**SMALL, "normalizer": {"type": "Evil"}}).encode(),
    "ids beyond the vocabulary": json.dumps(
        {**SMALL, "model": {**SMALL["model"], "vocab": {"가": 99, "나": 98, "[UNK]": 3}}}
    ).encode(),
    "no special tokens around a text": json.dumps({**SMALL, "post_processor": None}).encode(),
    "other special tokens": json.dumps(SMALL).replace("[CLS]", "[SEP]").encode(),
    "precompiled junk": json.dumps(
        {**SMALL, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
    ).encode(),
    "not UTF-8": small_tokenizer().encode().replace("가".encode(), b"\xff"),
    "a template with a token it does not define": json.dumps(
        {**SMALL, "post_processor": {**SMALL["post_processor"], "special_tokens": {}}}
    ).encode(),
    "deep": b'{"model":' * 100_000,
    "pickle": b"\x80\x04\x95",
}.items():
    # A vocabulary may hold ids that no text gives, so ids are judged with the text that gives one.
    errors = {"unknown normalizer": UnsafeBundle, "ids beyond the vocabulary": TextError}

    @case(f"tokenizer: {name}", errors.get(name, ManifestError))
    def _(path, _outside, text=text):
        rewrite(path, "tokenizer.json", text)


# Canaries


def canary_with(path: Path, **changes: object) -> None:
    tensors = TensorFile(path / "canary.safetensors").tensors()
    kept = {name: np.array(value) for name, value in tensors.items() if name[0] != "_"}
    for name, value in changes.items():
        if value is None:
            del kept[name]
        else:
            kept[name] = np.asarray(value)
    (path / "canary.safetensors").unlink()
    write_tensors(path / "canary.safetensors", kept)
    rehash(path, "canary.safetensors")


F32, I32, I64, U8 = np.float32, np.int32, np.int64, np.uint8
for name, changes in {
    "no vectors": {"vectors": None},
    "no ids": {"ids": None},
    "no starts": {"starts": None},
    "no texts": {"texts": None},
    "no lengths": {"text_bytes": None},
    "one vector too few": {"vectors": np.zeros((1, DIM), F32)},
    "vectors of another width": {"vectors": np.zeros((2, DIM + 1), F32)},
    "flat vectors": {"vectors": np.zeros(2 * DIM, F32)},
    "scalar vectors": {"vectors": np.zeros((), F32)},
    "float64 vectors": {"vectors": np.zeros((2, DIM))},
    "ids beyond the vocabulary": {"ids": np.array([0, 4, 2, 0, 5, 99, 2], I32)},
    "negative ids": {"ids": np.array([0, 4, 2, 0, 5, -6, 2], I32)},
    "int64 ids": {"ids": np.array([0, 4, 2, 0, 5, 6, 2], I64)},
    "ids in two dimensions": {"ids": np.zeros((7, 1), I32)},
    "starts that fall": {"starts": np.array([0, 9, 7], I32)},
    "starts past the end": {"starts": np.array([0, 3, 8], I32)},
    "starts that begin late": {"starts": np.array([1, 3, 7], I32)},
    "an empty sentence": {"starts": np.array([0, 0, 7], I32)},
    "starts of none": {"starts": np.empty(0, I32)},
    "starts in two dimensions": {"starts": np.zeros((3, 1), I32)},
    "a sentence over max_tokens": {
        "ids": np.zeros(40, I32),
        "starts": np.array([0, 3, 40], I32),
    },
    "no texts at all": {
        "vectors": np.zeros((0, DIM), F32),
        "ids": np.empty(0, I32),
        "starts": np.zeros(1, I32),
        "text_bytes": np.empty(0, I64),
        "texts": np.empty(0, U8),
    },
    "texts that are not UTF-8": {"texts": np.full(8, 255, U8)},
    "texts cut short": {"texts": np.frombuffer("가나".encode(), U8)},
    "texts too long": {"texts": np.frombuffer("가나 다라".encode(), U8)},
    "float lengths": {"text_bytes": np.array([3.0, 7.0])},
    "negative lengths": {"text_bytes": np.array([10, -3], I64)},
    "huge lengths": {"text_bytes": np.array([2**62, 2**62], I64)},
}.items():

    @case(f"canary: {name}", IntegrityError)
    def _(path, _outside, changes=changes):
        canary_with(path, **changes)


@case("canary: damaged header", IntegrityError)
def _(path, _outside):
    rewrite(path, "canary.safetensors", safetensors({"a": floats(0, 8)}, bytes(4)))


def test_there_are_enough():
    assert len(CASES) >= 200


@pytest.mark.parametrize("name", CASES)
def test_refused(tmp_path, name):
    spoil, errors = CASES[name]
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "bait").write_bytes(b"bait")
    path = small_bundle(tmp_path / "b.kosine")
    spoil(path, outside)
    began = time.process_time()
    with opened_files() as opened, pytest.raises(errors) as caught:
        read_everything(path)
    assert time.process_time() - began < 1
    ours = [n for n in opened if not n.startswith((sys.prefix, sys.base_prefix))]
    assert all(Path(os.path.normpath(n)).is_relative_to(path) for n in ours), ours
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    assert all(c.isprintable() for c in message)


def test_the_watch_sees_what_is_opened(tmp_path):
    path = small_bundle(tmp_path / "b.kosine")
    with opened_files() as opened:
        read_everything(path)
        (tmp_path / "bait").write_text("x")
    assert str(path / "manifest.json") in opened
    assert str(path / "packed.onnx") in opened
    assert str(tmp_path / "bait") in opened


def test_a_refused_bundle_never_reaches_an_engine(tmp_path, sample_bundle):
    """The same on a true bundle through the public door: the graph of another bundle."""
    path = tmp_path / "x.kosine"
    path.mkdir()
    for source in sample_bundle.rglob("*"):
        target = path / source.relative_to(sample_bundle)
        if source.is_dir():
            target.mkdir()
        else:
            shutil.copyfile(source, target)
    assert kosine.load(path, backend="onnx").dim
    data = (
        (path / "packed.onnx").read_bytes().replace(b"weights.safetensors", b"weights.safetensorz")
    )
    rewrite(path, "packed.onnx", data)
    with pytest.raises(UnsafeBundle, match=r"weights\.safetensorz"):
        kosine.load(path, backend="onnx")


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    return small_bundle(tmp_path_factory.mktemp("fuzz") / "b.kosine")


@settings(deadline=None, max_examples=300)
@given(data=st.data())
@pytest.mark.parametrize("name", NAMES)
def test_mutated_files_are_read_or_refused(fuzzed, name, data):
    """With the hash made right each time, so that the mutation reaches the parser."""
    before = (fuzzed / name).read_bytes()
    manifest = (fuzzed / "manifest.json").read_bytes()
    raw = bytearray(before)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(min_size=1, max_size=3))
    try:
        rewrite(fuzzed, name, bytes(raw))
        with suppress(KosineError):
            read_everything(fuzzed)
    finally:
        (fuzzed / name).write_bytes(before)
        (fuzzed / "manifest.json").write_bytes(manifest)
