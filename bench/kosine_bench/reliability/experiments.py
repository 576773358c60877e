"""The batcher's promises as experiments: each returns its figures, for the suite and the soak.

Every experiment runs real threads on a fake encoder, whose vectors tell whose they are. Sizes
are arguments: the suite runs them in seconds, `reliability.soak` at full size.
"""

from __future__ import annotations

import ast
import asyncio
import gc
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np

import kosine.batcher
from kosine.batcher import Batcher
from kosine.errors import BatcherError, DeadlineExceeded, QueueFull, WorkerCrashed
from kosine.packed import Float32
from kosine.testing import (
    FAULT_MARKS,
    FakeBackend,
    FakeCrash,
    FakeEncoder,
    Fault,
    linear_cost,
)
from kosine_bench.load.generator import kept_deadline

__all__ = [
    "Figures",
    "Killer",
    "cancel_storm",
    "kills",
    "memory_growth",
    "mixups",
    "overload",
    "poison",
    "resident_bytes",
    "within_overload_bar",
]

Figures = dict[str, Any]
PATIENCE_S = 60.0
WIDE: dict[str, Any] = {
    "max_queue_tokens": 1 << 24,
    "max_queue_requests": 1 << 20,
    "max_queue_bytes": 1 << 28,
}


def lean_backend(**options: Any) -> FakeBackend:
    """A fake backend that does not keep a list of its batches."""
    backend = FakeBackend(**options)
    backend.keep_batches = False
    return backend


def resident_bytes() -> int:
    """This process's resident set, in bytes (Linux)."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - not a real file
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def submit_patiently(submit: Callable[[], Any]) -> Any:
    """Try again after as long as a full queue asks for."""
    while True:
        try:
            return submit()
        except QueueFull as error:
            time.sleep(min(error.retry_after, 0.05))


@contextmanager
def in_threads(work: Callable[[int], None], count: int) -> Iterator[None]:
    """Run `work(number)` in threads beside the block; errors surface at its end."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def mixups(
    requests: int = 100_000, threads: int = 8, encoder: FakeEncoder | None = None
) -> Figures:
    """Tagged requests from threads and an event loop; how many got another's vector."""
    encoder = encoder or FakeEncoder(lean_backend())
    share = requests // (threads + 1)
    swaps = [0] * (threads + 1)

    def check(slot: int, texts: Sequence[str], rows: Sequence[Float32]) -> None:
        right = FakeEncoder(lean_backend()).encode(texts)
        swaps[slot] += int((np.stack(rows) != right).any(axis=1).sum())

    with Batcher(encoder, **WIDE) as batcher:

        def caller(number: int) -> None:
            chance = random.Random(number)
            done = 0
            while done < share:
                count = min(chance.randint(1, 120), share - done)
                texts = [f"thread {number} request {done + i}" for i in range(count)]
                kind = chance.randrange(3)
                if kind == 0:
                    rows = [future.result(PATIENCE_S) for future in batcher.submit_many(texts)]
                elif kind == 1:
                    rows = list(batcher.submit(texts).result(PATIENCE_S))
                else:
                    futures = [batcher.submit(text) for text in texts]
                    rows = [future.result(PATIENCE_S) for future in futures]
                check(number, texts, rows)
                done += count

        async def loop_caller() -> None:
            done = 0
            while done < share:
                count = min(100, share - done)
                texts = [f"loop request {done + i}" for i in range(count)]
                rows = await asyncio.gather(*[batcher.aencode(text) for text in texts])
                check(threads, texts, rows)
                done += count

        started = time.perf_counter()
        with in_threads(caller, threads):
            asyncio.run(loop_caller())
        seconds = time.perf_counter() - started
    return {
        "requests": share * (threads + 1),
        "threads": threads,
        "swaps": sum(swaps),
        "seconds": round(seconds, 2),
    }


def cancel_storm(cancels: int = 10_000, threads: int = 4) -> Figures:
    """Cancel at random stages; what is still held afterwards, and whether the worker lives."""
    backend = lean_backend(cost=linear_cost(2e-7, 2e-4))
    cancelled = [0] * threads
    wrong = [0] * threads
    with Batcher(FakeEncoder(backend), max_batch_tokens=512, **WIDE) as batcher:

        def caller(number: int) -> None:
            chance = random.Random(number)
            while cancelled[number] < cancels // threads:
                texts = [f"cancelled {chance.random()}" for _ in range(40)]
                kind = chance.randrange(3)
                if kind == 0:
                    futures: Sequence[Future[Any]] = batcher.submit_many(texts)
                elif kind == 1:
                    futures = [batcher.submit(text) for text in texts]
                else:
                    futures = [batcher.submit(texts)]
                time.sleep(chance.choice((0.0, 0.0, 1e-4, 1e-3)))
                for future in futures:
                    if chance.random() < 0.8 and future.cancel():
                        cancelled[number] += 1
                        wrong[number] += not future.cancelled()
                for future in futures:
                    if not future.cancelled():
                        future.result(PATIENCE_S)

        with in_threads(caller, threads):
            pass
        alive = batcher.submit("alive").result(PATIENCE_S).shape == (8,)
        stats, health = batcher.stats(), batcher.health()
    return {
        "cancelled": sum(cancelled),
        "cancelled_counted": stats.cancelled,
        "not_really_cancelled": sum(wrong),
        "held_requests": stats.queue_requests,
        "held_tokens": stats.queue_tokens,
        "held_bytes": stats.queue_bytes,
        "worker_alive": alive and health.ok,
        "worker_crashes": health.worker_crashes,
    }


def poison(batches: int = 500, texts_per_batch: int = 32, seed: int = 0) -> Figures:
    """Guilty texts in many batches, of each kind; how many innocent texts failed."""
    kinds = [mark for mark, fault in FAULT_MARKS.items() if fault in POISONS]
    chance = random.Random(seed)
    innocent_failures = guilty_answers = wrong = most_runs = 0
    backend = FakeBackend(faults=FAULT_MARKS)
    encoder = FakeEncoder(backend)
    with Batcher(encoder, **WIDE) as batcher:
        for mark in kinds:
            for number in range(batches):
                texts = [f"batch {number} text {i}" for i in range(texts_per_batch)]
                guilty = set(chance.sample(range(texts_per_batch), chance.choice((1, 1, 1, 2, 5))))
                for position in guilty:
                    texts[position] += chr(mark)
                backend.batches.clear()
                futures = batcher.submit_many(texts)
                wait(futures, PATIENCE_S)
                if len(guilty) == 1:
                    most_runs = max(most_runs, len(backend.batches))
                right = encoder.encode(texts)
                for position, future in enumerate(futures):
                    failed = future.exception(PATIENCE_S) is not None
                    innocent_failures += failed and position not in guilty
                    guilty_answers += not failed and position in guilty
                    if not failed:
                        wrong += not np.array_equal(future.result(), right[position])
        stats = batcher.stats()
    return {
        "batches": batches * len(kinds),
        "texts": batches * len(kinds) * texts_per_batch,
        "innocent_failures": innocent_failures,
        "guilty_answers": guilty_answers,
        "wrong": wrong,
        "most_runs_for_one_guilty": most_runs,
        "bisections": stats.bisections,
    }


POISONS = (Fault.RAISE, Fault.NAN, Fault.SHAPE)


class Killer:
    """Kills the batcher's threads between any two lines of its own code.

    A trace function raises, so a kill always lands in the batcher and never in the standard
    library or in NumPy. Use as a context manager around the batcher's whole life: only threads
    that start inside are traced.
    """

    def __init__(self) -> None:
        self._folder = str(Path(kosine.batcher.__file__).parent)
        self._doomed: set[str] = set()
        self._guarded: dict[str, frozenset[int]] = {}

    def __enter__(self) -> Self:
        threading.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        threading.settrace(None)

    def doom(self, name: str) -> None:
        """The thread of that name dies at its next line."""
        self._doomed.add(name)

    def _trace(self, frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        filename = frame.f_code.co_filename
        if not filename.startswith(self._folder):
            return None
        if event == "line" and self._doomed:
            name = threading.current_thread().name
            if name in self._doomed and frame.f_lineno not in self._with_lines(filename):
                self._doomed.discard(name)
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


def kills(count: int = 60, seconds: float = 60.0, threads: int = 4, seed: int = 0) -> Figures:
    """Kill the worker again and again, from inside and from outside, under load."""
    backend = lean_backend(cost=linear_cost(1e-6, 1e-3), faults=FAULT_MARKS)
    encoder = FakeEncoder(backend)
    stop = threading.Event()
    crashed = [0] * threads
    hung = [0] * threads
    wrong = [0] * threads
    answered = [0] * threads
    with Killer() as killer, Batcher(encoder, max_batch_tokens=512, **WIDE) as batcher:

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

        chance = random.Random(seed)
        killed = 0
        with in_threads(caller, threads):
            try:
                for _ in range(count):
                    time.sleep(chance.uniform(0.5, 1.5) * seconds / count)
                    if chance.random() < 0.5:
                        killer.doom(chance.choice(("kosine-runner", "kosine-preparer")))
                    else:
                        batcher.submit("kill \x14").exception(PATIENCE_S)
                    killed += 1
            finally:
                stop.set()
        alive = batcher.submit("alive").result(PATIENCE_S).shape == (8,)
        health, stats = batcher.health(), batcher.stats()
        names = [thread.name for thread in threading.enumerate()]
        workers = sum(name in ("kosine-runner", "kosine-preparer") for name in names)
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


def overload(factor: float = 2.0, seconds: float = 10.0, deadline: float = 0.3) -> Figures:
    """Offer a multiple of the measured capacity; what is served, refused, and how fast."""
    backend = lean_backend(cost=linear_cost(5e-5, 1e-3))
    bound = 16_384
    chance = random.Random(0)
    texts = [chance.choice("abc") * chance.randint(5, 63) for _ in range(512)]
    mean_tokens = sum(len(text) + 1 for text in texts) / len(texts)
    accepted: list[tuple[float, int]] = []
    refusals: list[float] = []
    late = most_queued = offered = 0
    with Batcher(FakeEncoder(backend), max_batch_tokens=1_024, max_queue_tokens=bound) as batcher:
        capacity = _capacity_tps(batcher, texts)
        rate = capacity * factor / mean_tokens
        lock = threading.Lock()

        def answered(future: Future[Any], arrived: float, tokens: int) -> None:
            nonlocal late
            took = time.monotonic() - arrived
            with lock:
                if future.exception() is None:
                    accepted.append((took, tokens))
                elif isinstance(future.exception(), DeadlineExceeded):
                    late += 1
                else:
                    raise RuntimeError("failed under overload") from future.exception()

        started = time.monotonic()
        due = started
        while due < started + seconds:
            due += chance.expovariate(rate)
            delay = due - time.monotonic()
            if delay > 0:
                time.sleep(delay)
            text = texts[offered % len(texts)]
            offered += 1
            arrived = time.monotonic()
            try:
                future = batcher.submit(text, deadline=deadline)
            except QueueFull:
                refusals.append(time.monotonic() - arrived)
            else:
                future.add_done_callback(partial(answered, arrived=arrived, tokens=len(text) + 1))
            most_queued = max(most_queued, batcher._pipeline.schedule.tokens)
        ended = time.monotonic()
    latencies = [took for took, _ in accepted]
    served = sum(tokens for _, tokens in accepted)
    return {
        "factor": factor,
        "offered_factor": round(offered * mean_tokens / (ended - started) / capacity, 2),
        "capacity_tokens_per_s": round(capacity),
        "goodput_over_capacity": round(served / (ended - started) / capacity, 4),
        "accepted": len(accepted),
        "refused": len(refusals),
        "admitted_but_late": late,
        "deadline_s": deadline,
        "accepted_p99_s": round(float(np.percentile(latencies, 99)), 4),
        "refusal_p99_s": round(float(np.percentile(refusals, 99)), 6) if refusals else 0.0,
        "most_queue_tokens": most_queued,
        "max_queue_tokens": bound,
    }


def within_overload_bar(figures: Figures) -> bool:
    """90 % of capacity served, 99 % of the accepted in time, quick refusals, a bounded queue."""
    late = figures["admitted_but_late"]
    return bool(
        figures["goodput_over_capacity"] >= 0.9
        and kept_deadline(
            figures["accepted_p99_s"],
            figures["deadline_s"],
            accepted=figures["accepted"] + late,
            late=late,
        )
        and figures["refusal_p99_s"] <= 0.020
        and figures["most_queue_tokens"] <= figures["max_queue_tokens"]
    )


def _capacity_tps(batcher: Batcher, texts: Sequence[str], seconds: float = 1.0) -> float:
    """Tokens per second with a queue that never runs dry, deadlines and refusals aside."""
    before = batcher.stats().batch_tokens
    started = time.monotonic()
    waiting: list[Future[Any]] = []
    while time.monotonic() < started + seconds:
        try:
            waiting += batcher.submit_many(texts[:64])
        except QueueFull:
            waiting.pop(0).result(PATIENCE_S)
    ended = time.monotonic()
    tokens = batcher.stats().batch_tokens - before
    wait(waiting, PATIENCE_S)
    return tokens / (ended - started)


def memory_growth(requests: int = 200_000, leak: bool = False) -> Figures:
    """Resident growth over many requests after a warm-up, faults and cancellations among them.

    Args:
        requests: How many.
        leak: Keep a little of every request, as a bug might: the negative control.
    """
    leaked: list[object] = []
    encoder = FakeEncoder(lean_backend(faults=FAULT_MARKS))
    with Batcher(encoder, **WIDE) as batcher:

        def serve(count: int) -> None:
            for number in range(count // 100):
                texts = [f"request {number} {i} " + "x" * 60 for i in range(100)]
                if number % 10 == 0:
                    texts[7] += "\x11"
                if number % 2:
                    futures = batcher.submit_many(texts, deadline=60.0)
                else:
                    futures = [batcher.submit(text, deadline=60.0) for text in texts]
                futures[3].cancel()
                for future in futures:
                    try:
                        future.result(PATIENCE_S)
                    except (RuntimeError, CancelledError, BatcherError):
                        continue
                if leak:
                    leaked.append(texts)

        serve(max(10_000, requests // 10))
        gc.collect()
        before = resident_bytes()
        serve(requests)
        gc.collect()
        grown = resident_bytes() - before
    return {"requests": requests, "leak": leak, "growth_mib": round(grown / 2**20, 2)}
