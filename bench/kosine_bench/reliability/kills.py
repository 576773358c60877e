"""Killing the batcher's threads, from inside and from outside, under load."""

from __future__ import annotations

import ast
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np

import kosine
from kosine import Batcher
from kosine.errors import WorkerCrashed
from kosine.testing import FAULT_MARKS, FakeCrash, FakeEncoder, linear_cost
from kosine_bench.load.generator import UNBOUNDED_QUEUE
from kosine_bench.reliability.harness import PATIENCE_S, Figures, in_threads, lean_backend

__all__ = ["THREADS", "Killer", "kills"]

# Where the batcher's own code is, and what its threads are called.
CODE = Path(kosine.__file__).parent
THREADS = ("kosine-runner", "kosine-timer")
CALLERS = 4


class Killer:
    """Kills the batcher's threads between any two lines of its own code.

    A trace function raises, so a kill always lands in the batcher and never in the standard
    library or in NumPy. Use as a context manager around the batcher's whole life: only threads
    that start inside are traced.
    """

    def __init__(self) -> None:
        self._folder = str(CODE)
        self._to_kill: set[str] = set()
        self._guarded: dict[str, frozenset[int]] = {}

    def __enter__(self) -> Self:
        threading.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        threading.settrace(None)

    def kill(self, name: str) -> None:
        """The thread of that name dies at its next line."""
        self._to_kill.add(name)

    def _trace(self, frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        filename = frame.f_code.co_filename
        if not filename.startswith(self._folder):
            return None
        if event == "line" and self._to_kill:
            name = threading.current_thread().name
            if name in self._to_kill and frame.f_lineno not in self._with_lines(filename):
                self._to_kill.discard(name)
                raise FakeCrash("killed from outside")
        return self._trace

    def _with_lines(self, filename: str) -> frozenset[int]:
        """Lines of `with` itself, where leaving the block is traced before the lock is released:
        a point at which the interpreter never interrupts."""
        lines = self._guarded.get(filename)
        if lines is None:
            tree = ast.parse(Path(filename).read_text("utf-8"))
            lines = frozenset(n.lineno for n in ast.walk(tree) if isinstance(n, ast.With))
            self._guarded[filename] = lines
        return lines


def kills(count: int = 60, seconds: float = 60.0) -> Figures:
    """Kill the worker again and again, from inside and from outside, under load."""
    backend = lean_backend(cost=linear_cost(1e-6, 1e-3), faults=FAULT_MARKS)
    encoder = FakeEncoder(backend)
    stop = threading.Event()
    crashed = [0] * CALLERS
    hung = [0] * CALLERS
    wrong = [0] * CALLERS
    answered = [0] * CALLERS
    with Killer() as killer, Batcher(encoder, max_batch_tokens=512, **UNBOUNDED_QUEUE) as batcher:

        def caller(number: int) -> None:
            chance = random.Random(number)
            while not stop.is_set():
                texts = [f"caller {number} {chance.random()}" for _ in range(chance.randint(1, 40))]
                if chance.random() < 0.5:
                    futures = batcher.submit_many(texts)
                else:
                    futures = [batcher.submit(text) for text in texts]
                right = encoder.encode(texts)
                for future, row in zip(futures, right, strict=True):
                    try:
                        wrong[number] += not np.array_equal(future.result(PATIENCE_S), row)
                        answered[number] += 1
                    except WorkerCrashed:
                        crashed[number] += 1
                    except TimeoutError:
                        hung[number] += 1

        chance = random.Random(0)
        killed = 0
        with in_threads(caller, CALLERS):
            try:
                for _ in range(count):
                    time.sleep(chance.uniform(0.5, 1.5) * seconds / count)
                    if chance.random() < 0.5:
                        killer.kill(chance.choice(THREADS))
                    else:
                        batcher.submit("kill \x14").exception(PATIENCE_S)
                    killed += 1
            finally:
                stop.set()
        alive = batcher.submit("alive").result(PATIENCE_S).shape == (8,)
        health, stats = batcher.health(), batcher.stats()
        names = [thread.name for thread in threading.enumerate()]
        workers = sum(name in THREADS for name in names)
    return {
        "workers": workers,
        "kills": killed,
        "crashes_seen": health.worker_crashes,
        "last_crash": health.last_crash,
        "answered": sum(answered),
        "failed_with_worker_crashed": sum(crashed),
        "hung": sum(hung),
        "wrong": sum(wrong),
        "held_tokens": stats.queue_tokens,
        "worker_alive": alive and health.ok,
    }
