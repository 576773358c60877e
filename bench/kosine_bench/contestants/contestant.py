"""What takes part in a measurement: text or token ids in, unit float32 vectors out.

Imported by worker processes in environments of their own, so it needs NumPy and tokenizers only.
"""

from __future__ import annotations

import importlib.metadata
import json
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from kosine_bench.contestants.process_memory import process_memory

__all__ = [
    *("Absent", "Checkpoint", "Contestant", "PaddedContestant", "Setting", "installed_version"),
    *("normalise", "padded"),
]

Rows = Sequence[Sequence[int]]
Float32 = NDArray[np.float32]


class Absent(Exception):
    """The contestant cannot take part here; the message says why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a call is cut into batches.

    Attributes:
        batch_size: Texts in one batch.
        order: "arrival" keeps the caller's order, "length" sorts the call's texts first.
        streams: Batches computed side by side, each on an equal share of the threads.
    """

    batch_size: int
    order: Literal["arrival", "length"] = "arrival"
    streams: int = 1

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Indices of each batch. Longest first when sorted, so that the last one ends early."""
        indices = list(range(len(lengths)))
        if self.order == "length":
            indices.sort(key=lambda i: -lengths[i])
        return [indices[i : i + self.batch_size] for i in range(0, len(indices), self.batch_size)]

    def within(self, texts: int) -> Setting:
        """The same for calls of `texts` texts: no batch larger than a stream's share of them."""
        if self.batch_size >= texts and self.streams == 1:
            return Setting(texts)
        share = -(-texts // self.streams)
        return replace(self, batch_size=min(self.batch_size, share))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The checkpoint folder, and the folder that holds what it was converted to.

    `trained` says whether the weights are trained and not random ones.
    """

    folder: Path
    converted: Path
    trained: bool = True

    @property
    def config(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "config.json").read_text("utf-8"))
        return content

    @property
    def dim(self) -> int:
        return int(self.config["hidden_size"])

    @property
    def pad_id(self) -> int:
        return int(self.config["pad_token_id"])

    @property
    def max_tokens(self) -> int:
        content = (self.folder / "sentence_bert_config.json").read_text("utf-8")
        return int(json.loads(content)["max_seq_length"])

    @property
    def pooling(self) -> Literal["mean", "cls"]:
        """How token vectors become one."""
        content = (self.folder / "1_Pooling" / "config.json").read_text("utf-8")
        return "cls" if json.loads(content)["pooling_mode_cls_token"] else "mean"

    def tokenizer(self) -> Any:
        """A `tokenizers.Tokenizer` that truncates at `max_tokens` and does not pad."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_tokens)
        return tokenizer


def installed_version(distribution: str) -> str:
    """Version of an installed distribution; of kosine also where it runs from its sources.

    Raises:
        importlib.metadata.PackageNotFoundError: It is not installed.
    """
    if distribution == "kosine":
        import kosine

        return str(kosine.__version__)
    return importlib.metadata.version(distribution)


def padded(rows: Rows, pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(b, s) ids of a rectangle as wide as the longest row, and its mask: 1 on real tokens."""
    lengths = np.array([len(row) for row in rows])
    width = int(lengths.max())
    ids = np.full((len(rows), width), pad_id, np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, (np.arange(width) < lengths[:, None]).astype(np.int64)


def normalise(vectors: NDArray[Any]) -> Float32:
    """Rows scaled to length 1, in float32."""
    rows: Float32 = np.asarray(vectors, np.float32)
    norms = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    unit: Float32 = rows / np.maximum(norms, 1e-12)
    return unit


class Contestant(ABC):
    """One runtime at one precision.

    Attributes:
        name: How `--rivals` and the result file call it.
        label: How tables and pictures call it.
        precision: What its matrix products run in; names the limit it is held against.
        environment: Virtual environment it runs in; "own" is the one kosine runs in.
        converts: Names of the conversions it reads (see `convert`).
        packages: Distributions whose versions go into the result file.
        imports: The statement whose time is the import time.
        environ: Variables to set before its process starts.
        device: "cpu" or "cuda".
        ours: Whether it is kosine.
        engine: Whether token ids can be passed in, past the tokenizer.
        sorts: Whether its own way from text to vectors sorts a call's texts by length anyway.
        keeps_shapes: Whether it builds something for each shape that it meets and keeps it: it is
            measured as it is from the second time on.
        serves: Whether it takes part in the latency under load.
        forced: The instruction-set level that its process is held to; None leaves it the choice.
            A forced level stands beside what is chosen and is never taken for the fastest.
        start_seconds: About how long a process takes before it measures, for estimates.
        most_rounds: Rounds on a model size that it takes part in, where it starts too slowly for
            all of them.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    precision: ClassVar[str]
    environment: ClassVar[str] = "rivals"
    converts: ClassVar[tuple[str, ...]] = ()
    packages: ClassVar[tuple[str, ...]] = ()
    imports: ClassVar[str] = "import numpy"
    environ: ClassVar[dict[str, str]] = {}
    device: ClassVar[Literal["cpu", "cuda"]] = "cpu"
    ours: ClassVar[bool] = False
    engine: ClassVar[bool] = True
    sorts: ClassVar[bool] = False
    keeps_shapes: ClassVar[bool] = False
    serves: ClassVar[bool] = False
    forced: ClassVar[str | None] = None
    start_seconds: ClassVar[float] = 1.5
    most_rounds: ClassVar[dict[str, int]] = {}

    @abstractmethod
    def load(self, checkpoint: Checkpoint, threads: int) -> None:
        """Become ready to encode with `threads` threads.

        Raises:
            Absent: It cannot run here.
        """

    @abstractmethod
    def encode(self, texts: Sequence[str], setting: Setting) -> Float32:
        """(n, dim) unit rows of `texts`, in their order: the end-to-end path."""

    def encode_ids(self, rows: Rows, setting: Setting) -> Float32:
        """(n, dim) unit rows of token-id rows, in their order: the engine alone."""
        raise NotImplementedError(
            f"{self.name} takes texts only, not {len(rows)} rows at {setting}"
        )

    def apply(self, setting: Setting) -> None:  # noqa: B027  most have nothing to do
        """Get ready for `setting`, where that takes time that no call should be charged."""

    def isa_level(self) -> str | None:
        """The instruction-set level that it computes at here; None where it does not tell.

        Raises:
            Absent: This machine lacks the level that it is held to.
        """
        return None

    def w8a16_share(self, checkpoint: Checkpoint) -> float | None:  # noqa: ARG002
        """Of an int8 engine that keeps to rounded weights alone where inputs do not bear rounding:
        the share of the linear layers' multiply-adds that are done so. None of any other."""
        return None

    def settings(self, mode: str) -> list[Setting]:
        """What tuning tries for `mode`; the first one is used where there is no tuning."""
        if mode == "single":
            return [Setting(1)]
        if mode == "bulk":
            return [Setting(n, "length") for n in (32, 16)]
        return [Setting(32), Setting(8, "length"), Setting(4, "length")]

    def computed_tokens(self, lengths: Sequence[int], setting: Setting) -> int:
        """Tokens, padding included, that a call over texts of `lengths` computes."""
        groups = setting.groups(lengths)
        return sum(len(group) * max(lengths[i] for i in group) for group in groups)

    def cpu_seconds(self) -> float:
        """CPU time used so far, all threads and serving processes together."""
        return time.process_time()

    def peak_rss(self) -> int:
        """Highest resident memory so far, bytes."""
        # On Linux ru_maxrss begins with that of the process that started this one.
        if peak := process_memory("self", "VmHWM"):
            return peak
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def close(self) -> None:  # noqa: B027  most have nothing to do
        """Release servers and threads."""


class PaddedContestant(Contestant):
    """A runtime that computes one padded rectangle at a time.

    `streams` rectangles at once where the runtime allows it: each on its own thread.
    """

    most_streams: ClassVar[int] = 1
    _pool: ThreadPoolExecutor | None = None

    def load(self, checkpoint: Checkpoint, threads: int) -> None:
        self.checkpoint = checkpoint
        self.pooling = checkpoint.pooling
        self.threads = threads
        self.streams = 1
        self.tokenizer = checkpoint.tokenizer()
        self.open(threads, 1)

    @abstractmethod
    def open(self, threads: int, streams: int) -> None:
        """Make the session: `streams` calls of `forward` at once, `threads` threads each."""

    @abstractmethod
    def forward(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Float32:
        """(b, dim) unit rows of a (b, s) rectangle of ids; mask is 1 on real tokens."""

    def settings(self, mode: str) -> list[Setting]:
        settings = super().settings(mode)
        streams = min(self.most_streams, self.threads)
        if streams > 1 and mode == "bulk":
            settings += [Setting(n, "length", streams) for n in (8, 32)]
        if streams > 1 and mode == "burst":
            settings += [Setting(n, "length", streams) for n in (8, 4)]
        return settings

    def apply(self, setting: Setting) -> None:
        if setting.streams == self.streams:
            return
        if self._pool:
            self._pool.shutdown()
            self._pool = None
        self.streams = setting.streams
        self.open(max(self.threads // setting.streams, 1), setting.streams)
        if setting.streams > 1:
            self._pool = ThreadPoolExecutor(setting.streams)

    def encode(self, texts: Sequence[str], setting: Setting) -> Float32:
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]
        return self.encode_ids(rows, setting)

    def encode_ids(self, rows: Rows, setting: Setting) -> Float32:
        self.apply(setting)
        groups = setting.groups([len(row) for row in rows])
        vectors = np.empty((len(rows), self.checkpoint.dim), np.float32)
        batches = [[rows[i] for i in group] for group in groups]
        results = self._pool.map(self._run, batches) if self._pool else map(self._run, batches)
        for group, result in zip(groups, results, strict=True):
            vectors[group] = result
        return vectors

    def _run(self, rows: Rows) -> Float32:
        return self.forward(*padded(rows, self.checkpoint.pad_id))

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown()
