"""What has gone through an encoder, and what its user should be told of it."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import asdict, dataclass

from kosine.backends.forks import watch_forks
from kosine.tokenizer import Tokenized

__all__ = ["Counter", "Counts"]

MAX_UNKNOWN_SHARE = 0.3
MAX_CLIPPED_SHARE = 0.01

logger = logging.getLogger("kosine")
# The process that was told of unknown tokens: a service would say it with every request. Setting
# a key is one step for every thread, and a forked child is another process with no lock to inherit.
_told_of_unknown: dict[int, object] = {}


@dataclass(slots=True)
class Counts:
    """Of one call, or of all so far."""

    texts: int = 0
    tokens: int = 0
    truncated_texts: int = 0
    unknown_tokens: int = 0
    integer_components: int = 0
    clipped_components: int = 0

    def add(self, tokenized: Tokenized) -> None:
        """Count what was tokenised."""
        self.texts += len(tokenized.sentences)
        self.tokens += tokenized.num_tokens
        self.truncated_texts += tokenized.truncated
        self.unknown_tokens += tokenized.unknown

    def merge(self, other: Counts) -> None:
        """Count what another has counted."""
        self.texts += other.texts
        self.tokens += other.tokens
        self.truncated_texts += other.truncated_texts
        self.unknown_tokens += other.unknown_tokens
        self.integer_components += other.integer_components
        self.clipped_components += other.clipped_components


class Counter:
    """The counts of one encoder, for all threads; says what is out of the ordinary.

    Args:
        max_tokens: Where texts are cut, for the log.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._counts = Counts()
        self._warned_of_clipping = False
        self._lock = threading.Lock()
        watch_forks(self._forked)

    def _forked(self) -> None:
        """In a child: another thread may have held the lock, and did not come along."""
        self._lock = threading.Lock()

    def read(self) -> dict[str, int]:
        """All counts by name."""
        with self._lock:
            return asdict(self._counts)

    def count_tokenized(self, tokenized: Tokenized) -> None:
        """Take in what was tokenised for a scheduler. This runs for every request."""
        with self._lock:
            self._counts.add(tokenized)
        if tokenized.truncated or tokenized.unknown:
            texts, tokens = len(tokenized.sentences), tokenized.num_tokens
            self._tell(Counts(texts, tokens, tokenized.truncated, tokenized.unknown))

    def count(self, counts: Counts) -> None:
        """Take in the counts of a call, and log what its user should know."""
        with self._lock:
            self._counts.merge(counts)
            clipped, components = self._counts.clipped_components, self._counts.integer_components
            warn = clipped > MAX_CLIPPED_SHARE * components and not self._warned_of_clipping
            self._warned_of_clipping |= warn
        if warn:
            logger.warning(
                "%d of %d integer components lie outside their ranges and were clipped: the texts "
                "are unlike those that the ranges come from; export with --calibrate FILE, or pass "
                "ranges",
                clipped,
                components,
            )
        self._tell(counts)

    def _tell(self, counts: Counts) -> None:
        if counts.truncated_texts:
            logger.info(
                "%d of %d texts cut to %d tokens",
                counts.truncated_texts,
                counts.texts,
                self._max_tokens,
            )
        if counts.unknown_tokens > MAX_UNKNOWN_SHARE * counts.tokens:
            mine = object()
            if _told_of_unknown.setdefault(os.getpid(), mine) is mine:
                logger.warning(
                    "%d of %d tokens are [UNK]: the texts may be decomposed (NFD) Hangul, in "
                    "another script, or meant for another tokenizer (said once per process; "
                    "Encoder.counts() goes on counting)",
                    counts.unknown_tokens,
                    counts.tokens,
                )
