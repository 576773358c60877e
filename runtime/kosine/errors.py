"""Everything kosine raises on purpose, drawn as one tree.

    KosineError
    ├── InputError (ValueError)        what the caller passed cannot be used
    │   ├── TextError                  no text, a lone surrogate, no place to cut it at
    │   ├── TextTooLong                over max_tokens while truncate=False
    │   ├── UnknownPrompt              a prompt name that the manifest does not list
    │   └── UnknownOption              a backend, dtype, precision or target that does not exist
    ├── MissingExtra (ImportError)     an optional dependency is absent, or two collide
    ├── CheckpointError                the checkpoint cannot be read
    │   ├── CheckpointNotFound (FileNotFoundError)
    │   ├── CorruptCheckpoint          damaged or contradictory files
    │   └── UnsupportedCheckpoint      readable, but something in it is not supported
    ├── BundleError                    the bundle cannot be read or written
    │   ├── BundleNotFound (FileNotFoundError)
    │   ├── BundleExists (FileExistsError)
    │   ├── ManifestError              manifest.json is damaged or does not fit the schema
    │   ├── SchemaTooNew               written by a later kosine
    │   ├── IntegrityError             a file's size or sha256 is not the manifest's
    │   ├── UnsafeBundle               paths outside, pipes and devices, graphs that reach outside
    │   └── MissingTarget              the artifact that a backend needs was not exported
    ├── BackendError                   a backend cannot be made or failed while running
    │   ├── BackendUnavailable         not on this machine or not in this build
    │   ├── PlanMismatch               a TensorRT plan for another GPU or version
    │   └── NonFiniteVector            a row came out NaN or infinite
    ├── ParityError                    the check against the reference fell short
    └── BatcherError                   the batcher could not serve a request
        ├── QueueFull                  admission refused; carries `retry_after` in seconds
        ├── DeadlineExceeded (TimeoutError)
        ├── BatcherClosed
        ├── ForkedBatcher              used in a child process of the one that made it
        └── WorkerCrashed              the worker died while it held the request

Each message states the problem with its value, the limit, and the remedy, in that order and
on one line; the three parts are attributes too, so that services can report them apart.
Texts are never part of a message: only their lengths and positions are.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BackendError",
    "BackendUnavailable",
    "BatcherClosed",
    "BatcherError",
    "BundleError",
    "BundleExists",
    "BundleNotFound",
    "CheckpointError",
    "CheckpointNotFound",
    "CorruptCheckpoint",
    "DeadlineExceeded",
    "ForkedBatcher",
    "InputError",
    "IntegrityError",
    "KosineError",
    "ManifestError",
    "MissingExtra",
    "MissingTarget",
    "NonFiniteVector",
    "ParityError",
    "PlanMismatch",
    "QueueFull",
    "SchemaTooNew",
    "TextError",
    "TextTooLong",
    "UnknownOption",
    "UnknownPrompt",
    "UnsafeBundle",
    "UnsupportedCheckpoint",
    "WorkerCrashed",
]


class KosineError(Exception):
    """Base of every error that kosine raises on purpose.

    Args:
        problem: What went wrong, with the offending value in it.
        limit: What would have been accepted.
        remedy: What the caller can do now.
    """

    def __init__(self, problem: str, *, limit: str = "", remedy: str = "") -> None:
        self.problem = problem
        self.limit = limit
        self.remedy = remedy
        parts = [part for part in (problem, limit, remedy) if part]
        super().__init__("; ".join(parts))

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.problem, self.limit, self.remedy), self.__dict__


def _again(kind: type[KosineError], problem: str, limit: str, remedy: str) -> KosineError:
    """What unpickling an error calls: one that cannot be unpickled hangs a pool of processes.

    The rest of its attributes, which some classes insist on, is set after this.
    """
    error = kind.__new__(kind)
    KosineError.__init__(error, problem, limit=limit, remedy=remedy)
    return error


class InputError(KosineError, ValueError):
    """What the caller passed cannot be used."""


class TextError(InputError):
    """No text: bytes, a table, a missing value, a lone surrogate, a NUL; or one that is over the
    byte limit and has no place to be cut at, or has a token that the model does not know."""


class TextTooLong(InputError):
    """A text over `max_tokens` or `max_text_bytes` while `truncate=False`."""


class UnknownPrompt(InputError):
    """A prompt name that the manifest does not list."""


class UnknownOption(InputError):
    """A backend, device, dtype, precision or target that does not exist."""


class MissingExtra(KosineError, ImportError):
    """An optional dependency is absent, or two that exclude one another are installed."""


class CheckpointError(KosineError):
    """The checkpoint cannot be read."""


class CheckpointNotFound(CheckpointError, FileNotFoundError):
    """No checkpoint at that path or hub id."""


class CorruptCheckpoint(CheckpointError):
    """The checkpoint's files are damaged or contradict one another."""

    def __init__(
        self, problem: str, *, limit: str = "", remedy: str = "save or download it again"
    ) -> None:
        super().__init__(problem, limit=limit, remedy=remedy)


class UnsupportedCheckpoint(CheckpointError):
    """The checkpoint is readable but asks for something that kosine does not do."""


class BundleError(KosineError):
    """The bundle cannot be read or written."""


class BundleNotFound(BundleError, FileNotFoundError):
    """No bundle at that path."""


class BundleExists(BundleError, FileExistsError):
    """Refused to overwrite."""


class ManifestError(BundleError):
    """`manifest.json` is damaged or does not fit its schema."""


class SchemaTooNew(BundleError):
    """The bundle was written by a later kosine."""


class IntegrityError(BundleError):
    """A file's size or sha256 is not the one in the manifest."""


class UnsafeBundle(BundleError):
    """Paths that lead outside, what is no regular file, or a graph that reaches outside."""


class MissingTarget(BundleError):
    """The artifact that the backend needs was not exported into this bundle."""


class BackendError(KosineError):
    """A backend cannot be made, or failed while running."""


class BackendUnavailable(BackendError):
    """The backend, device or dtype is not to be had on this machine."""


class PlanMismatch(BackendError):
    """A TensorRT plan was built for another GPU architecture or version."""


class NonFiniteVector(BackendError):
    """A vector came out NaN or infinite.

    `indices` are the rows concerned; `pooled` is the whole result (`kosine.Pooled`), of which
    every other row is good, or None.
    """

    def __init__(
        self,
        problem: str,
        *,
        indices: tuple[int, ...] = (),
        pooled: object = None,
        limit: str = "",
        remedy: str = "",
    ) -> None:
        super().__init__(problem, limit=limit, remedy=remedy)
        self.indices = indices
        self.pooled = pooled


class ParityError(KosineError):
    """The check against the reference fell short of its gate. `report` is the table, if any."""

    def __init__(
        self, problem: str, *, limit: str = "", remedy: str = "", report: str = ""
    ) -> None:
        super().__init__(problem, limit=limit, remedy=remedy)
        self.report = report


class BatcherError(KosineError):
    """The batcher could not serve a request."""


class QueueFull(BatcherError):
    """Admission refused. `retry_after` is the estimated wait in seconds."""

    def __init__(
        self, problem: str, *, retry_after: float, limit: str = "", remedy: str = ""
    ) -> None:
        super().__init__(problem, limit=limit, remedy=remedy)
        self.retry_after = retry_after


class DeadlineExceeded(BatcherError, TimeoutError):
    """The request's deadline passed, or could no longer be met."""


class BatcherClosed(BatcherError):
    """The batcher was closed before the request could be served."""


class ForkedBatcher(BatcherError):
    """A batcher was used in a child process of the one that made it."""


class WorkerCrashed(BatcherError):
    """The batcher's worker died while it held the request."""
