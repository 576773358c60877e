"""Runs contestants in interleaved rounds, never two alive at once, and gathers the samples."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kosine_bench import paths
from kosine_bench.contestants import environment
from kosine_bench.contestants.contestant import Absent, Checkpoint, installed_version
from kosine_bench.contestants.registry import REFERENCE
from kosine_bench.measuring import machine, models, result_file
from kosine_bench.measuring.contestant_state import Entry, leave_out_repeated
from kosine_bench.measuring.duration import Remaining, clock, work_of
from kosine_bench.measuring.plan import MODES, SEED, Plan
from kosine_bench.measuring.summary import limit_seconds, summarise, summarise_load
from kosine_bench.measuring.work_file import WorkFile, write_work
from kosine_bench.measuring.worker_process import WorkerFailed, WorkerProcess, import_seconds
from kosine_bench.measuring.workload import Workload, make_texts

__all__ = ["measure"]

CALIBRATION_TEXTS = 128
CALIBRATION_FLOPS = 2e12
LEAST_CALIBRATION_TEXTS = 16
Say = Callable[[str], None]


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
        self.entries = [Entry(kind) for kind in plan.contestants]
        self.checkpoints: dict[str, Checkpoint] = {}
        self.work: list[WorkFile] = []
        self.ceilings: dict[str, Any] = {}
        self.reference: dict[str, dict[str, Any]] = {}
        self.runs: dict[tuple[str, str], dict[str, Any]] = {}
        self.parity: list[dict[str, Any]] = []
        self.tuning: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.rounds: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
        self.load: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def run(self) -> dict[str, Any]:
        self._prepare()
        if all(entry.reason for entry in self.entries):
            return self._result()
        steps = [
            (number, size, entry)
            for number in range(self.plan.effort.rounds)
            for size in self.plan.sizes
            for entry in self.entries
            if self._work_of(size, entry)
            and number < entry.kind.most_rounds.get(size.name, self.plan.effort.rounds)
        ]
        remaining = Remaining(self.plan.effort, self.work, self.ceilings)
        remaining.say(steps, self.say)
        for i, (number, size, entry) in enumerate(steps):
            if entry.reason:
                continue
            left = remaining.of(steps[i:])
            self.say(
                f"round {number + 1}/{self.plan.effort.rounds} {size.name:6}"
                f" {entry.label}  (about {clock(left)} left)"
            )
            start = time.monotonic()
            try:
                self._round(number, size, entry)
            except (Absent, WorkerFailed) as problem:
                entry.reason = str(problem)
                self.say(f"  left out: {problem}")
            else:
                remaining.saw((number, size, entry), time.monotonic() - start)
        return self._result()

    # Before the first round

    def _prepare(self) -> None:
        for entry in self.entries:
            try:
                entry.python = environment.python(
                    entry.kind.environment, self.say, install=self.plan.install
                )
            except Absent as absent:
                entry.reason = str(absent)
        for size in self.plan.sizes:
            folder = models.build(size)
            self.checkpoints[size.name] = Checkpoint(folder, folder.parent.parent / folder.name)
        for part in self.plan.parts:
            checkpoint = self.checkpoints[part.size.name]
            self.work.append(write_work(part, checkpoint, self.plan.effort, self.folder))
        for size in self.plan.sizes:
            calibration = self._calibration(size)
            for entry in self.entries:
                self._convert(entry, size, calibration)
        leave_out_repeated(self.entries)
        self.say("measuring the machine's ceilings and PyTorch's vectors, the reference")
        for size in self.plan.sizes:
            self._refer(size)

    def _convert(self, entry: Entry, size: models.ModelSize, calibration: list[list[int]]) -> None:
        if entry.reason:
            return
        try:
            with self._worker(entry, size) as worker:
                entry.versions = worker.ask("versions")
                entry.isa = worker.ask("isa_level")
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
        columns = tuple(
            column
            for part in self.plan.parts
            if part.size is size
            for column in part.workload.columns
        )
        mixed = Workload("calibration", columns, (0,))
        one = models.flops_per_text(size, round(mixed.mean))
        affordable = max(int(CALIBRATION_FLOPS / one), LEAST_CALIBRATION_TEXTS)
        texts = make_texts(
            mixed,
            checkpoint.tokenizer(),
            min(affordable, CALIBRATION_TEXTS),
            SEED + 100,
            data=paths.data_dir(),
        )
        return texts.ids

    def _refer(self, size: models.ModelSize) -> None:
        """PyTorch's vectors of the parity texts, which every contestant is held against.

        The first such process measures the ceilings too: the rivals' environment, where there
        is one, has the fastest libraries.
        """
        kind = REFERENCE[self.plan.device]
        try:
            interpreter = environment.python(kind.environment, self.say, install=False)
        except Absent as absent:
            self.say(f"no reference, so outputs go unchecked: {absent}")
            interpreter = None
        with self._worker(Entry(kind, interpreter or Path(sys.executable)), size) as worker:
            try:
                if not self.ceilings:
                    self.ceilings = self._ceilings(worker)
                if interpreter is None:
                    return
                worker.ask("load", threads=self.plan.threads)
                for work in self._work_of(size):
                    worker.ask("texts", file=str(work.path))
                    file = self.folder / f"reference-{work.key}.npz"
                    worker.ask("outputs", file=str(file), scopes=["end-to-end"])
                    with np.load(file) as arrays:
                        self.reference[work.key] = dict(arrays)
            except (Absent, WorkerFailed) as problem:
                self.say(f"no reference, so outputs go unchecked: {problem}")

    def _ceilings(self, worker: WorkerProcess) -> dict[str, Any]:
        ceilings: dict[str, Any] = worker.ask("ceilings", threads=self.plan.threads)
        return ceilings

    # Rounds

    def _round(self, number: int, size: models.ModelSize, entry: Entry) -> None:
        plan, name = self.plan, entry.kind.name
        if number < plan.effort.import_rounds:
            entry.import_seconds.append(
                import_seconds(entry.python, entry.kind.imports, plan.threads, entry.kind.environ)
            )
        run = self.runs.setdefault(
            (name, size.name), {"load_seconds": [], "first_seconds": [], "peak_rss_bytes": []}
        )
        with self._worker(entry, size) as worker:
            loaded = worker.ask("load", threads=plan.threads)
            for work in self._work_of(size, entry):
                worker.ask("texts", file=str(work.path))
                if number == 0:
                    self._compare(worker, entry, work)
                    self._tune(worker, name, work)
                self._modes(worker, number, entry, work)
                if work.part.loads(entry.kind) and number < plan.effort.load_rounds:
                    answer = worker.ask(
                        "load_test",
                        setting=self.tuning[name, work.key, "burst"]["best"],
                        shares=work.part.load_shares,
                        seconds=plan.effort.load_seconds,
                        seed=SEED,
                        requests=plan.effort.load_requests,
                        most_seconds=plan.effort.most_load_seconds,
                    )
                    self.load.setdefault((name, work.key), []).append(answer)
            run["peak_rss_bytes"].append(worker.ask("peak_rss"))
            run["load_seconds"].append(round(loaded["load"], 4))
            run["first_seconds"].append(round(loaded["first"], 4))

    def _tune(self, worker: WorkerProcess, name: str, work: WorkFile) -> None:
        """Settle each mode's setting, and how many texts fit into its seconds."""
        effort = self.plan.effort
        for mode in ("single", "burst", "bulk"):
            needed = mode in work.part.modes or (mode == "burst" and "load" in work.part.modes)
            if not needed:
                continue
            tuned = self._settled(name, work, mode) or worker.ask(
                "tune", mode=mode, tokens=effort.tune_tokens
            )
            tuned["texts"] = affordable_texts(
                work, mode, tuned["tokens_per_second"], effort.seconds.get(mode)
            )
            self.tuning[name, work.key, mode] = tuned

    def _settled(self, name: str, work: WorkFile, mode: str) -> dict[str, Any] | None:
        """What is known to be best: for bursts where that settles bulk; on another size.

        The speed on another size is scaled to this one.
        """
        if mode == "bulk" and work.settles_bulk:
            burst = self.tuning[name, work.key, "burst"]
            return {
                "best": burst["best"],
                "tokens_per_second": burst["tokens_per_second"],
                "trials": [],
                "settled_by": "burst",
            }
        for other in self.work:
            tuned = self.tuning.get((name, other.key, mode))
            if tuned and other.workload is work.workload and other.size is not work.size:
                tokens = round(work.workload.mean)
                share = models.flops_per_text(other.size, tokens) / models.flops_per_text(
                    work.size, tokens
                )
                speed = tuned["tokens_per_second"] * share
                return {
                    "best": tuned["best"],
                    "tokens_per_second": speed,
                    "trials": [],
                    "settled_by": other.key,
                }
        return None

    def _modes(self, worker: WorkerProcess, number: int, entry: Entry, work: WorkFile) -> None:
        name = entry.kind.name
        for mode in MODES[:3]:
            if not work.part.measures(mode, number):
                continue
            tuned = self.tuning[name, work.key, mode]
            for scope in work.part.scopes:
                if scope == "engine" and not entry.kind.engine:
                    continue
                samples = worker.ask(
                    "measure",
                    mode=mode,
                    scope=scope,
                    setting=tuned["best"],
                    texts=tuned["texts"],
                )
                self.rounds.setdefault((name, work.key, mode, scope), []).append(samples)

    def _compare(self, worker: WorkerProcess, entry: Entry, work: WorkFile) -> None:
        reference = self.reference.get(work.key)
        if reference is None:
            return
        expected = reference["end-to-end"].astype(np.float64)
        file = self.folder / "outputs.npz"
        worker.ask("outputs", file=str(file), scopes=list(work.part.scopes))
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

    def _work_of(self, size: models.ModelSize, entry: Entry | None = None) -> list[WorkFile]:
        return work_of(self.work, size, entry.kind if entry else None)

    def _worker(self, entry: Entry, size: models.ModelSize) -> WorkerProcess:
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

    # After the last round

    def _result(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "made": {
                "date": result_file.now(),
                **machine.commit(),
                "kosine": installed_version("kosine"),
                "quick": plan.quick,
                "rounds": plan.effort.rounds,
                "seed": SEED,
                "modes": list(plan.modes),
                "device": plan.device,
                "seconds": dict(plan.effort.seconds),
            },
            "machine": machine.describe(plan.threads, plan.gpu),
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
            "contestants": [entry.describe() for entry in self.entries],
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
        calls = work.calls(mode, rounds[0]["sentences"])
        limit = limit_seconds(work.size, kind.precision, calls, self.ceilings)
        return {
            "contestant": name,
            "workload": key,
            "mode": mode,
            "scope": scope,
            "setting": self.tuning[name, key, mode]["best"],
            "summary": summarise(mode, rounds, limit),
            "rounds": rounds,
        }


def affordable_texts(
    work: WorkFile, mode: str, tokens_per_second: float, seconds: float | None
) -> int:
    """How many of a mode's texts a contestant of that speed computes in `seconds`.

    Whole bursts, and in bulk whole bursts' worth; never under the mode's least.
    """
    lengths = work.lengths[mode]
    if seconds is None:
        return len(lengths)
    count = int(np.searchsorted(np.cumsum(lengths), tokens_per_second * seconds, "right"))
    if count >= len(lengths):
        return len(lengths)
    step = 1 if mode == "single" else work.workload.burst
    return min(max(count // step * step, work.least(mode)), len(lengths))


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
