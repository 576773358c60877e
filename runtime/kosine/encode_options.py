"""What `encode` takes, and the same with the prompt of queries or of documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, Unpack, overload

import numpy as np

from kosine.errors import InputError, UnknownOption
from kosine.packed import Output
from kosine.quantization import Precision, Ranges

if TYPE_CHECKING:
    from kosine.bundle.manifest import Manifest

__all__ = [
    "DOCUMENT_PROMPTS",
    "EncodeOptions",
    "Matrix",
    "PromptedEncoding",
    "Texts",
    "TokenOptions",
    "Vector",
    "check_options",
]

DOCUMENT_PROMPTS = ("document", "passage", "corpus")

Vector: TypeAlias = np.ndarray[tuple[int], np.dtype[Any]]
Matrix: TypeAlias = np.ndarray[tuple[int, int], np.dtype[Any]]
Texts: TypeAlias = str | Iterable[str] | None


class EncodeOptions(TypedDict, total=False):
    """What `encode` takes by name and what leaves arrays arrays."""

    precision: Precision | None
    normalize_embeddings: bool | None
    truncate_dim: int | None
    truncate: bool
    ranges: Ranges | None
    device: Any
    output_value: Literal["sentence_embedding"]
    pool: None
    chunk_size: int | None


class TokenOptions(TypedDict, total=False):
    """What `encode` takes by name where it gives other outputs than dense vectors."""

    prompt_name: str | None
    prompt: str | None
    batch_size: int | None
    show_progress_bar: bool | None
    truncate: bool
    device: Any
    chunk_size: int | None


class PromptedEncoding:
    """`encode` with the prompt that a retrieval model has for each side."""

    if TYPE_CHECKING:
        manifest: Manifest
        encode: Any

    @overload
    def encode_query(  # type: ignore[overload-overlap]  # as `encode`
        self,
        sentences: str,
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int | None = ...,
        show_progress_bar: bool | None = ...,
        **options: Unpack[EncodeOptions],
    ) -> Vector: ...
    @overload
    def encode_query(
        self,
        sentences: Iterable[str],
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int | None = ...,
        show_progress_bar: bool | None = ...,
        **options: Unpack[EncodeOptions],
    ) -> Matrix: ...
    @overload
    def encode_query(
        self,
        sentences: Texts = ...,
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int | None = ...,
        show_progress_bar: bool | None = ...,
        *,
        convert_to_numpy: bool = ...,
        convert_to_tensor: bool = ...,
        inputs: Texts = ...,
        output: Output | Sequence[Output] = ...,
        **options: Unpack[EncodeOptions],
    ) -> Any: ...
    def encode_query(
        self,
        sentences: Texts = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        precision: Precision | None = "float32",
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        *,
        truncate: bool = True,
        ranges: Ranges | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        output_value: Literal["sentence_embedding"] = "sentence_embedding",
        pool: None = None,
        chunk_size: int | None = None,
        inputs: Texts = None,
        output: Output | Sequence[Output] = "dense",
    ) -> Any:
        """`encode` with the prompt named "query", where the manifest has one."""
        return self._encode_as(("query",), **_without_self(locals()))

    @overload
    def encode_document(  # type: ignore[overload-overlap]  # as `encode`
        self,
        sentences: str,
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int | None = ...,
        show_progress_bar: bool | None = ...,
        **options: Unpack[EncodeOptions],
    ) -> Vector: ...
    @overload
    def encode_document(
        self,
        sentences: Iterable[str],
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int | None = ...,
        show_progress_bar: bool | None = ...,
        **options: Unpack[EncodeOptions],
    ) -> Matrix: ...
    @overload
    def encode_document(
        self,
        sentences: Texts = ...,
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int | None = ...,
        show_progress_bar: bool | None = ...,
        *,
        convert_to_numpy: bool = ...,
        convert_to_tensor: bool = ...,
        inputs: Texts = ...,
        output: Output | Sequence[Output] = ...,
        **options: Unpack[EncodeOptions],
    ) -> Any: ...
    def encode_document(
        self,
        sentences: Texts = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        precision: Precision | None = "float32",
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        *,
        truncate: bool = True,
        ranges: Ranges | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        output_value: Literal["sentence_embedding"] = "sentence_embedding",
        pool: None = None,
        chunk_size: int | None = None,
        inputs: Texts = None,
        output: Output | Sequence[Output] = "dense",
    ) -> Any:
        """`encode` with the prompt named "document", "passage" or "corpus", the first there is."""
        return self._encode_as(DOCUMENT_PROMPTS, **_without_self(locals()))

    def _encode_as(self, names: tuple[str, ...], **options: Any) -> Any:
        if options["prompt"] is None and options["prompt_name"] is None:
            options["prompt_name"] = next((n for n in names if n in self.manifest.prompts), None)
        return self.encode(**options)


def check_options(
    has_device: str,
    device: Any,
    output_value: str | None,
    pool: object,
    inputs: Texts,
    sentences: Texts,
) -> Texts:
    """The texts, once what `encode` takes for sentence-transformers' sake makes sense.

    Raises:
        UnknownOption: Another output value.
        InputError: Another device, a pool of processes, or texts by both names.
    """
    if output_value != "sentence_embedding":
        raise UnknownOption(
            f"output_value is {output_value!r}",
            limit="known: 'sentence_embedding'",
            remedy="use sentence-transformers for token embeddings",
        )
    if device is not None and str(device) not in (has_device, has_device.partition(":")[0]):
        raise InputError(
            f"device is {str(device)[:40]!r}",
            limit=f"this encoder is on {has_device!r}",
            remedy="load another with kosine.load(bundle, device=...)",
        )
    if pool is not None:
        raise InputError(
            "encode was given a pool of processes",
            limit="one process, with as many threads as kosine.load was given",
            remedy="leave pool out",
        )
    if inputs is None:
        return sentences
    if sentences is not None:
        raise InputError(
            "encode was given sentences and inputs",
            limit="one of them: they are two names of the same",
            remedy="pass the texts once",
        )
    return inputs


def _without_self(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != "self"}
