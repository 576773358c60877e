"""`manifest.json`: everything the exporter found out, typed and validated.

Schema 2, whose `spec` is the whole EncoderSpec. Schema 1 is read too (`schema_1.py`); a later one
is refused by name. Unknown keys are refused: a key that is not understood might change what the
vectors mean.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from math import inf
from typing import Any, Literal

from kosine.bundle.int8 import INT8_WEIGHTS, Int8Weights
from kosine.bundle.plans import FLAVOURS, TensorRTPlan
from kosine.bundle.spec_check import MAX_DIMENSION, check_spec
from kosine.bundle.typed_json import bad, build, parse, shown
from kosine.errors import SchemaTooNew
from kosine.spec import EncoderSpec

__all__ = [
    "MAX_MANIFEST_BYTES",
    "NUMERICS",
    "SCHEMA",
    "Artifact",
    "FileEntry",
    "Manifest",
    "Similarity",
    "UnicodeForm",
]

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
UnicodeForm = Literal["none", "NFC"]
SCHEMA = 2
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
# By backend; raised when a new version gives other bits from the same files on the same machine,
# for which `tests/golden` is written anew. Not for a new ISA level beside those there are.
NUMERICS = {"native": 7, "onnx": 1, "tensorrt": 1, "cuda": 1}
# Where the files of a dtype lie, if not in the bundle's own folder.
FOLDERS = {"float16": "fp16/", "w8a16": "int8/", "int8": "int8/"}


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the bundle: its path relative to the bundle, with forward slashes."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """Files that belong together, and the precision of the numbers in them ("" for none)."""

    name: str
    precision: str
    files: tuple[FileEntry, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle is.

    Attributes:
        kosine: Version that wrote it.
        source: Where the checkpoint came from: name, revision, sha256 of its weights.
        spec: What the encoder computes.
        max_tokens: Most tokens of a text, special tokens included.
        prompts: Prompt texts by name.
        similarity: "cosine", "dot", "euclidean" or "manhattan".
        special_ids: Token ids of sep, which ends a text, and of pad; of cls, which is put before
            a text, unk and mask where they exist.
        unicode: "NFC" where texts are normalised before tokenising, or "none".
        ranges: Per-dimension `min` and `max` for integer output vectors, or None.
        targets: Export targets that it holds.
        parity: What was measured against the reference at export, or None.
        certificates: Range certificates by target.
        plans: The TensorRT plans among its files.
        int8: How its weights of signed bytes were made, with target "native-int8"; or None.
        schema: That of the file it was read from; `to_json` always writes `SCHEMA`.
    """

    kosine: str
    source: dict[str, Any]
    spec: EncoderSpec
    max_tokens: int
    prompts: dict[str, str]
    default_prompt_name: str | None
    similarity: Similarity
    special_ids: dict[str, int]
    do_lower_case: bool
    unicode: UnicodeForm
    ranges: dict[str, list[float]] | None
    targets: tuple[str, ...]
    artifacts: tuple[Artifact, ...]
    parity: dict[str, Any] | None = None
    certificates: dict[str, Any] = field(default_factory=dict)
    plans: tuple[TensorRTPlan, ...] = ()
    int8: Int8Weights | None = None
    schema: int = field(default=SCHEMA, compare=False)

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self.spec.dim

    def files(self) -> dict[str, FileEntry]:
        """Every file by path."""
        return {entry.path: entry for artifact in self.artifacts for entry in artifact.files}

    def fingerprint(self, backend: str, dtype: str) -> str:
        """32 hex digits of all that vectors depend on.

        The files that the backend reads for the dtype (the weights, scales and graph, and the
        tokenizer), in int8 the products that stay in w8a16, the semantics recorded here, the
        ranges by which int8 and uint8 vectors leave, the backend's family, what it computes in,
        and the revision of its numerics. A TensorRT plan counts as the graph that it was built
        from.

        Not the machine, nor the ISA level or the number of threads: they change no more than
        rounding, well inside the parity gates, and a fleet of mixed machines keeps one index.
        """
        folder = "" if backend == "cuda" else FOLDERS.get(dtype, "")  # it rounds weights itself
        read = {"weights.safetensors", "tokenizer.json"}
        if backend in ("onnx", "tensorrt"):
            read.add(f"{folder}packed.onnx")
        facts = {
            "files": {
                path: entry.sha256
                for path, entry in self.files().items()
                if path in read
                or (folder and path.startswith(folder) and path.endswith(".safetensors"))
            },
            "spec": _stated(self.spec),
            "max_tokens": self.max_tokens,
            "prompts": self.prompts,
            "default_prompt_name": self.default_prompt_name,
            "special_ids": self.special_ids,
            "unicode": self.unicode,
            "ranges": self.ranges,
            "backend": backend,
            "dtype": dtype,
            "numerics": NUMERICS.get(backend),
        }
        if dtype == "int8" and self.int8 is not None:
            facts["bytes_only"] = sorted(self.int8.bytes_only)
        text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
        from hashlib import sha256  # with OpenSSL; `import kosine` does without

        return sha256(text.encode()).hexdigest()[:32]

    def to_json(self) -> str:
        value = {**asdict(self), "schema": SCHEMA}
        return json.dumps(
            {"schema": SCHEMA, **value}, ensure_ascii=False, indent=1, allow_nan=False
        )

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """Read and validate; every complaint names the path to the bad value."""
        if len(text) > MAX_MANIFEST_BYTES:
            raise bad("$", f"{len(text)} bytes", f"at most {MAX_MANIFEST_BYTES}")
        value = parse(text)
        schema = value.get("schema")
        if type(schema) is not int or schema < 1:
            raise bad("$.schema", repr(schema)[:40], "an integer of at least 1")
        if schema > SCHEMA:
            raise SchemaTooNew(
                f"the bundle has schema {shown(schema)}",
                limit=f"this kosine reads up to {SCHEMA}",
                remedy="upgrade kosine, or export the bundle again with this version",
            )
        if schema == 1:
            from kosine.bundle.schema_1 import from_schema_1

            value = from_schema_1(value)
        manifest: Manifest = build(cls, value, "$")
        check_spec(manifest.spec)
        _check(manifest)
        return manifest


def _stated(part: Any) -> Any:
    """A spec as JSON, without fields that have their default: what a later version can say more
    changes no fingerprint of what is as it was.
    """
    if isinstance(part, tuple):
        return [_stated(each) for each in part]
    if not is_dataclass(part):
        return part
    values = {f.name: (getattr(part, f.name), f.default) for f in fields(part)}
    return {name: _stated(value) for name, (value, default) in values.items() if value != default}


def _check(manifest: Manifest) -> None:
    embeddings = manifest.spec.embeddings
    for name in {"sep": 0, "pad": 0, **manifest.special_ids}:
        number = manifest.special_ids.get(name)
        if number is None or not 0 <= number < embeddings.vocab_size:
            raise bad(f"$.special_ids.{name[:40]}", shown(number), "a vocabulary id")
    usable = embeddings.positions.usable
    if not 3 <= manifest.max_tokens <= usable:
        raise bad("$.max_tokens", shown(manifest.max_tokens), f"3 to {usable} position rows")
    default = manifest.default_prompt_name
    if default is not None and default not in manifest.prompts:
        raise bad("$.default_prompt_name", repr(default)[:40], "a name in $.prompts")
    if manifest.ranges is not None:
        low, high = (manifest.ranges.get(key, []) for key in ("min", "max"))
        if len(low) != manifest.dim or len(high) != manifest.dim:
            raise bad("$.ranges", f"{len(low)} and {len(high)} values", f"{manifest.dim} each")
        if not all(-inf < a < b < inf for a, b in zip(low, high, strict=True)):
            raise bad("$.ranges", "a pair that is no range", "finite numbers, min < max")
    paths = [entry.path for artifact in manifest.artifacts for entry in artifact.files]
    for required in ("tokenizer.json", "weights.safetensors"):
        if manifest.artifacts and required not in paths:
            raise bad("$.artifacts", f"without {required}", "every bundle has it")
    if len(paths) != len(set(paths)):
        raise bad("$.artifacts", "a path listed twice", "each path once")
    if manifest.int8 is not None:
        _check_int8(manifest.int8, paths)
    for i, plan in enumerate(manifest.plans):
        _check_plan(plan, f"$.plans[{i}]", paths, manifest.max_tokens)


def _check_int8(int8: Int8Weights, paths: list[str]) -> None:
    if INT8_WEIGHTS not in paths:
        raise bad("$.int8", f"there without {INT8_WEIGHTS}", "that file in $.artifacts")
    if not int8.errors or not set(int8.bytes_only) <= set(int8.errors):
        raise bad("$.int8.bytes_only", "a name that is not in errors", "names of products")
    numbers = {"max_error": int8.max_error, "bytes_only_share": int8.bytes_only_share}
    for name, value in {**numbers, **int8.errors}.items():
        most = 1 if name == "bytes_only_share" else inf
        if not 0 <= value <= most:
            at = name if name in numbers else f"errors.{name[:40]}"
            raise bad(f"$.int8.{at}", str(value), f"0 to {most}")
    for name, count in {"texts": int8.texts, "tokens": int8.tokens}.items():
        if count < 1:
            raise bad(f"$.int8.{name}", shown(count), "at least 1")


def _check_plan(plan: TensorRTPlan, at: str, paths: list[str], max_tokens: int) -> None:
    if plan.path not in paths:
        raise bad(f"{at}.path", repr(plan.path)[:80], "one of the files in $.artifacts")
    if plan.flavour not in FLAVOURS:
        raise bad(f"{at}.flavour", repr(plan.flavour)[:40], f"one of {', '.join(FLAVOURS)}")
    if not plan.architectures or not plan.profiles:
        raise bad(at, "a plan for no architecture or no profile", "at least one of each")
    for j, profile in enumerate(plan.profiles):
        rows = (profile.min_rows, profile.opt_rows, profile.max_rows)
        if not 1 <= rows[0] <= rows[1] <= rows[2] <= MAX_DIMENSION:
            raise bad(f"{at}.profiles[{j}]", f"{rows} rows", "1 <= min <= opt <= max")
        if not 1 <= profile.max_slots <= profile.width <= MAX_DIMENSION:
            slots = f"{profile.max_slots} slots in {profile.width} tokens"
            raise bad(f"{at}.profiles[{j}]", slots, "at most one sentence a token")
    if max(profile.width for profile in plan.profiles) < max_tokens:
        raise bad(f"{at}.profiles", "narrower than the longest text", f"a width of {max_tokens}")
