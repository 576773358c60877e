"""The child process that holds one contestant, driven by JSON lines on standard input.

Each line is one request, `{"do": ...}`; each answer is one line, `{"ok": ...}`, or
`{"absent": reason}`, or `{"error": kind, "message": ...}`. Whatever libraries print goes to
standard error.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kosine_bench.contestants.contestant import Absent, Checkpoint, Setting, installed_version
from kosine_bench.contestants.registry import find
from kosine_bench.measuring.arrivals import num_requests, poisson_times, serve

__all__ = ["MOST_REQUESTS", "OWN_WARM_UP_SECONDS", "WARM_TOKENS", "Worker", "main"]

TUNE_TOKENS = 4_096
SINGLE_TRIALS = 6
OWN_WARM_UP_SECONDS = 1.5
WARM_TEXTS = 3
WARM_TOKENS = 768
GPU_WARM_PASSES = 2
MOST_TUNING_BURSTS = 12
MOST_REQUESTS, MOST_GPU_REQUESTS = 600, 3_000


class Worker:
    """Answers requests about one contestant on one checkpoint."""

    def __init__(self, name: str, folder: str, converted: str) -> None:
        self.contestant = find(name)
        self.checkpoint = Checkpoint(Path(folder), Path(converted))
        self.on_gpu = self.contestant.device == "cuda"
        # How often a call is made before it counts, beyond a few texts to wake up.
        self.passes_before = GPU_WARM_PASSES if self.on_gpu else int(self.contestant.keeps_shapes)
        self.work = ""
        self.warmed: set[tuple[Any, ...]] = set()
        self.sets: dict[str, Any] = {}

    def versions(self) -> dict[str, str]:
        return {name: installed_version(name) for name in self.contestant.packages}

    def isa_level(self) -> str | None:
        return self.contestant.isa_level()

    def w8a16_share(self) -> float | None:
        return self.contestant.w8a16_share(self.checkpoint)

    def convert(self, calibration: list[list[int]], trained: bool = True) -> dict[str, float]:
        """Seconds that each of the contestant's conversions took.

        Args:
            trained: Whether the weights are trained and not random ones.
        """
        from kosine_bench.contestants.conversion import convert

        seconds = {}
        checkpoint = replace(self.checkpoint, trained=trained)
        for name in self.contestant.converts:
            start = time.perf_counter()
            convert(name, checkpoint, calibration)
            seconds[name] = time.perf_counter() - start
        return seconds

    def load(self, threads: int) -> dict[str, float]:
        """Seconds to load, and seconds of the first text after that."""
        start = time.perf_counter()
        self.contestant.load(self.checkpoint, threads)
        loaded = time.perf_counter()
        self.contestant.encode(["첫 문장입니다."], self.contestant.settings("single")[0])
        return {"load": loaded - start, "first": time.perf_counter() - loaded}

    def texts(self, file: str) -> int:
        """Read the workload's texts; the number of them."""
        self.work = file
        self.sets = json.loads(Path(file).read_text("utf-8"))
        return sum(len(part["texts"]) for part in self.sets["parts"].values())

    def outputs(self, file: str, scopes: Sequence[str] = ("end-to-end", "engine")) -> list[str]:
        """Write the parity texts' vectors, by each way in of `scopes` that there is; which."""
        part = self.sets["parts"]["parity"]
        setting = self.contestant.settings("burst")[0]
        vectors: dict[str, Any] = {}
        if "end-to-end" in scopes:
            vectors["end-to-end"] = self.contestant.encode(part["texts"], setting)
        if "engine" in scopes and self.contestant.engine:
            vectors["engine"] = self.contestant.encode_ids(part["ids"], setting)
        np.savez(file, **vectors)
        return list(vectors)

    def tune(self, mode: str, tokens: int = TUNE_TOKENS) -> dict[str, Any]:
        """Try the contestant's settings for `mode` on about `tokens` tokens, keep the fastest.

        Returns:
            `best` setting, its `tokens_per_second`, and every trial.
        """
        part, burst = self.sets["parts"][mode], self.sets["burst"]
        scope = "engine" if self.contestant.engine else "end-to-end"
        items, lengths = part["ids" if scope == "engine" else "texts"], part["lengths"]
        within = max(int(np.searchsorted(np.cumsum(lengths), tokens, "right")), 1)
        size = {"single": 1, "burst": burst, "bulk": max(within, 2 * burst)}[mode]
        bursts = min(max(within // burst, 1), MOST_TUNING_BURSTS)
        count = {"single": SINGLE_TRIALS, "burst": bursts, "bulk": 1}[mode]
        calls = [items[i : i + size] for i in range(0, len(items), size)][:count]
        used = lengths[: sum(map(len, calls))]
        asked = sorted(self.contestant.settings(mode), key=lambda setting: setting.streams)
        trials: list[dict[str, Any]] = []
        if mode != "single":
            asked = list(dict.fromkeys(one.within(len(calls[0])) for one in asked))
        for tried in asked:
            call = self._call(scope, tried)
            self._time(call, calls * self.passes_before)
            first = self._time(call, calls[:1])
            # A call as long as this needs no second one to hide what the first one sets up.
            if first >= OWN_WARM_UP_SECONDS:
                speed = sum(used[: len(calls[0])]) / first
            else:
                speed = sum(used) / self._time(call, calls)
            trials.append({"setting": tried.as_dict(), "tokens_per_second": speed})
        fastest = max(trials, key=lambda trial: trial["tokens_per_second"])
        return {
            "best": fastest["setting"],
            "tokens_per_second": fastest["tokens_per_second"],
            "trials": trials,
        }

    def measure(
        self, mode: str, scope: str, setting: dict[str, Any], texts: int | None = None
    ) -> dict[str, Any]:
        """Raw samples of one mode: seconds of each call, CPU seconds of all, what they did.

        Args:
            texts: How many of the mode's texts are measured; all of them by default.
        """
        part, chosen = self.sets["parts"][mode], Setting(**setting)
        items = part["ids" if scope == "engine" else "texts"][:texts]
        lengths = part["lengths"][:texts]
        size = {"single": 1, "burst": self.sets["burst"], "bulk": len(items)}[mode]
        calls = [items[i : i + size] for i in range(0, len(items), size)]
        call = self._call(scope, chosen)
        within = max(int(np.searchsorted(np.cumsum(lengths), WARM_TOKENS, "right")), 1)
        warm = calls[: min(within, WARM_TEXTS)] if mode == "single" else [calls[0][:within]]
        if self.passes_before:
            # Kernels are chosen, or built, per shape, so each shape comes beforehand; what tokens
            # go through as ids is warm for texts too, but for their first call.
            key = (self.work, mode, chosen, texts)
            if (*key, scope) in self.warmed:
                warm = []
            else:
                warm = calls[:1] if key in self.warmed else calls * self.passes_before
            self.warmed |= {key, (*key, scope)}
        self._time(call, warm)
        gc.collect()
        cpu = self.contestant.cpu_seconds()
        seconds = [self._time(call, [one]) for one in calls]
        cpu = self.contestant.cpu_seconds() - cpu
        if scope == "end-to-end" and self.contestant.sorts:
            chosen = replace(chosen, order="length")
        computed = sum(
            self.contestant.computed_tokens(lengths[i : i + size], chosen)
            for i in range(0, len(items), size)
        )
        return {
            "seconds": [round(second, 7) for second in seconds],
            "cpu_seconds": round(cpu, 4),
            "sentences": len(items),
            "tokens": sum(lengths),
            "computed_tokens": computed,
        }

    def load_test(
        self,
        setting: dict[str, Any],
        shares: Sequence[float],
        seconds: float,
        seed: int,
        requests: int = 0,
        most_seconds: float = 0.0,
    ) -> dict[str, Any]:
        """Capacity with every text waiting at once, then latencies at shares of it.

        Args:
            seconds, requests, most_seconds: How much each share measures; see `num_requests`.
        """
        part, most = self.sets["parts"]["burst"], self.sets["burst"]
        call = self._call("end-to-end", Setting(**setting))
        texts = part["texts"]
        self._time(call, [texts[:most]])
        latencies, _ = serve(call, texts, np.zeros(len(texts)), most)
        capacity = len(texts) / max(latencies)
        points = []
        for i, share in enumerate(shares):
            rate = share * capacity
            most_requests = MOST_GPU_REQUESTS if self.on_gpu else MOST_REQUESTS
            count = num_requests(rate, seconds, requests, most_seconds, most_requests)
            asked = [texts[k % len(texts)] for k in range(count)]
            gc.collect()
            cpu = self.contestant.cpu_seconds()
            latencies, batches = serve(call, asked, poisson_times(rate, count, seed + i), most)
            points.append(
                {
                    "share": share,
                    "rate": rate,
                    "latencies": [round(latency, 5) for latency in latencies],
                    "batches": batches,
                    "cpu_seconds": round(self.contestant.cpu_seconds() - cpu, 4),
                }
            )
        return {"capacity": capacity, "points": points}

    def peak_rss(self) -> int:
        return self.contestant.peak_rss()

    def ceilings(self, threads: int) -> dict[str, Any]:
        from kosine_bench.measuring import ceilings

        return ceilings.measure_gpu() if self.on_gpu else ceilings.measure_cpu(threads)

    def _call(self, scope: str, setting: Setting) -> Callable[[Any], object]:
        self.contestant.apply(setting)
        encode: Callable[[Any, Setting], object] = (
            self.contestant.encode_ids if scope == "engine" else self.contestant.encode
        )
        return lambda items: encode(items, setting)

    def _time(self, call: Callable[[Any], object], calls: Sequence[Any]) -> float:
        start = time.perf_counter()
        for items in calls:
            call(items)
        return time.perf_counter() - start


REQUESTS = frozenset(
    {
        *("versions", "convert", "load", "texts", "outputs", "tune", "measure", "load_test"),
        *("isa_level", "w8a16_share", "peak_rss", "ceilings"),
    }
)


def main(name: str, folder: str, converted: str) -> int:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker(name, folder, converted)
    for line in sys.stdin:
        request = json.loads(line)
        verb = request.pop("do")
        try:
            if verb not in REQUESTS:
                raise LookupError(f"no request is called {verb!r}")
            answer = {"ok": getattr(worker, verb)(**request)}
        except Absent as absent:
            answer = {"absent": str(absent)}
        except (ImportError, importlib.metadata.PackageNotFoundError) as missing:
            answer = {"absent": f"{type(missing).__name__}: {missing}"}
        except Exception as error:  # noqa: BLE001  one contestant's failure is a line in the report
            traceback.print_exc()
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), file=answers, flush=True)
    worker.contestant.close()
    return 0
