"""The stages of `encode` one by one, as schedulers take them, and what tokenising alone answers."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, overload

import numpy as np

from kosine.backend import Backend
from kosine.bundle import Bundle
from kosine.computing import compute_finite
from kosine.counting import Counter
from kosine.errors import InputError, UnknownPrompt
from kosine.packed import Float32, Packed, Pooled
from kosine.texts import as_texts
from kosine.tokenizer import Tokenized, Tokenizer

__all__ = ["EncodingStages", "whole_number"]


class EncodingStages:
    """Tokenise, run, finish: a base of `Encoder`, whose attributes are described there."""

    def __init__(self, bundle: Bundle, backend: Backend, max_text_bytes: int) -> None:
        self.bundle = bundle
        self.backend = backend
        self.manifest = bundle.manifest
        self.dim = bundle.manifest.dim
        self.max_tokens = bundle.manifest.max_tokens
        self._tokenizer = Tokenizer(bundle, max_text_bytes, backend.threads)
        self._counter = Counter(self.max_tokens)

    def prepare(
        self,
        texts: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = True,
    ) -> Tokenized:
        """Tokenise texts; see `Tokenizer.tokenize` for the errors."""
        if not isinstance(texts, list):
            texts = list(as_texts(texts, "texts")[0])
        prefix = self.prompt_text(prompt_name, prompt)
        tokenized = self._tokenizer.tokenize(texts, prefix, truncate=truncate)
        self._counter.count_tokenized(tokenized)
        return tokenized

    def compute(self, batch: Packed) -> Pooled:
        """Run packed sentences in one call of the backend, however many tokens they have.

        Raises:
            NonFiniteVector: `indices` are the rows that came out NaN or infinite.
            BackendError: The backend failed, or gave vectors of another shape.
        """
        return compute_finite(self.backend, batch, self.dim)

    def finish(
        self,
        pooled: Pooled,
        *,
        truncate_dim: int | None = None,
        normalize_embeddings: bool = True,
    ) -> Float32:
        """(n, d) float32 from what a backend returned: truncate, then normalise.

        With `normalize_embeddings=False` the length that the model gave is multiplied back,
        unless the checkpoint itself normalises.
        """
        dim = self._checked_dim(truncate_dim)
        vectors = pooled.vectors
        if dim < self.dim:
            vectors = vectors[:, :dim]
            if normalize_embeddings:
                lengths = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
                return np.asarray(vectors / np.maximum(lengths, np.float32(1e-12)), np.float32)
        if not normalize_embeddings and not self.manifest.spec.normalize:
            vectors = vectors * pooled.norms[:, None]
        return np.ascontiguousarray(vectors)

    # What tokenising alone answers

    @overload
    def count_tokens(  # type: ignore[overload-overlap]
        self, sentences: str, prompt_name: str | None = ..., prompt: str | None = ...
    ) -> int: ...
    @overload
    def count_tokens(
        self, sentences: Iterable[str], prompt_name: str | None = ..., prompt: str | None = ...
    ) -> list[int]: ...
    def count_tokens(
        self,
        sentences: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> int | list[int]:
        """Tokens before truncation, special tokens and prompt included; an int for a str.

        Raises:
            TextError, UnknownPrompt, InputError: As `encode`; a text over `max_text_bytes` too.
        """
        texts, single, _ = as_texts(sentences)
        counts = self._tokenizer.count(list(texts), self.prompt_text(prompt_name, prompt))
        return counts[0] if single else counts

    def counts(self) -> dict[str, int]:
        """Since loading: texts, tokens, truncated_texts, unknown_tokens, and of int8 and uint8
        vectors integer_components and how many of these were clipped, clipped_components."""
        return self._counter.read()

    def prompt_text(self, prompt_name: str | None = None, prompt: str | None = None) -> str:
        """What is put in front of a text: `prompt`, else the named prompt, else the default."""
        if prompt is not None:
            if not isinstance(prompt, str):
                raise InputError(
                    f"prompt is a {type(prompt).__name__}", limit="a str", remedy="pass a str"
                )
            return prompt
        if prompt_name is None:
            prompt_name = self.manifest.default_prompt_name
            if prompt_name is None:
                return ""
        try:
            return self.manifest.prompts[prompt_name]
        except (KeyError, TypeError):
            known = ", ".join(map(repr, self.manifest.prompts)) or "none"
            raise UnknownPrompt(
                f"unknown prompt name {prompt_name!r}",
                limit=f"the bundle has: {known}",
                remedy="pass prompt='...' as text, or export with --prompt NAME=TEXT",
            ) from None

    def _checked_dim(self, truncate_dim: int | None) -> int:
        if truncate_dim is None:
            return self.dim
        return whole_number("truncate_dim", truncate_dim, most=self.dim)


def whole_number(name: str, value: Any, most: int | None = None) -> int:
    """An int from 1 to `most`; NumPy's are taken, booleans are not."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
        if number < 1 or (most is not None and number > most):
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(
            f"{name} is {value!r}",
            limit="at least 1" if most is None else f"1 to {most}",
            remedy="leave it out for the default",
        ) from None
    return number
