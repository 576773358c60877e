"""No two threads of a call of the native engine take turns on one processor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from native_machine import needs_native, script

HERE = Path(__file__).parent

PROGRAM = """
import os, time
from native_machine import Encoder

encoder = Encoder(hidden=256, heads=4, inner=1024, layers=4, vocab=2000)
batch = encoder.batch([9, 20])
me, usable = os.getpid(), os.sched_getaffinity(0)

def pool():
    found = {}
    for task in map(int, os.listdir("/proc/self/task")):
        with open(f"/proc/self/task/{task}/comm") as file:
            if file.read().strip() == "kosine":
                found[task] = os.sched_getaffinity(task)
    return found

def processor(task):
    with open(f"/proc/self/task/{task}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[36])
"""


def run(code: str) -> str:
    """The closing lines of a program that starts with `PROGRAM`; 60 s are a hang."""
    done = subprocess.run(
        script(PROGRAM + code),
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(HERE)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


needs_two = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="keeping threads apart takes two processors",
)
pytestmark = [
    needs_native,
    pytest.mark.skipif(sys.platform != "linux", reason="the engine is built on Linux alone"),
]


@needs_two
def test_a_thread_is_kept_off_the_callers_processor():
    """All but one processor stay open to it, and the caller's own affinity is what it was."""
    run("""
engine = encoder.engine(threads=2)
for _ in range(20):
    time.sleep(0.02)
    engine.forward(*batch)
(open_to_it,) = pool().values()
assert len(usable - open_to_it) == 1, (usable, open_to_it)
assert os.sched_getaffinity(0) == usable
""")


@needs_two
def test_a_thread_moves_away_from_another():
    """It is put on the caller's processor behind the pool's back, and nothing else is open to it.

    The caller may happen to be moved meanwhile, so that there is nothing to see: hence the tries.
    """
    printed = run("""
engine = encoder.engine(threads=2)
engine.forward(*batch)
(worker,) = pool()
moved = 0
for _ in range(50):
    time.sleep(0.005)
    here = processor(me)
    os.sched_setaffinity(worker, {here})
    time.sleep(0.001)
    together = processor(me) == here
    engine.forward(*batch)
    if together and processor(me) == here:
        moved += processor(worker) != here and os.sched_getaffinity(worker) != {here}
print(moved)
""")
    print("moved away", printed.strip(), "times of 50")
    assert int(printed) >= 5


@needs_two
def test_as_many_threads_as_processors_all_have_one():
    run("""
engine = encoder.engine(threads=len(usable))
for _ in range(20):
    time.sleep(0.02)
    engine.forward(*batch)
workers = pool()
assert len(workers) == len(usable) - 1
assert all(open_to_it and open_to_it < usable for open_to_it in workers.values())
""")


def test_more_threads_than_processors_are_left_to_the_kernel():
    run("""
engine = encoder.engine(threads=len(usable) + 1)
for _ in range(5):
    engine.forward(*batch)
assert set(map(frozenset, pool().values())) == {frozenset(usable)}
""")


@needs_two
def test_the_callers_affinity_is_the_limit():
    """A caller that is held to some processors afterwards takes its threads with it."""
    run("""
engine = encoder.engine(threads=2)
engine.forward(*batch)
two = set(sorted(usable)[:2])
os.sched_setaffinity(0, two)
engine.forward(*batch)
(open_to_it,) = pool().values()
assert open_to_it < two
one = {min(two)}
os.sched_setaffinity(0, one)
before = pool()
for _ in range(5):
    engine.forward(*batch)
assert pool() == before
assert os.sched_getaffinity(0) == one
""")
