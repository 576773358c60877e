"""How far a job has come, beside its output, so that a later run can go on.

`.OUT.resume` is a JSON object: what the job was given (`identity`), and how many rows and bytes of
`.OUT.part` are certainly on the disk. It is replaced whole, after those bytes are there: killed at
any moment, a job goes on from the last one written, with neither a gap nor a duplicate.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kosine.errors import InputError
from kosine.jobs.outputs import Output, part_of

__all__ = ["Checkpoint", "Progress"]

FORMAT = 1
EVERY_S = 1.0  # seconds of work that a kill costs at most, beside the window in hand
KEPT_FAILURES = 1000


@dataclass(slots=True)
class Progress:
    """What is done.

    Attributes:
        rows: Rows written.
        bytes: Bytes of the part that hold them.
        repeated: Texts whose vector was already there.
        counts: Sums of `Encoder.counts`.
        failed: How many records have no vector.
        failures: (number, what is wrong with it) of the first thousand of them.
        whole: Nothing is left but to put the part in its place.
    """

    rows: int = 0
    bytes: int = 0
    repeated: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)
    whole: bool = False

    def add_failures(self, failures: list[tuple[int, str]]) -> None:
        self.failed += len(failures)
        self.failures += failures[: KEPT_FAILURES - len(self.failures)]


class Checkpoint:
    """The file that says how far a job has come.

    Args:
        output: OUT.
        identity: What has to be the same for a later run to go on, by the name that a user knows.
    """

    def __init__(self, output: Path, identity: dict[str, Any]) -> None:
        self.output, self.identity = output, identity
        self.path = output.with_name(f".{output.name}.resume")
        self._written = time.monotonic()

    def read(self) -> Progress:
        """How far an earlier run came; nothing done where there was none.

        Raises:
            InputError: The earlier run was given something else, or left no readable state.
        """
        try:
            state = json.loads(self.path.read_text("utf-8"))
            progress = Progress(**state["progress"])
            before = dict(state["identity"])
            known = state["format"] == FORMAT
        except FileNotFoundError:
            return Progress()
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise InputError(
                f"{self.path.name!r} does not say how far a run came",
                limit="what this version of kosine writes",
                remedy="start again without --resume",
            )
        for name, value in self.identity.items():
            if before.get(name) != value:
                raise InputError(
                    f"--resume: {name} has changed, {_shown(before.get(name))} to {_shown(value)}",
                    limit="what the first run was given",
                    remedy="give that again, or start again without --resume",
                )
        progress.failures = [(number, what) for number, what in progress.failures]
        part = part_of(self.output)
        if not part.exists():
            done = progress.whole and self.output.exists()
            return progress if done else Progress()
        if part.stat().st_size < progress.bytes:
            raise InputError(
                f"{part.name!r} has {part.stat().st_size} bytes",
                limit=f"at least the {progress.bytes} that {self.path.name!r} names",
                remedy="start again without --resume",
            )
        return progress

    def write(self, progress: Progress, output: Output, *, now: bool = False) -> None:
        """Note what is done, where that is due."""
        if not now and time.monotonic() - self._written < EVERY_S:
            return
        progress.bytes = output.sync()
        state = {"format": FORMAT, "identity": self.identity, "progress": asdict(progress)}
        beside = self.path.with_name(f"{self.path.name}.new")
        with beside.open("w", encoding="utf-8") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)
        self._written = time.monotonic()

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Take away everything that is not finished."""
        self.clear()
        part_of(self.output).unlink(missing_ok=True)


def _shown(value: Any) -> str:
    return "none" if value is None else repr(value)
