"""Texts to packed ids, as the checkpoint's own tokenizer gives them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kosine.bundle import Bundle
from kosine.bundle.tokenizerscan import MAX_TOKENIZER_BYTES, scan_tokenizer
from kosine.errors import KosineError, ManifestError, TextError, TextTooLong, UnsafeBundle
from kosine.exit_gate import EXIT_GATE
from kosine.first_tokens import first_tokens, tokenizer_failure
from kosine.packed import Packed
from kosine.texts import as_str, check_characters
from kosine.threads import share

__all__ = ["MAX_TEXT_BYTES", "Tokenized", "Tokenizer"]

# Tokenising happens before truncation and takes time in proportion to the text; this is about
# a hundred times what 512 tokens can hold.
MAX_TEXT_BYTES = 262_144
# What a thread takes at a time when a call's texts are shared out: some milliseconds of work,
# against which starting a thread costs nothing. Less than two such pieces stay with the caller.
PIECE_CHARACTERS = 4_096
FRAME = ("cls", "sep")  # around a text; decoders have the second alone


@dataclass(slots=True, eq=False)  # freezing takes longer than all else about it
class Tokenized:
    """Texts as tokens. Lists, as arrays of a few numbers each cost more than the numbers.

    Attributes:
        sentences: The token ids of each text, in the order of the texts.
        truncated: How many texts were cut to max_tokens.
        unknown: How many tokens are [UNK]; 0 where the tokenizer has no such token.
        skip: Leading tokens of each text that pooling leaves out.
    """

    sentences: Sequence[Sequence[int]]
    truncated: int
    unknown: int
    skip: int = 0

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.sentences))

    @property
    def batch(self) -> Packed:
        """All texts packed, ready for a backend; made anew each time."""
        count = len(self.sentences)
        skip = np.full(count, self.skip, np.int32) if self.skip else None
        return Packed.of(self.sentences, skip)


class Tokenizer:
    """The bundle's `tokenizer.json` with the manifest's limits. Safe to call from many threads:
    nothing in it is ever changed after it was made.

    Args:
        bundle: The opened bundle.
        max_text_bytes: Most UTF-8 bytes of a text, prompt included, that are ever tokenised;
            longer texts are cut before that.
        threads: Most threads that one call computes on, the caller's included. tokenizers' own
            pool is never given work: its size is the process's, and no caller can change it.

    Raises:
        UnsafeBundle: tokenizer.json holds what `scan_tokenizer` does not let through.
        ManifestError: It cannot be read, or it frames texts otherwise than the manifest says.
    """

    def __init__(
        self, bundle: Bundle, max_text_bytes: int = MAX_TEXT_BYTES, threads: int = 1
    ) -> None:
        import tokenizers

        manifest = bundle.manifest
        try:
            text = _tokenizer_json(bundle)
            scan_tokenizer(text)
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(text)
            # Both would change a text's ids with its neighbours or behind the manifest's back.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            frame = self._tokenizer.encode("").ids
        except KosineError:
            raise
        except BaseException as error:  # a panic in the Rust code derives from BaseException
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise ManifestError(
                f"tokenizer.json cannot be read: {ascii(str(error))[:120]}",
                remedy="export the bundle again",
            ) from error
        self.max_tokens = manifest.max_tokens
        self.max_text_bytes = max_text_bytes
        self._threads = threads
        self._unk = manifest.special_ids.get("unk", -1)  # byte-level tokenizers need none
        self._include_prompt = manifest.spec.pooling.include_prompt
        self._vocab_size = manifest.spec.embeddings.vocab_size
        framed = [manifest.special_ids[name] for name in FRAME if name in manifest.special_ids]
        if frame != framed:
            raise ManifestError(
                f"tokenizer.json frames an empty text as {frame[:8]}",
                limit=f"the manifest says {framed}",
                remedy="export the bundle again",
            )

    def tokenize(
        self, texts: Sequence[str], prompt: str = "", *, truncate: bool = True, first: int = 0
    ) -> Tokenized:
        """Tokenise `prompt + text` for each text.

        Args:
            texts: Any number of texts; blank ones become `[CLS][SEP]`, or what frames a text
                instead.
            prompt: Put in front of each text, with nothing between.
            truncate: Keep the first tokens of a long text, as many as `max_tokens` leaves beside
                its special tokens; otherwise a long text is an error.
            first: What errors call the first text: its place in the caller's whole input.

        Raises:
            TextError: Not a str, a lone surrogate, a NUL, over `max_text_bytes` with no place
                within them to cut at, or with a token that the model has no embedding for.
            TextTooLong: Over `max_tokens` or `max_text_bytes` with truncate=False.
        """
        if prompt:
            prompt = self._checked_prompt(prompt)
        full = []
        heads = {}
        for i, text in enumerate(texts):
            part, whole = self._checked(text, first + i, prompt)
            if not whole:
                name = f"text {first + i} has {len(prompt) + len(text)} characters"
                if not truncate:
                    raise TextTooLong(
                        name,
                        limit=f"at most {self.max_text_bytes} bytes, prompt included",
                        remedy="shorten it, or let it be truncated with truncate=True",
                    )
                ids = first_tokens(self._tokenizer, part, self.max_tokens)
                if ids is None:
                    raise self._too_long(
                        f"{name}, and no word of its first {self.max_text_bytes} bytes ends after "
                        f"token {self.max_tokens}"
                    )
                heads[i] = ids
                part = ""
            full.append(part)
        sequences = self._ids(full)
        for i, ids in heads.items():
            sequences[i] = ids
        truncated = unknown = 0
        for i, ids in enumerate(sequences):
            if len(ids) > self.max_tokens:
                if not truncate:
                    raise TextTooLong(
                        f"text {first + i} has {len(ids)} tokens",
                        limit=f"at most {self.max_tokens}, special tokens included",
                        remedy="shorten it, or let it be truncated with truncate=True",
                    )
                truncated += 1
                sequences[i] = ids = [*ids[: self.max_tokens - 1], ids[-1]]
            # Python's own max and count: for the one text of a request NumPy's take ten times as
            # long.
            highest = max(ids)
            if highest >= self._vocab_size:
                raise TextError(
                    f"text {first + i} has the token id {highest}",
                    limit=f"the model knows ids below {self._vocab_size}",
                    remedy="leave the text out, or export the bundle again with the tokenizer that "
                    "belongs to the model",
                )
            unknown += ids.count(self._unk)
        skip = 0
        if prompt and not self._include_prompt:
            skip = self.prompt_length(prompt)
        return Tokenized(sequences, truncated, unknown, skip)

    def prompt_length(self, prompt: str) -> int:
        """Tokens of a prompt as sentence-transformers counts them: [CLS] in, closing [SEP] out."""
        length = len(self._ids([self._checked_prompt(prompt)])[0])
        return min(length, self.max_tokens) - 1

    def count(self, texts: Sequence[str], prompt: str = "") -> list[int]:
        """Tokens of each text, special tokens included, before any truncation.

        Raises:
            TextError: As `tokenize`; and any text over `max_text_bytes`, since all of it would
                have to be tokenised.
        """
        prompt = self._checked_prompt(prompt)
        full = []
        for i, text in enumerate(texts):
            part, whole = self._checked(text, i, prompt)
            if not whole:
                raise self._too_long(f"text {i} has {len(prompt) + len(text)} characters")
            full.append(part)
        return [len(ids) for ids in self._ids(full)]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        EXIT_GATE.enter()
        try:
            threads = min(self._threads, sum(map(len, texts)) // PIECE_CHARACTERS)
            if threads < 2:
                return self._encode(texts)
            parts = share(self._encode, list(_pieces(texts)), threads)
            return [ids for part in parts for ids in part]
        finally:
            EXIT_GATE.leave()

    def _encode(self, texts: list[str]) -> list[list[int]]:
        encode = self._tokenizer.encode_batch_fast
        try:
            # A batch of one is computed on this thread; of more, in tokenizers' pool. The call
            # for one text computes offsets too, which long texts feel.
            return [encode([text])[0].ids for text in texts]
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:
            raise tokenizer_failure(error, len(texts)) from error

    def _checked(self, text: str, index: int, prompt: str) -> tuple[str, bool]:
        """Prompt and text, or what of them may be tokenised; and whether that is all."""
        limit = self.max_text_bytes
        if type(text) is not str:
            text = as_str(text, f"text {index}")
        full = text
        if prompt or len(text) > limit:
            full = (prompt + text[:limit])[:limit]
        whole = len(prompt) + len(text) == len(full)
        # Characters that nobody reads are not looked at either: a text's length costs nothing.
        if check_characters(full, index) > limit:
            full = full.encode()[:limit].decode(errors="ignore")
            whole = False
        return full, whole

    def _checked_prompt(self, prompt: str) -> str:
        if prompt:
            size = check_characters(prompt[: self.max_text_bytes + 1], "the prompt")
            if size > self.max_text_bytes:
                raise self._too_long(f"the prompt has {len(prompt)} characters")
        return prompt

    def _too_long(self, problem: str) -> TextError:
        return TextError(
            problem,
            limit=f"at most {self.max_text_bytes} bytes are tokenised, prompt included",
            remedy="split or shorten it, or load with a larger max_text_bytes",
        )


def _tokenizer_json(bundle: Bundle) -> str:
    data = bundle.data("tokenizer.json")
    if len(data) > MAX_TOKENIZER_BYTES:
        raise UnsafeBundle(
            f"tokenizer.json has {len(data)} bytes",
            limit=f"at most {MAX_TOKENIZER_BYTES} bytes are read",
            remedy="use a bundle written by `kosine export`",
        )
    return bytes(data).decode("utf-8")


def _pieces(texts: list[str]) -> Iterator[list[str]]:
    """Neighbours that have about PIECE_CHARACTERS together."""
    piece: list[str] = []
    size = 0
    for text in texts:
        piece.append(text)
        size += len(text)
        if size >= PIECE_CHARACTERS:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
