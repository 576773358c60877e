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

from kosine_bench.arrivals import poisson_times, serve
from kosine_bench.contestant import Absent, Checkpoint, Contestant, Setting

__all__ = ["main"]

TUNE_BULK_TEXTS = 192
TUNE_BURSTS = 2
WARM_TEXTS = 3
LEAST_REQUESTS, MOST_REQUESTS = 8, 600


def find(name: str) -> Contestant:
    """The contestant called `name`."""
    from kosine_bench.ours import OURS
    from kosine_bench.rivals import RIVALS

    for kind in (*OURS, *RIVALS):
        if kind.name == name:
            return kind()
    raise LookupError(f"no contestant is called {name!r}")


class Worker:
    """Answers requests about one contestant on one checkpoint."""

    def __init__(self, name: str, folder: str, converted: str) -> None:
        self.contestant = find(name)
        self.checkpoint = Checkpoint(Path(folder), Path(converted))
        self.sets: dict[str, Any] = {}

    def versions(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in self.contestant.packages}

    def convert(self, calibration: list[list[int]]) -> dict[str, float]:
        """Seconds that each of the contestant's conversions took."""
        from kosine_bench.convert import convert

        seconds = {}
        for name in self.contestant.converts:
            start = time.perf_counter()
            convert(name, self.checkpoint, calibration)
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
        self.sets = json.loads(Path(file).read_text("utf-8"))
        return sum(len(part["texts"]) for part in self.sets["parts"].values())

    def outputs(self, file: str) -> list[str]:
        """Write the parity texts' vectors, by both ways in; which ways there are."""
        part = self.sets["parts"]["parity"]
        setting = self.contestant.settings("burst")[0]
        vectors: dict[str, Any] = {"end-to-end": self.contestant.encode(part["texts"], setting)}
        if self.contestant.engine:
            vectors["engine"] = self.contestant.encode_ids(part["ids"], setting)
        np.savez(file, **vectors)
        return list(vectors)

    def tune(self, mode: str) -> dict[str, Any]:
        """Try the contestant's settings for `mode` on a part of its texts, keep the fastest."""
        settings = sorted(self.contestant.settings(mode), key=lambda setting: setting.streams)
        if len(settings) == 1:
            return {"best": settings[0].as_dict(), "trials": []}
        part, burst = self.sets["parts"][mode], self.sets["burst"]
        scope = "engine" if self.contestant.engine else "end-to-end"
        size = burst if mode == "burst" else TUNE_BULK_TEXTS
        items = part["ids" if scope == "engine" else "texts"]
        calls = [items[i : i + size] for i in range(0, len(items), size)]
        calls = calls[: TUNE_BURSTS if mode == "burst" else 1]
        tokens = sum(part["lengths"][: sum(map(len, calls))])
        trials = []
        for setting in settings:
            call = self._call(scope, setting)
            call(calls[0])
            best = min(self._time(call, calls) for _ in range(2))
            trials.append({"setting": setting.as_dict(), "tokens_per_second": tokens / best})
        fastest = max(trials, key=lambda trial: trial["tokens_per_second"])
        return {"best": fastest["setting"], "trials": trials}

    def measure(self, mode: str, scope: str, setting: dict[str, Any]) -> dict[str, Any]:
        """Raw samples of one mode: seconds of each call, CPU seconds of all, what they did."""
        part, chosen = self.sets["parts"][mode], Setting(**setting)
        items, lengths = part["ids" if scope == "engine" else "texts"], part["lengths"]
        size = {"single": 1, "burst": self.sets["burst"], "bulk": len(items)}[mode]
        calls = [items[i : i + size] for i in range(0, len(items), size)]
        call = self._call(scope, chosen)
        warm = calls[:WARM_TEXTS] if mode == "single" else [items[: 2 * chosen.batch_size]]
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
        self, setting: dict[str, Any], shares: Sequence[float], seconds: float, seed: int
    ) -> dict[str, Any]:
        """Capacity with every text waiting at once, then latencies at shares of it."""
        part, most = self.sets["parts"]["burst"], self.sets["burst"]
        call = self._call("end-to-end", Setting(**setting))
        texts = part["texts"]
        self._time(call, [texts[:most]])
        latencies, _ = serve(call, texts, np.zeros(len(texts)), most)
        capacity = len(texts) / max(latencies)
        points = []
        for i, share in enumerate(shares):
            rate = share * capacity
            count = int(min(max(rate * seconds, LEAST_REQUESTS), MOST_REQUESTS))
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
        from kosine_bench.ceilings import measure

        return measure(threads)

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
        *("peak_rss", "ceilings"),
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
