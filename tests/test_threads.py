"""How many CPUs a process may use, under affinity and cgroup limits; and work shared among them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from kosine import threads
from kosine.threads import share, usable_cpus


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretend: so many CPUs, this /proc/self/cgroup, these files under the cgroup root."""

    def pretend(cpus: int, own: str | None, files: dict[str, str]) -> Path:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cpus)), raising=False)
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

        def read_text(self):
            if str(self) == "/proc/self/cgroup":
                if own is None:
                    raise FileNotFoundError(self)
                return own
            with self.open() as file:
                return file.read()

        monkeypatch.setattr(threads.Path, "read_text", read_text)
        return tmp_path

    return pretend


@pytest.mark.parametrize(
    ("cpus", "own", "files", "expected"),
    [
        (8, "0::/\n", {}, 8),
        (8, None, {}, 8),
        (1, "0::/\n", {}, 1),
        # Version 2.
        (8, "0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        (8, "0::/\n", {"cpu.max": "max 100000\n"}, 8),
        (8, "0::/\n", {"cpu.max": "350000 100000\n"}, 3),  # rounded down
        (8, "0::/\n", {"cpu.max": "50000 100000\n"}, 1),  # but never 0
        (2, "0::/\n", {"cpu.max": "400000 100000\n"}, 2),
        (8, "0::/a/b\n", {"a/b/cpu.max": "300000 100000\n"}, 3),
        (8, "0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        (8, "0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "500000 100000"}, 2),
        (8, "0::/a/b\n", {"cpu.max": "100000 100000", "a/b/cpu.max": "500000 100000"}, 1),
        (8, "0::/a\n", {"b/cpu.max": "100000 100000\n"}, 8),  # someone else's
        (8, "1:cpu:/x\n0::/a\n", {"a/cpu.max": "200000 100000\n"}, 2),
        # Version 1.
        (8, "3:cpu:/x\n", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        (8, "3:cpu:/x\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        # Nonsense is no limit.
        (8, "0::/\n", {"cpu.max": ""}, 8),
        (8, "0::/\n", {"cpu.max": "abc def"}, 8),
        (8, "0::/\n", {"cpu.max": "100000"}, 8),
        (8, "0::/\n", {"cpu.max": "100000 0"}, 8),
        (8, "", {}, 8),
        (8, "0::/../../outside\n", {}, 8),
    ],
)
def test_table(machine, cpus, own, files, expected):
    assert usable_cpus(machine(cpus, own, files)) == expected


def test_without_affinity_the_cpu_count_counts(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert usable_cpus(tmp_path) == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus(tmp_path) == 1


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinity is a Linux matter")
def test_here():
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))


# Sharing work out


@pytest.mark.parametrize("threads", [1, 2, 7, 100])
@pytest.mark.parametrize("pieces", [0, 1, 2, 20])
def test_shared_work_comes_back_in_order(threads, pieces):
    seen = set()

    def work(piece):
        seen.add(threading.current_thread())
        time.sleep(0.001)
        return piece * piece

    assert share(work, range(pieces), threads) == [piece * piece for piece in range(pieces)]
    assert len(seen) <= min(threads, max(pieces, 1))
    if threads == 1 and pieces:
        assert seen == {threading.current_thread()}
    assert not any(thread.name == "kosine-share" for thread in threading.enumerate())


def test_several_threads_work_at_once():
    both = threading.Barrier(2, timeout=30)
    assert share(lambda _: both.wait() >= 0, range(2), 2) == [True, True]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
def test_an_error_ends_the_work_and_is_raised(error):
    done = []

    def work(piece):
        if piece == 3:
            raise error("no")
        done.append(piece)

    with pytest.raises(error, match="no"):
        share(work, range(100_000), 2)
    assert len(done) < 100_000
    assert not any(thread.name == "kosine-share" for thread in threading.enumerate())


@pytest.mark.parametrize("allowed", [0, 1])
def test_where_no_thread_can_be_started_the_caller_does_the_work(monkeypatch, allowed):
    started = []
    start = threading.Thread.start

    def limited(thread):
        if len(started) == allowed:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    assert share(lambda piece: -piece, range(50), 8) == [-piece for piece in range(50)]
    assert len(started) == allowed
