"""The encoder: texts in, vectors out, in the order of the texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, Unpack, overload

import numpy as np

from kosine.backend import Backend
from kosine.bundle import Bundle
from kosine.computing import compute_in_batches, one_ahead
from kosine.counting import Counter, Counts
from kosine.encode_options import (
    DOCUMENT_PROMPTS,
    EncodeOptions,
    Matrix,
    Texts,
    TokenOptions,
    Vector,
    check_options,
)
from kosine.encoding_stages import EncodingStages, whole_number
from kosine.errors import InputError
from kosine.heads import Outputs
from kosine.packed import Matrix as FloatMatrix
from kosine.packed import Output, TokenWeights
from kosine.progress import progress_bar
from kosine.quantization import (
    INTEGERS,
    PRECISIONS,
    Precision,
    Ranges,
    clipped_components,
    quantize,
)
from kosine.sentence_transformer import SentenceTransformerNames
from kosine.tensors import as_asked
from kosine.texts import as_texts
from kosine.tokenizer import MAX_TEXT_BYTES

__all__ = ["DOCUMENT_PROMPTS", "WINDOW", "Encoder"]

WINDOW = 2048  # texts tokenised and sorted together while a long input streams through


class Encoder(EncodingStages, SentenceTransformerNames):
    """A loaded bundle on a backend. Threads may call it together.

    A pickle holds the bundle's path, the sha256 of its manifest, and the options that `load` was
    given; unpickling loads it again, and is an `IntegrityError` where the bundle has changed. A
    copy (`copy.copy`, `copy.deepcopy`) shares the engine and counts for itself.

    Attributes:
        bundle: The opened bundle; `bundle.manifest` holds everything that is known of the model.
        backend: The engine.
        dim: Length of the vectors.
        max_tokens: Most tokens of a text, special tokens included.
        normalize_embeddings: What `encode` does where it is not told.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        max_batch_tokens: int | None = None,
        max_text_bytes: int = MAX_TEXT_BYTES,
        normalize_embeddings: bool | None = True,
    ) -> None:
        if max_batch_tokens is None:
            max_batch_tokens = backend.batch_tokens
        max_batch_tokens = whole_number("max_batch_tokens", max_batch_tokens)
        super().__init__(bundle, backend, whole_number("max_text_bytes", max_text_bytes))
        self.max_batch_tokens = max_batch_tokens
        self.normalize_embeddings = normalize_embeddings is None or normalize_embeddings
        self._recipe: tuple[Any, ...] | None = None

    # Text in, vectors out

    @overload
    def encode(  # type: ignore[overload-overlap]  # a str is an iterable of str, and comes first
        self,
        sentences: str,
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int | None = ...,
        show_progress_bar: bool | None = ...,
        **options: Unpack[EncodeOptions],
    ) -> Vector: ...
    @overload
    def encode(
        self,
        sentences: Iterable[str],
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int | None = ...,
        show_progress_bar: bool | None = ...,
        **options: Unpack[EncodeOptions],
    ) -> Matrix: ...
    @overload
    def encode(  # type: ignore[overload-overlap]
        self, sentences: str, *, output: Literal["sparse"], **options: Unpack[TokenOptions]
    ) -> TokenWeights: ...
    @overload
    def encode(
        self,
        sentences: Iterable[str],
        *,
        output: Literal["sparse"],
        **options: Unpack[TokenOptions],
    ) -> list[TokenWeights]: ...
    @overload
    def encode(  # type: ignore[overload-overlap]
        self, sentences: str, *, output: Literal["multi"], **options: Unpack[TokenOptions]
    ) -> FloatMatrix: ...
    @overload
    def encode(
        self, sentences: Iterable[str], *, output: Literal["multi"], **options: Unpack[TokenOptions]
    ) -> list[FloatMatrix]: ...
    @overload
    def encode(
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
    def encode(
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
        """Encode one text or many.

        Args:
            sentences: A str gives a 1-D array; any iterable of str (a list, an array, a Series,
                an Arrow column, a generator) gives (n, dim) in its order. Long inputs stream
                through in windows. Mappings and tables are errors: pass one column.
            prompt_name: A prompt by its name in the manifest.
            prompt: A prompt as text; beats `prompt_name`.
            batch_size: Most texts in one backend call. Batches are cut by tokens
                (`max_batch_tokens`), so this is seldom needed; vectors do not depend on it.
            show_progress_bar: True, False, or None for "only where stderr is a terminal
                and the input is long".
            precision: What the vectors are returned as: "float32" (None is that too), "int8",
                "uint8", "binary", "ubinary". (What the computation runs in is `dtype`, see `load`.)
            normalize_embeddings: Unit vectors; False gives the lengths that the model gave. None
                takes what `load` was given, True where that was nothing.
            truncate_dim: Keep the first dimensions, then normalise.
            truncate: Cut texts over `max_tokens`; False makes them an error, as it does all
                texts over `max_text_bytes`.
            ranges: `{"min": (d,), "max": (d,)}` or a (2, d) array for int8 and uint8. The
                default comes from the bundle, never from the batch; what lies outside is clipped
                and counted, and over 1 % is a warning, once.
            convert_to_numpy, convert_to_tensor: A tensor of PyTorch where the second is True, a
                list of tensors where both are False.
            device, output_value, pool, chunk_size: Taken for sentence-transformers' sake: what
                would change anything is an error.
            inputs: The texts, by another name.
            output: "dense" for sentence vectors. With a bundle that has BGE-M3's heads also
                "sparse", a dict of weights by token id for each text, and "multi", a (tokens, d)
                array of unit vectors for each text; or several of them, in one pass.

        Returns:
            (n, d) float32, or the integer type of `precision`; an empty input gives (0, d). Of
            "sparse" and "multi" a list; of several outputs a dict by name.

        Raises:
            TextError, TextTooLong, UnknownPrompt, UnknownOption, InputError: what was passed.
            NonFiniteVector: A vector came out NaN or infinite.
            MissingExtra: Tensors are asked for, and PyTorch is not installed.
        """
        del chunk_size
        sentences = check_options(self.device, device, output_value, pool, inputs, sentences)
        precision = "float32" if precision is None else precision
        outputs = None if output == "dense" else Outputs(self.bundle, self.backend, output)
        if outputs is not None:
            outputs.check_options(
                precision=None if precision == "float32" else precision,
                normalize_embeddings=normalize_embeddings,
                truncate_dim=truncate_dim,
                ranges=ranges,
                convert_to_tensor=convert_to_tensor or None,
                convert_to_numpy=None if convert_to_numpy else False,
            )
        if normalize_embeddings is None:
            normalize_embeddings = self.normalize_embeddings
        texts, single, total = as_texts(sentences)
        prefix = self.prompt_text(prompt_name, prompt)
        dim = self._checked_dim(truncate_dim)
        if batch_size is not None:
            batch_size = whole_number("batch_size", batch_size)
        if precision not in PRECISIONS:
            quantize(np.empty((0, 8), np.float32), precision, None)
        if ranges is None and precision in INTEGERS:
            ranges = self._ranges(dim, normalize_embeddings)
        counts = Counts()
        parts = [quantize(np.empty((0, dim), np.float32), precision, ranges)]
        with progress_bar(total, show_progress_bar, WINDOW) as bar:
            # While a GPU computes, this process has nothing to do; on a CPU engine it computes.
            for tokenized in one_ahead(
                lambda part: self._tokenizer.tokenize(
                    part[1], prefix, truncate=truncate, first=part[0]
                ),
                _windows(texts),
                threaded=self.backend.device != "cpu",
            ):
                counts.add(tokenized)
                limits = self.max_batch_tokens, batch_size, int if bar is None else bar.update
                if outputs is None:
                    pooled = compute_in_batches(self.compute, tokenized.batch, self.dim, *limits)
                else:
                    pooled = outputs.compute_tokens(tokenized.batch, *limits)
                vectors = self.finish(
                    pooled, truncate_dim=dim, normalize_embeddings=normalize_embeddings
                )
                parts.append(quantize(vectors, precision, ranges))
                if precision in INTEGERS:
                    counts.integer_components += vectors.size
                    counts.clipped_components += clipped_components(vectors, ranges)
        self._counter.count(counts)
        result = np.concatenate(parts)
        vectors = np.asarray(result[0]) if single else result
        dense = as_asked(vectors, convert_to_numpy, convert_to_tensor)
        return dense if outputs is None else outputs.result(dense, single)

    @property
    def fingerprint(self) -> str:
        """32 hex digits that change whenever the vectors may: store them beside the vectors.

        They cover the files that this backend and dtype read, the manifest's semantics, the
        ranges of int8 and uint8 vectors, and the revision of the backend's numerics; not what
        changes no more than rounding: the machine, its ISA level, the number of threads.
        """
        return self.manifest.fingerprint(self.backend.name, self.backend.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._recipe is None:
            raise InputError(
                "this encoder was made from a backend object, which cannot be pickled",
                limit="encoders made by kosine.load",
                remedy="pickle the bundle's path, and load it where it is unpickled",
            )
        return self._recipe

    def __copy__(self) -> Encoder:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._counter = Counter(self.max_tokens)
        other._card = None
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Encoder:
        return self.__copy__()  # nothing changes an engine

    def __repr__(self) -> str:
        return (
            f"<kosine.Encoder {self.bundle.path.name} dim={self.dim} "
            f"max_tokens={self.max_tokens} {self.backend.name}/{self.backend.dtype}>"
        )

    def _ranges(self, dim: int, normalize: bool) -> Ranges | None:
        """Integer ranges from the bundle; they are those of unit vectors."""
        if normalize or (self.manifest.spec.normalize and dim == self.dim):
            return self.manifest.ranges
        return None  # lengths are not calibrated: `quantize` asks for ranges


def _windows(texts: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Texts that are tokenised and sorted together, and how many came before them."""
    iterator, before = iter(texts), 0
    while window := list(islice(iterator, WINDOW)):
        yield before, window
        before += len(window)
