"""Runs contestants in interleaved rounds, never two alive at once, and gathers the samples."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kosine_bench import environments, machine, models, places, results
from kosine_bench.contestant import Absent, Checkpoint, Contestant
from kosine_bench.process import WorkerFailed, WorkerProcess, import_seconds
from kosine_bench.rivals import SentenceTransformersFloat32
from kosine_bench.suite import SCOPES, SEED, Effort, WorkFile, write_work
from kosine_bench.summary import limit_seconds, summarise, summarise_load
from kosine_bench.workload import Column, Workload, make_texts

__all__ = ["Plan", "measure"]

LOAD_SHARES = (0.3, 0.5, 0.7, 0.9)
CALIBRATION_TEXTS = 128
REFERENCE = SentenceTransformersFloat32
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """One run: pairs of workload and model size, modes, contestants, effort."""

    pairs: tuple[tuple[Workload, models.ModelSize], ...]
    modes: tuple[str, ...]
    contestants: tuple[type[Contestant], ...]
    effort: Effort
    threads: int
    quick: bool
    install: bool = True

    @property
    def sizes(self) -> list[models.ModelSize]:
        return list(dict.fromkeys(size for _, size in self.pairs))


@dataclass(slots=True)
class _Entry:
    """A contestant during a run; `reason` says why it is not, or no longer, in it."""

    kind: type[Contestant]
    python: Path = Path()
    versions: dict[str, str] = field(default_factory=dict)
    import_seconds: list[float] = field(default_factory=list)
    reason: str | None = None


def measure(plan: Plan, say: Say) -> dict[str, Any]:
    """Run `plan`; the whole content of a result file.

    `say` takes progress lines. A contestant that cannot be installed, fails, or is too slow
    stays in the result with the reason; it never ends the run.
    """
    with TemporaryDirectory(prefix="kosine-bench-") as folder:
        return _Run(plan, say, Path(folder)).run()


class _Run:
    def __init__(self, plan: Plan, say: Say, folder: Path) -> None:
        self.plan = plan
        self.say = say
        self.folder = folder
        self.entries = [_Entry(kind) for kind in plan.contestants]
        self.checkpoints: dict[str, Checkpoint] = {}
        self.work: list[WorkFile] = []
        self.ceilings: dict[str, Any] = {}
        self.reference: dict[str, dict[str, Any]] = {}
        self.runs: dict[tuple[str, str], dict[str, Any]] = {}
        self.parity: list[dict[str, Any]] = []
        self.tuning: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.rounds: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
        self.load: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.seconds: dict[tuple[str, str], float] = {}

    def run(self) -> dict[str, Any]:
        self._prepare()
        if all(entry.reason for entry in self.entries):
            return self._result()
        self.say(f"about {_clock(self._nominal_seconds())} of measuring")
        steps = [
            (number, size, entry)
            for number in range(self.plan.effort.rounds)
            for size in self.plan.sizes
            for entry in self.entries
        ]
        for i, (number, size, entry) in enumerate(steps):
            if entry.reason:
                continue
            left = self._left(steps[i:])
            self.say(
                f"round {number + 1}/{self.plan.effort.rounds} {size.name:6}"
                f" {entry.kind.label}  (about {_clock(left)} left)"
            )
            start = time.monotonic()
            try:
                self._round(number, size, entry)
            except (Absent, WorkerFailed) as problem:
                entry.reason = str(problem)
                self.say(f"  left out: {problem}")
            else:
                self.seconds[entry.kind.name, size.name] = time.monotonic() - start
        return self._result()

    # Before the first round

    def _prepare(self) -> None:
        for entry in self.entries:
            try:
                entry.python = environments.python(
                    entry.kind.environment, self.say, install=self.plan.install
                )
            except Absent as absent:
                entry.reason = str(absent)
        for size in self.plan.sizes:
            folder = models.build(size)
            self.checkpoints[size.name] = Checkpoint(folder, folder.parent.parent / folder.name)
        for workload, size in self.plan.pairs:
            checkpoint = self.checkpoints[size.name]
            self.work.append(write_work(workload, size, checkpoint, self.plan.effort, self.folder))
        for size in self.plan.sizes:
            calibration = self._calibration(size)
            for entry in self.entries:
                self._convert(entry, size, calibration)
        self.say("measuring the machine's ceilings")
        self.ceilings = self._ceilings()
        for size in self.plan.sizes:
            self._refer(size)

    def _convert(self, entry: _Entry, size: models.ModelSize, calibration: list[list[int]]) -> None:
        if entry.reason:
            return
        try:
            with self._worker(entry, size) as worker:
                entry.versions = worker.ask("versions")
                seconds = worker.ask("convert", calibration=calibration)
        except (Absent, WorkerFailed) as problem:
            entry.reason = str(problem)
            self.say(f"{entry.kind.name} is absent: {problem}")
            return
        for name, spent in seconds.items():
            if spent > 1:
                self.say(f"converted {size.name} to {name} in {spent:.0f} s")

    def _calibration(self, size: models.ModelSize) -> list[list[int]]:
        """Ids of texts like all workloads that run on `size`, none of them measured."""
        checkpoint = self.checkpoints[size.name]
        columns = [
            column
            for workload, other in self.plan.pairs
            if other is size
            for column in workload.columns
        ]
        mixed = Workload("calibration", tuple(columns or [Column(5, 17.0, 63)]), (0,))
        texts = make_texts(
            mixed,
            checkpoint.tokenizer(),
            CALIBRATION_TEXTS,
            SEED + 100,
            data=places.data_dir(),
        )
        return texts.ids

    def _ceilings(self) -> dict[str, Any]:
        """From the rivals' environment where there is one: it has the fastest libraries."""
        size = self.plan.sizes[0]
        try:
            interpreter = environments.python("rivals", self.say, install=False)
            entry = _Entry(REFERENCE, interpreter)
        except Absent:
            entry = _Entry(REFERENCE, Path(sys.executable))
        with self._worker(entry, size) as worker:
            ceilings: dict[str, Any] = worker.ask("ceilings", threads=self.plan.threads)
        return ceilings

    def _refer(self, size: models.ModelSize) -> None:
        """PyTorch's vectors of the parity texts, which every contestant is held against."""
        try:
            interpreter = environments.python("rivals", self.say, install=False)
            with self._worker(_Entry(REFERENCE, interpreter), size) as worker:
                worker.ask("load", threads=self.plan.threads)
                for work in self._work_of(size):
                    worker.ask("texts", file=str(work.path))
                    file = self.folder / f"reference-{work.key}.npz"
                    worker.ask("outputs", file=str(file))
                    with np.load(file) as arrays:
                        self.reference[work.key] = dict(arrays)
        except (Absent, WorkerFailed) as problem:
            self.say(f"no reference, so outputs go unchecked: {problem}")

    # Rounds

    def _round(self, number: int, size: models.ModelSize, entry: _Entry) -> None:
        plan, name = self.plan, entry.kind.name
        if number == 0 or not plan.quick:
            entry.import_seconds.append(
                import_seconds(entry.python, entry.kind.imports, plan.threads, entry.kind.environ)
            )
        run = self.runs.setdefault(
            (name, size.name), {"load_seconds": [], "first_seconds": [], "peak_rss_bytes": []}
        )
        with self._worker(entry, size) as worker:
            loaded = worker.ask("load", threads=plan.threads)
            for work in self._work_of(size):
                worker.ask("texts", file=str(work.path))
                if number == 0:
                    self._compare(worker, entry, work)
                    self._tune(worker, name, work)
                self._modes(worker, entry, work)
                if "load" in plan.modes and number < plan.effort.load_rounds:
                    answer = worker.ask(
                        "load_test",
                        setting=self.tuning[name, work.key, "burst"]["best"],
                        shares=LOAD_SHARES,
                        seconds=plan.effort.load_seconds,
                        seed=SEED,
                    )
                    self.load.setdefault((name, work.key), []).append(answer)
            run["peak_rss_bytes"].append(worker.ask("peak_rss"))
            run["load_seconds"].append(round(loaded["load"], 4))
            run["first_seconds"].append(round(loaded["first"], 4))

    def _tune(self, worker: WorkerProcess, name: str, work: WorkFile) -> None:
        for mode in ("single", "burst", "bulk"):
            needed = mode in self.plan.modes or (mode == "burst" and "load" in self.plan.modes)
            if not needed:
                continue
            self.tuning[name, work.key, mode] = worker.ask("tune", mode=mode)

    def _modes(self, worker: WorkerProcess, entry: _Entry, work: WorkFile) -> None:
        name = entry.kind.name
        for mode in self.plan.modes:
            if mode == "load":
                continue
            for scope in SCOPES:
                if scope == "engine" and not entry.kind.engine:
                    continue
                samples = worker.ask(
                    "measure",
                    mode=mode,
                    scope=scope,
                    setting=self.tuning[name, work.key, mode]["best"],
                )
                self.rounds.setdefault((name, work.key, mode, scope), []).append(samples)

    def _compare(self, worker: WorkerProcess, entry: _Entry, work: WorkFile) -> None:
        reference = self.reference.get(work.key)
        if reference is None:
            return
        expected = reference["end-to-end"].astype(np.float64)
        file = self.folder / "outputs.npz"
        worker.ask("outputs", file=str(file))
        with np.load(file) as arrays:
            for scope, vectors in arrays.items():
                self.parity.append(
                    {
                        "contestant": entry.kind.name,
                        "workload": work.key,
                        "scope": scope,
                        **agreement(vectors, expected),
                    }
                )

    def _work_of(self, size: models.ModelSize) -> list[WorkFile]:
        return [work for work in self.work if work.size is size]

    def _worker(self, entry: _Entry, size: models.ModelSize) -> WorkerProcess:
        checkpoint = self.checkpoints[size.name]
        return WorkerProcess(
            entry.python,
            entry.kind.name,
            checkpoint.folder,
            checkpoint.converted,
            self.plan.threads,
            entry.kind.environ,
            self.folder / f"{entry.kind.name}.log",
        )

    # Time left

    def _nominal_seconds(self) -> float:
        return sum(
            self._nominal(entry, size) * self.plan.effort.rounds
            for entry in self.entries
            if not entry.reason
            for size in self.plan.sizes
        )

    def _nominal(self, entry: _Entry, size: models.ModelSize) -> float:
        """Seconds of one round, guessed from the machine's peak: half of it is reached."""
        matrix = self.ceilings["matrix"]
        peak = (matrix.get(entry.kind.precision) or matrix["float32"])["flops"]
        scopes = 2 if entry.kind.engine else 1
        seconds = 5.0
        for work in self._work_of(size):
            seconds += 1.5 * scopes * work.flops(self.plan.modes) / (peak / 2)
            if "load" in self.plan.modes:
                share = self.plan.effort.load_rounds / self.plan.effort.rounds
                seconds += share * len(LOAD_SHARES) * self.plan.effort.load_seconds
        return seconds

    def _left(self, steps: Sequence[tuple[int, models.ModelSize, _Entry]]) -> float:
        """Seconds that `steps` will take: as long as before, or as guessed, corrected so far."""
        guessed = spent = 0.0
        sizes = {size.name: size for size in self.plan.sizes}
        kinds = {entry.kind.name: entry for entry in self.entries}
        for (name, size_name), seconds in self.seconds.items():
            guessed += self._nominal(kinds[name], sizes[size_name])
            spent += seconds
        correction = spent / guessed if guessed else 1.0
        return sum(
            self.seconds.get((entry.kind.name, size.name))
            or correction * self._nominal(entry, size)
            for _, size, entry in steps
            if not entry.reason
        )

    # After the last round

    def _result(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "made": {
                "date": results.now(),
                **machine.commit(),
                "kosine": version("kosine"),
                "quick": plan.quick,
                "rounds": plan.effort.rounds,
                "seed": SEED,
                "modes": list(plan.modes),
            },
            "machine": machine.describe(plan.threads),
            "ceilings": self.ceilings,
            "models": {
                size.name: {
                    "layers": size.layers,
                    "hidden": size.hidden,
                    "heads": size.heads,
                    "intermediate": size.intermediate,
                    "vocabulary": size.vocab_size,
                    "weights": "trained" if size.name == "sample" else "random",
                    "tokenizer": self.checkpoints[size.name].folder.name.split("-", 1)[1],
                }
                for size in plan.sizes
            },
            "workloads": {work.key: work.describe() for work in self.work},
            "contestants": [
                {
                    "name": entry.kind.name,
                    "label": entry.kind.label,
                    "ours": entry.kind.environment == "own",
                    "precision": entry.kind.precision,
                    "device": entry.kind.device,
                    "python": platform.python_version(),
                    "versions": entry.versions,
                    "import_seconds": [round(second, 4) for second in entry.import_seconds],
                    "absent": entry.reason,
                }
                for entry in self.entries
            ],
            "runs": [
                {"contestant": name, "model": size, **run}
                for (name, size), run in self.runs.items()
                if run["load_seconds"]
            ],
            "parity": self.parity,
            "tuning": [
                {"contestant": name, "workload": key, "mode": mode, **tuned}
                for (name, key, mode), tuned in self.tuning.items()
            ],
            "figures": [self._figure(*key) for key in self.rounds],
            "load": [
                {
                    "contestant": name,
                    "workload": key,
                    "capacity": float(np.median([one["capacity"] for one in rounds])),
                    "rows": summarise_load(rounds),
                    "rounds": rounds,
                }
                for (name, key), rounds in self.load.items()
            ],
        }

    def _figure(self, name: str, key: str, mode: str, scope: str) -> dict[str, Any]:
        rounds = self.rounds[name, key, mode, scope]
        (work,) = [work for work in self.work if work.key == key]
        (kind,) = [entry.kind for entry in self.entries if entry.kind.name == name]
        limit = limit_seconds(work.size, kind.precision, work.calls(mode), self.ceilings)
        return {
            "contestant": name,
            "workload": key,
            "mode": mode,
            "scope": scope,
            "setting": self.tuning[name, key, mode]["best"],
            "summary": summarise(mode, rounds, limit),
            "rounds": rounds,
        }


def agreement(vectors: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> dict[str, float]:
    """Cosines of rows against the reference's, norms divided out, and the rows' own norms."""
    rows = vectors.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    cosines = (rows * expected).sum(axis=1) / (norms * np.linalg.norm(expected, axis=1))
    return {
        "min_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
        "max_norm_error": float(np.abs(norms - 1).max()),
    }


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
