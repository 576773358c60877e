"""What hostile bundles are made of: a small true bundle, and the tools to spoil it.

The bundle is the smallest one that every reader accepts. Graphs are written as protobuf bytes
here, without the onnx package, so that any malformed message can be made.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from kosine.bundle import Bundle
from kosine.bundle.canary import Canary
from kosine.bundle.manifest import Artifact, FileEntry, Manifest
from kosine.bundle.tensorfile import write_tensors
from kosine.packed import Packed
from kosine.quantization import calibrated_ranges
from kosine.tokenizer import Tokenizer as RuntimeTokenizer
from specs import spec_of_sizes

DIM = 4
VOCAB = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "가", "나", "다")


# The small bundle


def small_bundle(folder: Path) -> Path:
    """A bundle of a few kilobytes; its packed.onnx has one node and one external tensor."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(small_tokenizer(), encoding="utf-8")
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((DIM, DIM)).astype(np.float32)
    entries = write_tensors(folder / "weights.safetensors", {"a": weight, "b": weight + 1})
    place = entries["a"]
    graph_bytes = graph(
        node("MatMul", ("x", "a"), ("y",)),
        initializers=[tensor("a", (DIM, DIM), external(place.offset, place.nbytes))],
    )
    (folder / "packed.onnx").write_bytes(model(graph_bytes))
    vectors = rng.standard_normal((2, DIM)).astype(np.float32)
    canary = Canary(("가", "나 다"), Packed.of([[0, 4, 2], [0, 5, 6, 2]]), vectors)
    write_tensors(folder / "canary.safetensors", canary.tensors())
    names = ("tokenizer.json", "weights.safetensors", "packed.onnx", "canary.safetensors")
    manifest = small_manifest(
        artifacts=(Artifact("all", "", tuple(entry(folder, name) for name in names)),),
        ranges=calibrated_ranges(vectors),
    )
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder


def small_manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "kosine": "0.1.0",
        "source": {"name": "small", "revision": None, "sha256": {}},
        "spec": spec_of_sizes(
            hidden=DIM, heads=2, inner=8, vocab=len(VOCAB), positions=32, pad_id=1
        ),
        "max_tokens": 16,
        "prompts": {"query": "가 "},
        "default_prompt_name": None,
        "similarity": "cosine",
        "special_ids": {"cls": 0, "pad": 1, "sep": 2, "unk": 3},
        "do_lower_case": False,
        "unicode": "none",
        "ranges": None,
        "targets": ("onnx",),
        "artifacts": (),
    }
    return Manifest(**{**values, **changes})


def small_tokenizer() -> str:
    vocab = {token: i for i, token in enumerate(VOCAB)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    return tokenizer.to_str()


def entry(folder: Path, name: str) -> FileEntry:
    data = (folder / name).read_bytes()
    return FileEntry(name, len(data), hashlib.sha256(data).hexdigest())


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest's JSON value in place."""
    path = folder / "manifest.json"
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Write a file and give the manifest its true size and sha256: tampering done well."""
    (folder / name).write_bytes(data)
    rehash(folder, name)


def rehash(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()

    def change(value: dict[str, Any]) -> None:
        for artifact in value["artifacts"]:
            for file in artifact["files"]:
                if file["path"] == name:
                    file["bytes"] = len(data)
                    file["sha256"] = hashlib.sha256(data).hexdigest()

    edit_manifest(folder, change)


def read_everything(folder: Path) -> None:
    """Every reader that stands between a bundle and an engine."""
    bundle = Bundle(folder)
    bundle.verify_all()
    bundle.tensors().tensors()
    for name in sorted(bundle.manifest.files()):
        if name.endswith(".onnx"):
            bundle.graph(name)
    RuntimeTokenizer(bundle).tokenize(["가 나"])
    Canary.read(bundle)


# Which files Python opens

_watching: list[list[str]] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _watching and event == "open" and isinstance(args[0], str | bytes):
        name = args[0].decode() if isinstance(args[0], bytes) else args[0]
        _watching[-1].append(name)


sys.addaudithook(_hook)  # hooks cannot be taken off again: it sleeps unless something watches


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """Every path that `open` is called with meanwhile."""
    names: list[str] = []
    _watching.append(names)
    try:
        yield names
    finally:
        _watching.remove(names)


# safetensors


def safetensors(
    header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None
) -> bytes:
    """A safetensors file; `length` is what it claims of its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def floats(begin: int, end: int, shape: list[int] | None = None) -> dict[str, Any]:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


# protobuf; see its encoding guide


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def external(
    offset: int | str, length: int | str, location: str = "weights.safetensors", **more: str
) -> bytes:
    """The external_data of a TensorProto."""
    pairs = {"location": location, "offset": str(offset), "length": str(length), **more}
    return b"".join(pair(key, value) for key, value in pairs.items()) + field(14, 1)


def pair(key: str, value: str) -> bytes:
    return field(13, field(1, key) + field(2, value))


def tensor(name: str, dims: tuple[int, ...], data: bytes) -> bytes:
    return b"".join(field(1, dim) for dim in dims) + field(2, 1) + field(8, name) + data


def node(
    op: str,
    inputs: tuple[str, ...] = (),
    outputs: tuple[str, ...] = ("y",),
    *,
    domain: str = "",
    attributes: bytes = b"",
) -> bytes:
    """A NodeProto; `attributes` are encoded NodeProto fields, see `attribute`."""
    names = b"".join(field(1, name) for name in inputs) + b"".join(field(2, n) for n in outputs)
    return names + field(4, op) + (field(7, domain) if domain else b"") + attributes


def attribute(number: int, value: int | str | bytes) -> bytes:
    """A NodeProto's attribute that holds `value` as AttributeProto's field `number`."""
    return field(5, field(1, "attribute") + field(number, value))


def graph(*nodes: bytes, initializers: list[bytes] | None = None, extra: bytes = b"") -> bytes:
    body = b"".join(field(1, each) for each in nodes)
    return body + field(2, "g") + b"".join(field(5, each) for each in initializers or []) + extra


def model(graph_bytes: bytes | None = None, extra: bytes = b"") -> bytes:
    body = field(1, 8) + field(8, field(1, "") + field(2, 17))
    return body + (b"" if graph_bytes is None else field(7, graph_bytes)) + extra
