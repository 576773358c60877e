"""The gate around captures: many share it, or one is alone."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kosine.backends.capture_gate import CaptureGate


def test_one_alone_or_many_together():
    gate = CaptureGate()
    inside, most, broken = {"shared": 0, "alone": 0}, [0], []
    lock = threading.Lock()

    def enter(kind, hold):
        with hold():
            with lock:
                inside[kind] += 1
                most[0] = max(most[0], inside["shared"])
                if inside["alone"] and inside["shared"] + inside["alone"] > 1:
                    broken.append(dict(inside))
            time.sleep(0.002)
            with lock:
                inside[kind] -= 1

    def work(number):
        for i in range(20):
            alone = (number + i) % 5 == 0
            enter(*(("alone", gate.exclusive) if alone else ("shared", gate.shared)))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert not broken
    assert most[0] > 1


def test_a_thread_that_is_inside_passes():
    gate = CaptureGate()
    with gate.exclusive(), gate.shared():
        pass
    with gate.shared():
        waiting = threading.Thread(target=lambda: gate.exclusive().__enter__())
        waiting.start()
        while not gate._waiting:
            time.sleep(0.001)
        with gate.shared():
            assert gate._sharers == 1
    waiting.join(30)
    assert not waiting.is_alive()


def test_sharers_do_not_starve_the_one_who_waits():
    gate = CaptureGate()
    stop = threading.Event()

    def share():
        while not stop.is_set():
            with gate.shared():
                time.sleep(0.001)

    threads = [threading.Thread(target=share) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun = time.monotonic()
    for _ in range(20):
        with gate.exclusive():
            pass
    waited = time.monotonic() - begun
    stop.set()
    for thread in threads:
        thread.join()
    assert waited < 10


def test_errors_leave():
    gate = CaptureGate()
    for hold in (gate.shared, gate.exclusive):
        with pytest.raises(ZeroDivisionError), hold():
            raise ZeroDivisionError
    with gate.exclusive():
        pass
