"""Texts to packed ids, as the checkpoint's own tokenizer gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kosine.bundle import Bundle
from kosine.errors import KosineError, ManifestError, TextError, TextTooLong
from kosine.exit_gate import awaited_at_exit
from kosine.packed import Packed

__all__ = ["MAX_TEXT_BYTES", "Prepared", "Tokenizer"]

# Tokenising happens before truncation and takes time in proportion to the text; this is about
# a hundred times what 512 tokens can hold.
MAX_TEXT_BYTES = 262_144
MAX_SINGLES = 4
MAX_SINGLE_CHARACTERS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Texts made ready for a backend.

    Attributes:
        batch: Their tokens, packed, in the order of the texts.
        truncated: How many texts were cut to max_tokens.
        dropped: How many tokens that cut off in all.
        unknown: How many tokens are [UNK].
    """

    batch: Packed
    truncated: int
    dropped: int
    unknown: int


class Tokenizer:
    """The bundle's `tokenizer.json` with the manifest's limits. Safe to call from many threads:
    nothing in it is ever changed after it was made.

    Args:
        bundle: The opened bundle.
        max_text_bytes: Longest text accepted, in UTF-8 bytes, prompt included.
    """

    def __init__(self, bundle: Bundle, max_text_bytes: int = MAX_TEXT_BYTES) -> None:
        import tokenizers

        manifest = bundle.manifest
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(
                bytes(bundle.data("tokenizer.json"))
            )
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
        self._unk = manifest.special_ids["unk"]
        self._sep = manifest.special_ids["sep"]
        self._include_prompt = manifest.pooling.include_prompt
        self._vocab_size = manifest.architecture.vocab_size
        if frame != [manifest.special_ids["cls"], self._sep]:
            raise ManifestError(
                f"tokenizer.json frames an empty text as {frame[:8]}",
                limit=f"the manifest says {[manifest.special_ids['cls'], self._sep]}",
                remedy="export the bundle again",
            )

    def prepare(
        self, texts: Sequence[str], prompt: str = "", *, truncate: bool = True, first: int = 0
    ) -> Prepared:
        """Tokenise `prompt + text` for each text.

        Args:
            texts: Any number of texts; blank ones become `[CLS][SEP]`.
            prompt: Put in front of each text, with nothing between.
            truncate: Keep the first `max_tokens - 2` tokens of a long text and its special
                tokens; otherwise a long text is an error.
            first: What errors call the first text: its place in the caller's whole input.

        Raises:
            TextError: Not a str, a lone surrogate, a NUL, or over `max_text_bytes`.
            TextTooLong: Over `max_tokens` with truncate=False.
        """
        full = [self._checked(text, i, prompt) for i, text in enumerate(texts, first)]
        sequences = self._ids(full)
        truncated = dropped = 0
        for i, ids in enumerate(sequences):
            if len(ids) > self.max_tokens:
                if not truncate:
                    raise TextTooLong(
                        f"text {first + i} has {len(ids)} tokens",
                        limit=f"at most {self.max_tokens}, special tokens included",
                        remedy="shorten it, or let it be truncated with truncate=True",
                    )
                truncated += 1
                dropped += len(ids) - self.max_tokens
                sequences[i] = [*ids[: self.max_tokens - 1], ids[-1]]
        batch = Packed.of(sequences)
        if batch.num_tokens and int(batch.ids.max()) >= self._vocab_size:
            raise ManifestError(
                f"the tokenizer gave id {int(batch.ids.max())}",
                limit=f"the model knows ids below {self._vocab_size}",
                remedy="export the bundle again with the tokenizer that belongs to the model",
            )
        if prompt and not self._include_prompt:
            skip = np.full(len(batch), self.prompt_length(prompt), np.int32)
            batch = Packed(batch.ids, batch.starts, skip)
        unknown = int(np.count_nonzero(batch.ids == self._unk))
        return Prepared(batch, truncated, dropped, unknown)

    def prompt_length(self, prompt: str) -> int:
        """Tokens of a prompt as sentence-transformers counts them: [CLS] in, closing [SEP] out."""
        length = len(self._ids([self._checked(prompt, 0, "")])[0])
        return min(length, self.max_tokens) - 1

    def count(self, texts: Sequence[str], prompt: str = "") -> list[int]:
        """Tokens of each text, special tokens included, before any truncation."""
        full = [self._checked(text, i, prompt) for i, text in enumerate(texts)]
        return [len(ids) for ids in self._ids(full)]

    @awaited_at_exit
    def _ids(self, texts: list[str]) -> list[list[int]]:
        try:
            # The batch call has a fixed cost, and its threads take the processors from a batch that
            # runs; the other computes offsets, which long texts feel.
            if len(texts) <= MAX_SINGLES and all(len(t) <= MAX_SINGLE_CHARACTERS for t in texts):
                return [self._tokenizer.encode(text).ids for text in texts]
            return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                raise
            raise TextError(
                f"the tokenizer failed on {len(texts)} texts: {type(error).__name__}",
                remedy="encode them one by one to find the text, and report it",
            ) from error

    def _checked(self, text: str, index: int, prompt: str) -> str:
        if not isinstance(text, str):
            raise TextError(
                f"text {index} is a {type(text).__name__}",
                limit="every text must be a str",
                remedy="pass str, or decode bytes first",
            )
        full = prompt + text if prompt else text
        if len(full) > self.max_text_bytes:
            size, unit = len(full), "characters"
        else:
            try:
                size, unit = len(full.encode()), "bytes"
            except UnicodeEncodeError as error:
                raise TextError(
                    f"text {index} has a lone surrogate U+{ord(full[error.start]):04X} "
                    f"at character {error.start}",
                    limit="texts must be valid Unicode",
                    remedy="decode the source as UTF-8 with errors='replace'",
                ) from None
        if size > self.max_text_bytes:
            raise TextError(
                f"text {index} has {size} {unit}",
                limit=f"at most {self.max_text_bytes} bytes, prompt included",
                remedy="split or shorten it, or load with a larger max_text_bytes",
            )
        if "\0" in full:
            raise TextError(
                f"text {index} has a NUL character at {full.index(chr(0))}",
                limit="texts must not hold U+0000",
                remedy="remove it: it usually means that bytes were decoded wrongly",
            )
        return full
