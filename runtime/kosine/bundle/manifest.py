"""`manifest.json`: everything the exporter found out, typed and validated.

Schema 1. A later kosine keeps reading it; this kosine refuses a later schema by name. Unknown
keys are refused too: a key that is not understood might change what the vectors mean.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from math import inf
from typing import Any, get_args, get_origin, get_type_hints

from kosine.bundle.plans import FLAVOURS, TensorRTPlan
from kosine.errors import ManifestError, SchemaTooNew

__all__ = [
    "MAX_MANIFEST_BYTES",
    "NUMERICS",
    "SCHEMA",
    "Architecture",
    "Artifact",
    "Dense",
    "FileEntry",
    "Manifest",
    "Pooling",
]

SCHEMA = 1
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
POOLING_MODES = ("mean", "cls", "max")
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
POSITION_RULES = ("absolute", "roberta")
UNICODE_FORMS = ("none", "NFC")
ACTIVATIONS = ("identity", "tanh", "relu", "gelu", "sigmoid")
MAX_DIMENSION = 1 << 20
MAX_DEPTH = 16
# By backend; raised when a new version gives other bits from the same files on the same machine,
# for which `tests/golden` is written anew. Not for a new ISA level beside those there are.
NUMERICS = {"native": 1, "onnx": 1, "tensorrt": 1}
# Where the files of a dtype lie, if not in the bundle's own folder.
FOLDERS = {"float16": "fp16/", "w8a16": "int8/", "int8": "int8/"}


@dataclass(frozen=True, slots=True)
class Architecture:
    """Shape of the encoder; the names are transformers' config names where those exist."""

    family: str
    vocab_size: int
    hidden_size: int
    embedding_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    position_rule: str


@dataclass(frozen=True, slots=True)
class Pooling:
    mode: str
    include_prompt: bool


@dataclass(frozen=True, slots=True)
class Dense:
    in_features: int
    out_features: int
    bias: bool
    activation: str
    use_residual: bool


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
        dim: Length of the vectors.
        max_tokens: Most tokens of a text, special tokens included.
        normalized: Whether the checkpoint itself ends in a Normalize module.
        prompts: Prompt texts by name.
        similarity: "cosine", "dot", "euclidean" or "manhattan".
        special_ids: Token ids of cls, sep and pad, and of unk and mask where they exist.
        unicode: "NFC" where texts are normalised before tokenising, or "none".
        ranges: Per-dimension `min` and `max` for integer output vectors, or None.
        targets: Export targets that it holds.
        parity: What was measured against the reference at export, or None.
        certificates: Range certificates by target.
        plans: The TensorRT plans among its files.
    """

    kosine: str
    source: dict[str, Any]
    architecture: Architecture
    dim: int
    max_tokens: int
    pooling: Pooling
    dense: tuple[Dense, ...]
    normalized: bool
    prompts: dict[str, str]
    default_prompt_name: str | None
    similarity: str
    special_ids: dict[str, int]
    do_lower_case: bool
    unicode: str
    ranges: dict[str, list[float]] | None
    targets: tuple[str, ...]
    artifacts: tuple[Artifact, ...]
    parity: dict[str, Any] | None = None
    certificates: dict[str, Any] = field(default_factory=dict)
    plans: tuple[TensorRTPlan, ...] = ()
    schema: int = SCHEMA

    def files(self) -> dict[str, FileEntry]:
        """Every file by path."""
        return {entry.path: entry for artifact in self.artifacts for entry in artifact.files}

    def fingerprint(self, backend: str, dtype: str) -> str:
        """32 hex digits of all that vectors depend on.

        The files that the backend reads for the dtype (the weights, scales and graph, and the
        tokenizer), the semantics recorded here, the ranges by which int8 and uint8 vectors leave,
        the backend's family, what it computes in, and the revision of its numerics. A TensorRT
        plan counts as the graph that it was built from.

        Not the machine, nor the ISA level or the number of threads: they change no more than
        rounding, well inside the parity gates, and a fleet of mixed machines keeps one index.
        """
        folder = FOLDERS.get(dtype, "")
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
            "max_tokens": self.max_tokens,
            "pooling": asdict(self.pooling),
            "dense": [asdict(dense) for dense in self.dense],
            "normalized": self.normalized,
            "prompts": self.prompts,
            "default_prompt_name": self.default_prompt_name,
            "architecture": asdict(self.architecture),
            "special_ids": self.special_ids,
            "unicode": self.unicode,
            "ranges": self.ranges,
            "backend": backend,
            "dtype": dtype,
            "numerics": NUMERICS.get(backend),
        }
        text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def to_json(self) -> str:
        return json.dumps(
            {"schema": self.schema, **asdict(self)}, ensure_ascii=False, indent=1, allow_nan=False
        )

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """Read and validate; every complaint names the path to the bad value."""
        if len(text) > MAX_MANIFEST_BYTES:
            raise _bad("$", f"{len(text)} bytes", f"at most {MAX_MANIFEST_BYTES}")
        try:
            value = json.loads(
                text.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique
            )
            # What cannot be written again: lone surrogates as \\u escapes, 1e999.
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise _bad(
                "$",
                f"not JSON in UTF-8 with unique keys ({type(error).__name__})",
                "a JSON object",
            ) from None
        if _depth(value) > MAX_DEPTH:
            raise _bad("$", "nested too deeply", f"at most {MAX_DEPTH} levels")
        if not isinstance(value, dict):
            raise _bad("$", f"a {type(value).__name__}", "a JSON object")
        schema = value.get("schema")
        if type(schema) is not int or schema < 1:
            raise _bad("$.schema", repr(schema)[:40], "an integer of at least 1")
        if schema > SCHEMA:
            raise SchemaTooNew(
                f"the bundle has schema {schema}",
                limit=f"this kosine reads up to {SCHEMA}",
                remedy="upgrade kosine, or export the bundle again with this version",
            )
        manifest: Manifest = _build(cls, value, "$")
        _check(manifest)
        return manifest


def _check(manifest: Manifest) -> None:
    a = manifest.architecture
    for name, known, value in (
        ("pooling.mode", POOLING_MODES, manifest.pooling.mode),
        ("similarity", SIMILARITIES, manifest.similarity),
        ("unicode", UNICODE_FORMS, manifest.unicode),
        ("architecture.position_rule", POSITION_RULES, a.position_rule),
        *(("dense.activation", ACTIVATIONS, dense.activation) for dense in manifest.dense),
    ):
        if value not in known:
            raise _bad(f"$.{name}", repr(value)[:40], f"one of {', '.join(known)}")
    sizes = {
        "dim": manifest.dim,
        "max_tokens": manifest.max_tokens,
        **{f"architecture.{f.name}": getattr(a, f.name) for f in fields(a) if f.type == "int"},
    }
    sizes.pop("architecture.type_vocab_size")
    for name, size in sizes.items():
        if not 1 <= size <= MAX_DIMENSION:
            raise _bad(f"$.{name}", _shown(size), f"1 to {MAX_DIMENSION}")
    if not 0 <= a.type_vocab_size <= MAX_DIMENSION:
        raise _bad(
            "$.architecture.type_vocab_size", _shown(a.type_vocab_size), f"0 to {MAX_DIMENSION}"
        )
    if a.hidden_size % a.num_heads:
        raise _bad("$.architecture.num_heads", str(a.num_heads), f"a divisor of {a.hidden_size}")
    if not 0 < a.layer_norm_eps < 1:
        raise _bad("$.architecture.layer_norm_eps", str(a.layer_norm_eps), "between 0 and 1")
    dim = a.hidden_size
    for i, dense in enumerate(manifest.dense):
        if dense.in_features != dim:
            raise _bad(f"$.dense[{i}].in_features", _shown(dense.in_features), f"{dim}")
        dim = dense.out_features
    if manifest.dim != dim:
        raise _bad("$.dim", str(manifest.dim), f"{dim}, as the last layer says")
    for name in {"cls": 0, "sep": 0, "pad": 0, **manifest.special_ids}:
        number = manifest.special_ids.get(name)
        if number is None or not 0 <= number < a.vocab_size:
            raise _bad(f"$.special_ids.{name[:40]}", _shown(number), "a vocabulary id")
    usable = a.max_position_embeddings
    if a.position_rule == "roberta":
        usable -= manifest.special_ids["pad"] + 1
    if not 3 <= manifest.max_tokens <= usable:
        raise _bad("$.max_tokens", str(manifest.max_tokens), f"3 to {usable} position rows")
    default = manifest.default_prompt_name
    if default is not None and default not in manifest.prompts:
        raise _bad("$.default_prompt_name", repr(default)[:40], "a name in $.prompts")
    if manifest.ranges is not None:
        low, high = (manifest.ranges.get(key, []) for key in ("min", "max"))
        if len(low) != manifest.dim or len(high) != manifest.dim:
            raise _bad("$.ranges", f"{len(low)} and {len(high)} values", f"{manifest.dim} each")
        if not all(-inf < a < b < inf for a, b in zip(low, high, strict=True)):
            raise _bad("$.ranges", "a pair that is no range", "finite numbers, min < max")
    paths = [entry.path for artifact in manifest.artifacts for entry in artifact.files]
    for required in ("tokenizer.json", "weights.safetensors"):
        if manifest.artifacts and required not in paths:
            raise _bad("$.artifacts", f"without {required}", "every bundle has it")
    if len(paths) != len(set(paths)):
        raise _bad("$.artifacts", "a path listed twice", "each path once")
    for i, plan in enumerate(manifest.plans):
        _check_plan(plan, f"$.plans[{i}]", paths, manifest.max_tokens)


def _check_plan(plan: TensorRTPlan, at: str, paths: list[str], max_tokens: int) -> None:
    if plan.path not in paths:
        raise _bad(f"{at}.path", repr(plan.path)[:80], "one of the files in $.artifacts")
    if plan.flavour not in FLAVOURS:
        raise _bad(f"{at}.flavour", repr(plan.flavour)[:40], f"one of {', '.join(FLAVOURS)}")
    if not plan.architectures or not plan.profiles:
        raise _bad(at, "a plan for no architecture or no profile", "at least one of each")
    for j, profile in enumerate(plan.profiles):
        rows = (profile.min_rows, profile.opt_rows, profile.max_rows)
        if not 1 <= rows[0] <= rows[1] <= rows[2] <= MAX_DIMENSION:
            raise _bad(f"{at}.profiles[{j}]", f"{rows} rows", "1 <= min <= opt <= max")
        if not 1 <= profile.max_slots <= profile.width <= MAX_DIMENSION:
            slots = f"{profile.max_slots} slots in {profile.width} tokens"
            raise _bad(f"{at}.profiles[{j}]", slots, "at most one sentence a token")
    if max(profile.width for profile in plan.profiles) < max_tokens:
        raise _bad(f"{at}.profiles", "narrower than the longest text", f"a width of {max_tokens}")


def _build(kind: type[Any], value: Any, at: str) -> Any:
    """Make a dataclass from a JSON object, each field checked against its annotation."""
    if not isinstance(value, dict):
        raise _bad(at, f"a {type(value).__name__}", "an object")
    hints = get_type_hints(kind)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise _bad(at, f"an object with key {unknown[0][:40]!r}", f"of {', '.join(hints)}")
    missing = [
        f.name
        for f in fields(kind)
        if f.name not in value and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise _bad(f"{at}.{missing[0]}", "no value", "required")
    return kind(
        **{name: _convert(hints[name], part, f"{at}.{name}") for name, part in value.items()}
    )


def _convert(hint: Any, value: Any, at: str) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if type(None) in parts:  # X | None
        if value is None:
            return None
        return _convert(next(part for part in parts if part is not type(None)), value, at)
    if origin is tuple:
        items = _expect(list, value, at)
        return tuple(_convert(parts[0], item, f"{at}[{i}]") for i, item in enumerate(items))
    if origin is list:
        items = _expect(list, value, at)
        return [_convert(parts[0], item, f"{at}[{i}]") for i, item in enumerate(items)]
    if origin is dict:
        mapping = _expect(dict, value, at)
        return {key: _convert(parts[1], item, f"{at}.{key[:40]}") for key, item in mapping.items()}
    if hint is Any:
        return value
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise _bad(at, _shown(value), "a float") from None
    if hint in (int, float, str, bool):
        if type(value) is not hint:
            raise _bad(at, f"a {type(value).__name__}", f"a {hint.__name__}")
        return value
    return _build(hint, value, at)


def _expect(kind: type[Any], value: Any, at: str) -> Any:
    if not isinstance(value, kind):
        raise _bad(at, f"a {type(value).__name__}", f"a {kind.__name__}")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ: which of two equal ones counts is up to the reader."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key twice")
    return value


def _depth(value: Any) -> int:
    """Levels of objects and lists, counted level by level: recursion is what it guards."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [
            part for item in level for part in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def _shown(value: object) -> str:
    """A number for a message, however many digits it has."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:20]}… ({len(text)} digits)"


def _bad(at: str, value: str, limit: str) -> ManifestError:
    return ManifestError(
        f"manifest.json: {at} is {value}",
        limit=f"expected {limit}",
        remedy="export the bundle again with `kosine export`",
    )
