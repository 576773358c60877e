"""From a bundle's folder to an encoder, and back again from a pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

from kosine.backends.registry import make_backend
from kosine.bundle import Bundle
from kosine.encoder import Encoder
from kosine.errors import IntegrityError
from kosine.tokenizer import MAX_TEXT_BYTES

__all__ = ["BackendName", "DtypeName", "load"]

BackendName: TypeAlias = Literal["auto", "native", "cuda", "onnx", "tensorrt"]
DtypeName: TypeAlias = Literal["auto", "float32", "bfloat16", "float16", "w8a16", "int8"]


def load(
    bundle: str | Path,
    *,
    backend: BackendName = "auto",
    dtype: DtypeName = "auto",
    device: str = "auto",
    threads: int | None = None,
    spin: bool = False,
    max_batch_tokens: int | None = None,
    max_text_bytes: int = MAX_TEXT_BYTES,
    normalize_embeddings: bool = True,
) -> Encoder:
    """Open a bundle for encoding.

    Args:
        bundle: A folder made by `kosine export`.
        backend: "auto", "native", "cuda", "onnx" or "tensorrt". "auto" replays a part of the
            bundle's canary before it settles; a backend that is named is made or refused.
        dtype: What the computation runs in: "auto", "float32", "bfloat16", "float16", "w8a16" or
            "int8". "auto" takes bfloat16 or float16 only where it passes the whole canary, and
            never w8a16 or int8, which need a bundle with target native-int8.
        device: "auto", "cpu", "cuda" or "cuda:N". "auto" is the CPU, but for backends "cuda" and
            "tensorrt".
        threads: Threads inside one call, tokenising included; None takes the CPUs under affinity
            and cgroup limits.
        spin: Let the engine's idle threads spin between calls.
        max_batch_tokens: Most tokens in one backend call (a single longer text goes alone); None
            takes what suits the backend.
        max_text_bytes: Most UTF-8 bytes of a text, prompt included, that are ever tokenised. Of
            a longer text only its beginning is read, up to the end of a word after `max_tokens`
            tokens; a text without such a place is an error.
        normalize_embeddings: What `encode` does where it is not told. False is for code written
            for sentence-transformers, where lengths count: they are then those of the model.

    Raises:
        BundleError, MissingExtra, BackendError, ParityError, UnknownOption: see `kosine.errors`.
    """
    options = {
        "backend": backend,
        "dtype": dtype,
        "device": device,
        "threads": threads,
        "spin": spin,
        "max_batch_tokens": max_batch_tokens,
        "max_text_bytes": max_text_bytes,
        "normalize_embeddings": normalize_embeddings,
    }
    return _load(Bundle(bundle), options)


def _load(bundle: Bundle, options: dict[str, Any]) -> Encoder:
    own = {name: options[name] for name in ("max_batch_tokens", "max_text_bytes")}
    own["normalize_embeddings"] = options.get("normalize_embeddings", True)
    engine = {name: value for name, value in options.items() if name not in own}
    encoder = Encoder(bundle, make_backend(bundle, **engine), **own)
    # The path is good wherever the process goes, and the options are those that were asked for:
    # on another machine "auto" may rightly choose another engine.
    encoder._recipe = (_reload, (str(bundle.path.absolute()), bundle.sha256, options))
    return encoder


def _reload(path: str, sha256: str, options: dict[str, Any]) -> Encoder:
    """What unpickling an encoder calls."""
    bundle = Bundle(path)
    if bundle.sha256 != sha256:
        raise IntegrityError(
            f"the bundle at {path!r} has changed: its manifest has sha256 {bundle.sha256[:12]}…",
            limit=f"the encoder was pickled with {sha256[:12]}…",
            remedy="load it with kosine.load, and encode again what is to be compared",
        )
    return _load(bundle, options)
