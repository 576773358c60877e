"""Runs contestants in interleaved rounds, never two alive at once, and gathers the samples."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kosine_bench.contestants import environment
from kosine_bench.contestants.contestant import Absent, Checkpoint, installed_version
from kosine_bench.contestants.registry import REFERENCE
from kosine_bench.measuring import machine, models, result_file
from kosine_bench.measuring.contestant_state import ContestantState, leave_out_repeated
from kosine_bench.measuring.duration import TimeEstimate, clock, work_of
from kosine_bench.measuring.plan import CALL_MODES, LONG_TOKENS, SEED, Plan
from kosine_bench.measuring.samples import Samples, agreement
from kosine_bench.measuring.tuning import affordable_texts, known_setting
from kosine_bench.measuring.work_file import WorkFile, calibration_ids, write_work
from kosine_bench.measuring.worker_process import WorkerFailed, WorkerProcess, import_seconds

__all__ = ["measure"]

Say = Callable[[str], None]
Save = Callable[[dict[str, Any]], None]


def measure(plan: Plan, say: Say, save: Save | None = None) -> dict[str, Any]:
    """Run `plan`; the whole content of a result file.

    `say` takes progress lines. `save` takes what there is after each contestant, marked
    `made.unfinished`: what a run that is cut off leaves. A contestant that cannot be installed,
    fails, or is too slow stays in the result with the reason; it never ends the run.
    """
    with TemporaryDirectory(prefix="kosine-bench-") as folder:
        return _Run(plan, say, Path(folder), save).run()


class _Run:
    def __init__(self, plan: Plan, say: Say, folder: Path, save: Save | None = None) -> None:
        self.plan = plan
        self.say = say
        self.save = save
        self.folder = folder
        self.commit = machine.commit()  # before a result lies in the checkout
        self.states = [ContestantState(kind) for kind in plan.contestants]
        self.checkpoints: dict[str, Checkpoint] = {}
        self.work: list[WorkFile] = []
        self.ceilings: dict[str, Any] = {}
        self.reference: dict[str, dict[str, Any]] = {}
        self.samples = Samples()

    def run(self) -> dict[str, Any]:
        self._prepare()
        if all(state.reason for state in self.states):
            return self._result()
        steps = [
            (number, size, state)
            for number in range(self.plan.effort.rounds)
            for size in self.plan.sizes
            for state in self.states
            if any(work.part.takes(number) for work in self._work_of(size, state))
            and number < state.kind.most_rounds.get(size.name, self.plan.effort.rounds)
        ]
        # Who runs out of memory on long texts has been measured on all others by then.
        steps.sort(key=lambda step: step[1].max_tokens > LONG_TOKENS)
        remaining = TimeEstimate(self.plan.effort, self.work, self.ceilings)
        remaining.say(steps, self.say)
        for i, (number, size, state) in enumerate(steps):
            if state.reason:
                continue
            left = remaining.of(steps[i:])
            self.say(
                f"round {number + 1}/{self.plan.effort.rounds} {size.name:6}"
                f" {state.label}  (about {clock(left)} left)"
            )
            start = time.monotonic()
            try:
                self._round(number, size, state)
            except (Absent, WorkerFailed) as problem:
                state.reason = str(problem)
                self.say(f"  left out: {problem}")
            else:
                remaining.saw((number, size, state), time.monotonic() - start)
            if self.save:
                self.save(self._result(unfinished=True))
        return self._result()

    # Before the first round

    def _prepare(self) -> None:
        for state in self.states:
            try:
                state.python = environment.python(
                    state.kind.environment, self.say, install=self.plan.install
                )
            except Absent as absent:
                state.reason = str(absent)
        for size in self.plan.sizes:
            folder = models.build(size)
            self.checkpoints[size.name] = Checkpoint(folder, folder.parent.parent / folder.name)
        for part in self.plan.parts:
            checkpoint = self.checkpoints[part.size.name]
            self.work.append(write_work(part, checkpoint, self.plan.effort, self.folder))
        for size in self.plan.sizes:
            calibration = calibration_ids(self.plan.parts, size, self.checkpoints[size.name])
            for state in self.states:
                self._convert(state, size, calibration)
        leave_out_repeated(self.states)
        self.say("measuring the machine's ceilings and PyTorch's vectors, the reference")
        for size in self.plan.sizes:
            self._refer(size)

    def _convert(
        self, state: ContestantState, size: models.ModelSize, calibration: list[list[int]]
    ) -> None:
        if state.reason or not self._work_of(size, state):
            return
        try:
            with self._worker(state, size) as worker:
                state.versions = worker.ask("versions")
                state.isa = worker.ask("isa_level")
                seconds = worker.ask("convert", calibration=calibration, trained=size.trained)
                share = worker.ask("w8a16_share")
        except (Absent, WorkerFailed) as problem:
            # Another size may be one that it knows.
            state.absent_from[size.name] = str(problem)
            self.say(f"{state.kind.name} is absent from {size.name}: {problem}")
            if not any(self._work_of(other, state) for other in self.plan.sizes):
                state.reason = str(problem)
            return
        if share is not None:
            state.w8a16_share[size.name] = share
            self.say(f"{state.kind.name}: {share:.1%} of {size.name} stays in w8a16")
        for name, spent in seconds.items():
            if spent > 1:
                self.say(f"converted {size.name} to {name} in {spent:.0f} s")

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
        with self._worker(
            ContestantState(kind, interpreter or Path(sys.executable)), size
        ) as worker:
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

    def _round(self, number: int, size: models.ModelSize, state: ContestantState) -> None:
        plan, name = self.plan, state.kind.name
        if number < plan.effort.import_rounds:
            state.import_seconds.append(
                import_seconds(state.python, state.kind.imports, plan.threads, state.kind.environ)
            )
        run = self.samples.runs.setdefault(
            (name, size.name), {"load_seconds": [], "first_seconds": [], "peak_rss_bytes": []}
        )
        with self._worker(state, size) as worker:
            loaded = worker.ask("load", threads=plan.threads)
            for work in self._work_of(size, state):
                worker.ask("texts", file=str(work.path))
                if number == 0:
                    self._compare(worker, state, work)
                    self._tune(worker, name, work)
                self._modes(worker, number, state, work)
                if work.part.loads(state.kind) and number < plan.effort.load_rounds:
                    answer = worker.ask(
                        "load_test",
                        setting=self.samples.tuning[name, work.key, "burst"]["best"],
                        shares=work.part.load_shares,
                        seconds=plan.effort.load_seconds,
                        seed=SEED,
                        requests=plan.effort.load_requests,
                        most_seconds=plan.effort.most_load_seconds,
                    )
                    self.samples.load.setdefault((name, work.key), []).append(answer)
            run["peak_rss_bytes"].append(worker.ask("peak_rss"))
            run["load_seconds"].append(round(loaded["load"], 4))
            run["first_seconds"].append(round(loaded["first"], 4))

    def _tune(self, worker: WorkerProcess, name: str, work: WorkFile) -> None:
        """Settle each mode's setting, and how many texts fit into its seconds."""
        effort, samples = self.plan.effort, self.samples
        for mode in CALL_MODES:
            needed = mode in work.part.modes or (mode == "burst" and "load" in work.part.modes)
            if not needed:
                continue
            tuned = known_setting(
                *(samples.tuning, self.work, name, work, mode), on_gpu=self.plan.device == "cuda"
            ) or worker.ask("tune", mode=mode, tokens=effort.tune_tokens)
            tuned["texts"] = affordable_texts(
                work, mode, tuned["tokens_per_second"], effort.seconds.get(mode)
            )
            samples.tuning[name, work.key, mode] = tuned

    def _modes(
        self, worker: WorkerProcess, number: int, state: ContestantState, work: WorkFile
    ) -> None:
        name = state.kind.name
        for mode in CALL_MODES:
            if not work.part.measures(mode, number):
                continue
            tuned = self.samples.tuning[name, work.key, mode]
            for scope in work.part.scopes:
                if scope == "engine" and not state.kind.engine:
                    continue
                for _ in range(self.plan.effort.repeats):
                    samples = worker.ask(
                        "measure",
                        mode=mode,
                        scope=scope,
                        setting=tuned["best"],
                        texts=tuned["texts"],
                    )
                    rounds = self.samples.rounds.setdefault((name, work.key, mode, scope), [])
                    rounds.append(samples)

    def _compare(self, worker: WorkerProcess, state: ContestantState, work: WorkFile) -> None:
        reference = self.reference.get(work.key)
        if reference is None:
            return
        expected = reference["end-to-end"].astype(np.float64)
        file = self.folder / "outputs.npz"
        worker.ask("outputs", file=str(file), scopes=list(work.part.scopes))
        with np.load(file) as arrays:
            for scope, vectors in arrays.items():
                self.samples.parity.append(
                    {
                        "contestant": state.kind.name,
                        "workload": work.key,
                        "scope": scope,
                        **agreement(vectors, expected),
                    }
                )

    def _work_of(
        self, size: models.ModelSize, state: ContestantState | None = None
    ) -> list[WorkFile]:
        if state is not None and size.name in state.absent_from:
            return []
        return work_of(self.work, size, state.kind if state else None)

    def _worker(self, state: ContestantState, size: models.ModelSize) -> WorkerProcess:
        checkpoint = self.checkpoints[size.name]
        return WorkerProcess(
            state.python,
            state.kind.name,
            checkpoint.folder,
            checkpoint.converted,
            self.plan.threads,
            state.kind.environ,
            self.folder / f"{state.kind.name}.log",
        )

    # After the last round

    def _result(self, *, unfinished: bool = False) -> dict[str, Any]:
        plan = self.plan
        return {
            "made": {
                "date": result_file.now(),
                **self.commit,
                "kosine": installed_version("kosine"),
                "quick": plan.quick,
                "rounds": plan.effort.rounds,
                "seed": SEED,
                "modes": list(plan.modes),
                "device": plan.device,
                "seconds": dict(plan.effort.seconds),
                "repeats": plan.effort.repeats,
                **({"unfinished": True} if unfinished else {}),
            },
            "machine": machine.describe(plan.threads, plan.gpu),
            "ceilings": self.ceilings,
            "models": {
                size.name: {
                    **size.describe(),
                    "tokenizer": self.checkpoints[size.name].folder.name.removeprefix(
                        f"{size.name}-"
                    ),
                }
                for size in plan.sizes
            },
            "workloads": {work.key: work.describe() for work in self.work},
            "contestants": [state.describe() for state in self.states],
            **self.samples.sections(self.work, self.plan.contestants, self.ceilings),
        }
