"""What code written for sentence-transformers looks up on a model, as a base of `Encoder`.

Evaluators, SetFit, mteb and others are handed an encoder, and find the names, shapes and types
that they read of a `SentenceTransformer`. PyTorch is imported where tensors are asked for only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from kosine.errors import InputError, MissingExtra, UnknownOption
from kosine.packed import Packed
from kosine.quantization import Precision, Ranges

if TYPE_CHECKING:
    from kosine.backend import Backend
    from kosine.bundle.manifest import Manifest

__all__ = [
    "DOCUMENT_PROMPTS",
    "EncodeOptions",
    "Matrix",
    "ModelCardData",
    "SentenceTransformerNames",
    "Texts",
    "Vector",
    "as_arrays",
    "as_asked",
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


class ModelCardData:
    """What evaluators and mteb read of a model's card, and where they leave their figures.

    Attributes:
        model_name, base_model: "kosine/" and the encoder's fingerprint: whoever caches vectors by
            this name (`mine_hard_negatives(cache_folder=...)`) mixes no two models.
        base_model_revision: None: the name says it all.
        eval_results_dict: The figures by evaluator.
    """

    base_model_revision: str | None = None

    def __init__(self, name: str) -> None:
        self.model_name = self.base_model = name
        self.eval_results_dict: dict[Any, dict[str, Any]] = {}

    def set_evaluation_metrics(
        self, evaluator: Any, metrics: dict[str, Any], epoch: int = 0, step: int = 0
    ) -> None:
        """Keep an evaluator's figures; `epoch` and `step` are those of a training."""
        del epoch, step
        self.eval_results_dict[evaluator] = dict(metrics)


class SentenceTransformerNames:
    """The rest of sentence-transformers' names; `Encoder` has `encode` and what goes with it."""

    if TYPE_CHECKING:
        backend: Backend
        manifest: Manifest
        dim: int
        max_tokens: int
        encode: Any
        prepare: Any
        fingerprint: Any

    _card: ModelCardData | None = None

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
    ) -> Any:
        """`encode` with the prompt named "document", "passage" or "corpus", the first there is."""
        return self._encode_as(DOCUMENT_PROMPTS, **_without_self(locals()))

    def _encode_as(self, names: tuple[str, ...], **options: Any) -> Any:
        if options["prompt"] is None and options["prompt_name"] is None:
            options["prompt_name"] = next((n for n in names if n in self.manifest.prompts), None)
        return self.encode(**options)

    # What is known of the model

    @property
    def similarity_fn_name(self) -> str:
        """ "cosine", "dot", "euclidean" or "manhattan": what `similarity` computes."""
        return self.manifest.similarity

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts' texts by name."""
        return dict(self.manifest.prompts)

    @property
    def default_prompt_name(self) -> str | None:
        """The prompt that `encode` puts in front where it is told no other."""
        return self.manifest.default_prompt_name

    @property
    def device(self) -> str:
        """ "cpu" or "cuda:N", where the engine runs; PyTorch takes it for a device."""
        return self.backend.device

    @property
    def max_seq_length(self) -> int:
        """`max_tokens`; it is set by `kosine export --max-tokens`."""
        return self.max_tokens

    def get_max_seq_length(self) -> int:
        """`max_tokens`."""
        return self.max_tokens

    def get_embedding_dimension(self) -> int:
        """`dim`."""
        return self.dim

    def get_sentence_embedding_dimension(self) -> int:
        """`dim`, by the name that it had before."""
        return self.dim

    @property
    def model_card_data(self) -> ModelCardData:
        """What evaluators read and write of a model's card."""
        if self._card is None:
            self._card = ModelCardData(f"kosine/{self.fingerprint}")
        return self._card

    def tokenize(self, texts: str | Iterable[str]) -> dict[str, NDArray[np.int64]]:
        """Token ids as the engine gets them, cut to `max_tokens`: "input_ids" and
        "attention_mask", (n, longest) int64 each. No prompt is put in front.

        Raises:
            TextError: As `encode`.
        """
        batch: Packed = self.prepare(texts, prompt="").batch
        return _padded(batch, self.manifest.special_ids["pad"])

    def eval(self) -> Self:
        """The encoder: there is no other mode."""
        return self


def as_asked(vectors: NDArray[Any], convert_to_numpy: bool, convert_to_tensor: bool) -> Any:
    """(n, d) or (d,) vectors as an array; as a tensor; or, with neither, as a list of tensors."""
    if convert_to_numpy and not convert_to_tensor:
        return vectors
    try:
        import torch
    except ImportError:
        raise MissingExtra(
            "tensors need PyTorch",
            limit="PyTorch installed",
            remedy="pip install 'kosine[torch]', or leave out convert_to_tensor",
        ) from None
    tensor = torch.from_numpy(vectors)
    return tensor if convert_to_tensor or vectors.ndim == 1 else list(tensor)


def as_arrays(*sides: Any) -> tuple[list[Any], bool]:
    """Both sides of a score without PyTorch's types, and whether any was a tensor, or a list of
    them: then so should be the scores."""
    arrays = [_as_array(side) for side in sides]
    return arrays, any(a is not b for a, b in zip(arrays, sides, strict=True))


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


def _as_array(side: Any) -> Any:
    if _is_tensor(side):
        return side.detach().cpu().numpy()
    if isinstance(side, list | tuple) and side and _is_tensor(side[0]):
        return np.stack([_as_array(row) for row in side])
    return side


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def _without_self(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != "self"}


def _padded(batch: Packed, pad: int) -> dict[str, NDArray[np.int64]]:
    lengths = batch.lengths
    mask = np.arange(max(lengths, default=0)) < lengths[:, None]
    ids = np.full(mask.shape, pad, np.int64)
    ids[mask] = batch.ids
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
