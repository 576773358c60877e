"""How long a run will go on: reckoned from the machine's peaks, corrected by what was seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kosine_bench.contestants.contestant import Contestant
from kosine_bench.measuring.arrivals import num_requests
from kosine_bench.measuring.contestant_state import ContestantState
from kosine_bench.measuring.models import ModelSize, flops_per_text, weight_bytes
from kosine_bench.measuring.plan import Effort
from kosine_bench.measuring.work_file import WorkFile
from kosine_bench.measuring.worker import MOST_REQUESTS, OWN_WARM_UP_SECONDS, WARM_TOKENS

__all__ = ["Step", "TimeEstimate", "clock", "part_seconds", "start_seconds", "work_of"]

# Of the peak, what runtimes reach on real lengths; and what a worker loads a second.
REACHED = {"float32": 0.65, "bfloat16": 0.5, "float16": 0.3, "int8": 0.35, "w8a16": 0.5}
READ_BYTES_PER_SECOND = 5e8
TRIED_SETTINGS = {"burst": 4, "bulk": 3}
Step = tuple[int, ModelSize, ContestantState]
"""Round, counted from 0; model size; who."""


def work_of(
    work: Sequence[WorkFile], size: ModelSize, kind: type[Contestant] | None = None
) -> list[WorkFile]:
    """The work on `size`; with `kind`, only what it takes part in."""
    return [
        one
        for one in work
        if one.size is size and (kind is None or kind.name not in one.part.omits)
    ]


class TimeEstimate:
    """Seconds that steps of a run will take."""

    def __init__(
        self, effort: Effort, work: Sequence[WorkFile], ceilings: Mapping[str, Any]
    ) -> None:
        self._effort = effort
        self._work = list(work)
        self._ceilings = ceilings
        self._spent: dict[str, list[float]] = {}

    def saw(self, step: Step, seconds: float) -> None:
        """Take note of what `step` really took."""
        pair = self._spent.setdefault(step[2].kind.name, [0.0, 0.0])
        pair[0] += seconds
        pair[1] += self._guess(*step)

    def of(self, steps: Sequence[Step]) -> float:
        """Seconds of `steps`: as reckoned, corrected by what was seen so far."""
        spent, guessed = (sum(pair) for pair in zip(*self._spent.values(), (0.0, 0.0), strict=True))
        overall = spent / guessed if guessed else 1.0
        total = 0.0
        for number, size, state in steps:
            if state.reason:
                continue
            seen = self._spent.get(state.kind.name)
            factor = seen[0] / seen[1] if seen else overall
            total += factor * self._guess(number, size, state)
        return total

    def parts(self, steps: Sequence[Step]) -> dict[str, float]:
        """Seconds as reckoned, by workload and mode; `processes` is their starts and ends."""
        parts: dict[str, float] = {}
        for number, size, state in steps:
            if state.reason:
                continue
            work = work_of(self._work, size, state.kind)
            parts["processes"] = parts.get("processes", 0.0) + start_seconds(state.kind, work[0])
            for one in work:
                for what, seconds in self._part(number, one, state.kind).items():
                    key = f"{one.key} {what}"
                    parts[key] = parts.get(key, 0.0) + seconds
        return parts

    def say(self, steps: Sequence[Step], say: Callable[[str], None]) -> None:
        """The whole and its parts, before the first round."""
        parts = self.parts(steps)
        say(f"about {clock(sum(parts.values()))} of measuring")
        for what, seconds in parts.items():
            say(f"  {what:24} {clock(seconds)}")

    def _guess(self, number: int, size: ModelSize, state: ContestantState) -> float:
        work = work_of(self._work, size, state.kind)
        return start_seconds(state.kind, work[0]) + sum(
            sum(self._part(number, one, state.kind).values()) for one in work
        )

    def _part(self, number: int, work: WorkFile, kind: type[Contestant]) -> dict[str, float]:
        earlier = self._work[: self._work.index(work)]
        settled = any(other.workload is work.workload for other in earlier)
        settled = settled and not work.size.trained
        return part_seconds(kind, work, self._effort, self._ceilings, number, settled=settled)


def clock(seconds: float) -> str:
    """Seconds as people read them: `40 s`, `3 min 05 s`, `1 h 02 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def start_seconds(kind: type[Contestant], work: WorkFile) -> float:
    """Seconds of one process of `kind` before and after what it measures."""
    return kind.start_seconds + weight_bytes(work.size, "float32") / READ_BYTES_PER_SECOND


def part_seconds(
    kind: type[Contestant],
    work: WorkFile,
    effort: Effort,
    ceilings: Mapping[str, Any],
    number: int,
    *,
    settled: bool = False,
) -> dict[str, float]:
    """Seconds that `kind` spends on `work` in round `number`, by mode; `tune` is all trials.

    Args:
        settled: Whether the settings are known from another size.
    """
    matrix = ceilings.get("matrix", {})
    peak = (matrix.get(kind.precision) or matrix.get("float32") or {"flops": 1e12})["flops"]
    speed = REACHED[kind.precision] * peak
    one = flops_per_text(work.size, round(work.workload.mean)) / speed
    scopes = [scope for scope in work.part.scopes if scope != "engine" or kind.engine]
    seconds: dict[str, float] = {}
    for mode in work.part.modes:
        if not work.part.measures(mode, number) or mode == "load":
            continue
        total = work.flops(mode) / speed
        least = work.flops(mode, work.least(mode)) / speed
        budget = effort.seconds.get(mode, total)
        warm = (3 if mode == "single" else WARM_TOKENS / work.workload.mean) * one
        if work.workload.equal:
            warm = one
        seconds[mode] = len(scopes) * (warm + min(total, max(budget, least)))
        if kind.device == "cuda":  # Calls wait for the GPU: the time goes by calls, not operations.
            seconds[mode] = (len(scopes) * effort.repeats + 2) * budget
            if number == 0:
                seconds["tune"] = seconds.get("tune", 0.0) + TRIED_SETTINGS.get(mode, 1) * 0.2
            continue
        if number == 0 and not (settled or (mode == "bulk" and work.settles_bulk)):
            tokens = max(effort.tune_tokens, work.workload.burst * work.workload.mean)
            first = one if mode == "single" else tokens / work.workload.mean * one
            again = 6 * one if mode == "single" else first
            trial = first if first >= OWN_WARM_UP_SECONDS else first + again
            tries = 1
            if not kind.ours and mode != "single":
                tries = 2 if work.workload.equal else TRIED_SETTINGS[mode]
            seconds["tune"] = seconds.get("tune", 0.0) + tries * trial
    if work.part.loads(kind) and number < effort.load_rounds:
        seconds["load"] = len(work.lengths["burst"]) * one
        for share in work.part.load_shares:
            rate = share / one
            most = (effort.load_requests, effort.most_load_seconds, MOST_REQUESTS)
            seconds["load"] += num_requests(rate, effort.load_seconds, *most) / rate
    if number == 0:
        seconds["check"] = len(scopes) * len(work.lengths["parity"]) * one
    return seconds
