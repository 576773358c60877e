"""The models that are served: loaded and verified, swapped for newer versions while they serve."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import kosine
from kosine import Batcher, Encoder
from kosine.backends.registry import make_backend
from kosine.bundle.canary import GATES, Canary, compare
from kosine.errors import InputError, ParityError, TextError
from kosine.serving.http.settings import Settings
from kosine.serving.http.stages import StagedModel, TokenIds

__all__ = ["Model", "Models", "load_verified"]

# A call takes at most this share of the queue, so that large requests go through in parts.
QUEUE_SHARE: Final = 4


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
        if await asyncio.to_thread(self.batcher.close, True, timeout):
            self.encoder.backend.close()


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
        async with self._reloading:
            self.by_name = await self._load_all()

    async def reload(self) -> list[Model]:
        """Load every bundle anew; put each new version in the place of the old, which answers
        what it has begun.

        Raises:
            KosineError: A bundle cannot be used. Then nothing is changed.
        """
        async with self._reloading:
            fresh = await self._load_all()
            old, self.by_name = self.by_name, fresh
            for model in old.values():
                task = asyncio.create_task(self._retire(model))
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)
            return list(fresh.values())

    async def _load_all(self) -> dict[str, Model]:
        """All of them or none: nobody is told that the service is ready while one is missing."""
        found: dict[str, Model] = {}
        try:
            for name in self.paths:
                found[name] = await self._loaded(name)
        except BaseException:
            for model in found.values():
                await model.retire()
            _collect_soon()
            raise
        return found

    @staticmethod
    async def _retire(model: Model) -> None:
        await model.retire()
        del model
        _collect_soon()

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
                remedy="name one of these, or leave it out",
            )
        return Model(name, encoder, self.lane, settings)


def _collect_soon() -> None:
    """Encoders lie in circles of references, and a service makes too few of these to have them
    collected: each would hold its weights for hours."""
    asyncio.get_running_loop().call_soon(gc.collect)


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
