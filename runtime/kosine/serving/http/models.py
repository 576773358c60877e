"""The models that are served: loaded and verified, swapped for newer versions while they serve."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

import kosine
from kosine import Batcher, Encoder, Packed, Pooled
from kosine.backends.registry import make_backend
from kosine.bundle.canary import GATES, Canary, compare
from kosine.errors import InputError, ParityError, TextError
from kosine.packed import Float32
from kosine.serving.http.settings import Settings
from kosine.tokenizer import Tokenized

__all__ = ["Model", "Models", "StagedModel", "TokenIds", "load_verified"]

# A call takes at most this share of the queue, so that large requests go through in parts.
QUEUE_SHARE: Final = 4


class TokenIds(str):
    """A text given as the model's own token ids, special tokens included.

    As a str it is as long as it has tokens, which is what the queue counts by.
    """

    ids: tuple[int, ...]

    @classmethod
    def of(cls, ids: Sequence[int]) -> TokenIds:
        text = cls(" " * len(ids))
        text.ids = tuple(ids)
        return text


class StagedModel:
    """An encoder's stages as the batcher calls them, measured, and one lane for all models.

    Args:
        encoder: Does the work.
        lane: Held while a batch is computed: models take turns, since each uses every processor.

    Attributes:
        seen: Per thread, what its last call of `prepare` found: `tokens`, `truncated`, `seconds`.
        last_run: When the last batch began and ended, by `time.perf_counter`.
    """

    def __init__(self, encoder: Encoder, lane: threading.Lock) -> None:
        self.encoder = encoder
        self.dim = encoder.dim
        self.max_batch_tokens = encoder.max_batch_tokens
        self.seen = threading.local()
        self.last_run = (0.0, 0.0)
        self._lane = lane

    def prepare(
        self, texts: Sequence[str], *, prompt_name: str | None = None, prompt: str | None = None
    ) -> Tokenized:
        """Tokenise texts; `TokenIds` are taken as they are."""
        started = time.perf_counter()
        if texts and isinstance(texts[0], TokenIds):
            rows = [np.array(text.ids, np.int32) for text in texts if isinstance(text, TokenIds)]
            tokenized = Tokenized(Packed.of(rows), 0, 0)
        else:
            tokenized = self.encoder.prepare(texts, prompt_name=prompt_name, prompt=prompt)
        self.seen.tokens = tokenized.batch.num_tokens
        self.seen.truncated = tokenized.truncated
        self.seen.seconds = time.perf_counter() - started
        return tokenized

    def compute(self, batch: Packed) -> Pooled:
        """Run a batch when its turn comes. A thread that waits gets the lane before the one that
        has just left it comes again: that one has a batch to answer and the next to put together.
        """
        with self._lane:
            started = time.perf_counter()
            pooled = self.encoder.compute(batch)
            self.last_run = (started, time.perf_counter())
        return pooled

    def finish(self, pooled: Pooled, *, truncate_dim: int | None = None) -> Float32:
        return self.encoder.finish(pooled, truncate_dim=truncate_dim)


class Model:
    """One version of a model, and its batcher.

    Attributes:
        name: What requests call it.
        encoder, staged, batcher: What answers.
        fingerprint: Of its vectors.
        loaded: When, in seconds since 1970.
        chunk: Most texts of one call of the batcher.
        users: Requests that use it now.
    """

    def __init__(
        self, name: str, encoder: Encoder, lane: threading.Lock, settings: Settings
    ) -> None:
        self.name = name
        self.encoder = encoder
        self.manifest = encoder.manifest
        self.staged = StagedModel(encoder, lane)
        self.batcher = Batcher(
            self.staged,
            max_batch_tokens=settings.batch_tokens,
            max_queue_tokens=settings.queue_tokens,
        )
        self.fingerprint = encoder.fingerprint
        self.loaded = int(time.time())
        self.chunk = max(1, settings.queue_tokens // QUEUE_SHARE // encoder.max_tokens)
        self.users = 0
        self._idle = asyncio.Event()
        self._tokenizer: Any = None

    @property
    def tokenizer(self) -> Any:
        """The bundle's tokenizer, made when it is first asked for: the pieces, not only ids.

        The encoder, which has judged tokenizer.json, keeps its own.
        """
        if self._tokenizer is None:
            import tokenizers

            text = bytes(self.encoder.bundle.data("tokenizer.json")).decode()
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
        return self._tokenizer

    def checked_ids(self, ids: Sequence[int], index: int) -> TokenIds:
        """Token ids as a text, cut to `max_tokens`.

        Raises:
            TextError: None, or one that is not the model's.
        """
        limit = self.manifest.spec.embeddings.vocab_size
        if not ids or not all(0 <= number < limit for number in ids):
            raise TextError(
                f"token list {index} is empty or holds an id that the model does not know",
                limit=f"ids from 0 to {limit - 1}, of this model's own tokenizer",
                remedy="send texts",
            )
        return TokenIds.of(ids[: self.encoder.max_tokens])

    async def pieces(
        self, texts: Sequence[str], prompt_name: str | None, special: bool = True
    ) -> list[list[tuple[int, str, bool, int | None, int | None]]]:
        """The tokens of each text: id, text, whether special, and its characters from and to
        (None of special ones). Nothing is cut.

        Raises:
            TextError, UnknownPrompt: As `Encoder.count_tokens`.
        """

        def tokenise() -> list[Any]:
            self.encoder.count_tokens(list(texts), prompt_name)  # checks them
            prompt = self.encoder.prompt_text(prompt_name)
            full = [prompt + text for text in texts]
            found = [self.tokenizer.encode(text, add_special_tokens=special) for text in full]
            return [
                [
                    (id_, piece, True, None, None)
                    if is_special
                    else (id_, text[begin:end] or piece, False, begin, end)
                    for id_, piece, is_special, (begin, end) in zip(
                        each.ids, each.tokens, each.special_tokens_mask, each.offsets, strict=True
                    )
                ]
                for text, each in zip(full, found, strict=True)
            ]

        return await asyncio.to_thread(tokenise)

    async def cut_left(self, texts: Sequence[str], prompt_name: str | None) -> list[str]:
        """Texts of which the beginning is cut off where they are too long, as token ids; the texts
        as they are where none is.

        Raises:
            InputError: The model leaves its prompt out of the pooling, which is at the beginning.
        """
        limit = self.encoder.max_tokens
        found = await self.pieces(texts, prompt_name)
        if all(len(text) <= limit for text in found):
            return list(texts)
        if self.encoder.prompt_text(prompt_name) and not self.manifest.spec.pooling.include_prompt:
            raise InputError(
                "truncation_direction is left, and this model leaves the prompt out of its pooling",
                remedy="cut on the right, or send no prompt",
            )
        ids = [[piece[0] for piece in text] for text in found]
        cut = [row if len(row) <= limit else [row[0], *row[1 - limit :]] for row in ids]
        return [self.checked_ids(row, i) for i, row in enumerate(cut)]

    @contextmanager
    def used(self) -> Iterator[None]:
        """While a request uses it, it is not closed."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1
            if not self.users:
                self._idle.set()

    async def retire(self, timeout: float | None = None) -> None:
        """Wait until nobody uses it any more, then close it."""
        while self.users:
            self._idle.clear()
            await self._idle.wait()
        await asyncio.to_thread(self.batcher.close, True, timeout)


class Models:
    """All models that are served, by name; the first is the default.

    Args:
        paths: Bundles by name.
        settings: How to load them.
    """

    def __init__(self, paths: Mapping[str, Path], settings: Settings) -> None:
        self.paths = dict(paths)
        self.lane = threading.Lock()
        self.by_name: dict[str, Model] = {}
        self._settings = settings
        self._reloading = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        """Load all of them.

        Raises:
            KosineError: The first that cannot be used.
        """
        for name in self.paths:
            self.by_name[name] = await self._loaded(name)

    async def reload(self) -> list[Model]:
        """Load every bundle anew; put each new version in the place of the old, which answers
        what it has begun.

        Raises:
            KosineError: A bundle cannot be used. Then nothing is changed.
        """
        async with self._reloading:
            fresh = {name: await self._loaded(name) for name in self.paths}
            old, self.by_name = self.by_name, fresh
            for model in old.values():
                task = asyncio.create_task(model.retire())
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)
            return list(fresh.values())

    async def close(self, timeout: float) -> None:
        """Serve what is queued, and end."""
        tasks = [asyncio.create_task(model.retire(timeout)) for model in self.by_name.values()]
        if tasks or self._retiring:
            await asyncio.wait([*tasks, *self._retiring], timeout=timeout)

    @property
    def ready(self) -> bool:
        """Loaded, and able to run."""
        return bool(self.by_name) and all(
            model.batcher.health().ok for model in self.by_name.values()
        )

    def find(self, name: str | None) -> Model | None:
        """A model by name; the first where none is named. None if there is none."""
        if name is None:
            return next(iter(self.by_name.values()), None)
        return self.by_name.get(name)

    async def _loaded(self, name: str) -> Model:
        settings = self._settings
        encoder = await asyncio.to_thread(load_verified, self.paths[name], settings.engine)
        chosen = settings.default_prompt_name
        if chosen is not None and chosen not in encoder.manifest.prompts:
            raise InputError(
                f"--default-prompt-name {chosen!r}",
                limit=f"{name} has: {', '.join(encoder.manifest.prompts) or 'none'}",
            )
        return Model(name, encoder, self.lane, settings)


def load_verified(path: Path, engine: Mapping[str, Any]) -> Encoder:
    """A bundle, loaded and checked from text to vector: first in float32, whose narrow gate checks
    the files, then in the dtype that will serve. Its canary has warmed it up.

    Raises:
        KosineError: It cannot be loaded, or its vectors are not those of its canary.
    """
    encoder = kosine.load(path, **engine)
    bundle = encoder.bundle
    bundle.verify_all()
    canary = Canary.read(bundle)
    if encoder.backend.dtype != "float32":
        threads = engine.get("threads")
        # On the CPU whatever device serves: it is the files that are checked.
        exact = make_backend(bundle, dtype="float32", threads=threads, canary=False)
        with closing(exact):
            _check(Encoder(bundle, exact), canary)
    _check(encoder, canary)
    return encoder


def _check(encoder: Encoder, canary: Canary) -> None:
    vectors = encoder.encode(list(canary.texts), prompt="")
    gate = GATES[encoder.backend.dtype]
    found = compare(vectors, canary.vectors, canary.mean)
    if not found.passes(gate):
        raise ParityError(
            f"{encoder.bundle.path.name} in {encoder.backend.dtype} fails its canary: min cosine "
            f"{found.min_cosine:.7f}, max abs error {found.max_abs_error:.1e}",
            limit=str(gate),
            remedy="export the bundle again",
        )
