"""The native engine among processes and threads: fork, races, memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from native_machine import Encoder, each_table, needs_native, script

HERE = Path(__file__).parent
SOURCES = HERE.parent / "kernels" / "src"
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")


def run_script(code: str) -> str:
    """Run Python that may fork, in a process of its own; 60 s are a hang."""
    done = subprocess.run(
        script(code),
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(HERE), "PYTHONWARNINGS": "ignore"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "nanobind: leaked" not in done.stderr, done.stderr
    return done.stdout


@needs_native
def test_what_outlives_the_interpreter_is_reported_only_when_asked_for():
    # The negative control of `run_script`: an engine that is never let go.
    leak = (
        "import ctypes\n"
        "from native_machine import Encoder\n"
        "ctypes.pythonapi.Py_IncRef(ctypes.py_object(Encoder().engine()._engine))\n"
    )
    with pytest.raises(AssertionError, match="nanobind: leaked"):
        run_script(leak)
    done = subprocess.run(
        script(leak, leaks=False),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE)},
        check=True,
    )
    assert done.stderr == ""


PREFORK = """
import os, sys, threading
import numpy as np
from native_machine import Encoder

encoder = Encoder(hidden=512, heads=8, inner=2048, layers=4, vocab=2000)
engine = encoder.engine(threads=2)
small, large = encoder.batch([9, 20]), encoder.batch([40] * 12)
expected = [engine.forward(*batch)[0].tobytes() for batch in (small, large)]

def private_bytes():
    with open("/proc/self/smaps_rollup") as file:
        return 1024 * sum(int(line.split()[1]) for line in file if line.startswith("Private_"))

def child():
    # What the interpreter itself copies by counting references is there before the first run.
    before = private_bytes()
    for _ in range(3):
        for batch, bits in zip((small, large), expected):
            if engine.forward(*batch)[0].tobytes() != bits:
                return 1
    grown = private_bytes() - before
    if grown > engine.packed_bytes // 2:
        return 2
    if os.fork() == 0:  # a child of the child
        os._exit(engine.forward(*large)[0].tobytes() != expected[1])
    return os.wait()[1] and 3

stop = threading.Event()
def keep_running():
    while not stop.is_set():
        engine.forward(*large)
# Children are made while the parent's pool is at work.
busy = threading.Thread(target=keep_running)
busy.start()
children = []
for _ in range(6):
    pid = os.fork()
    if pid == 0:
        os._exit(child())
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
stop.set()
busy.join()
assert codes == [0] * 6, codes
assert engine.forward(*large)[0].tobytes() == expected[1]
print("right", engine.packed_bytes)
"""


@needs_native
@pytest.mark.skipif(SANITIZED, reason="AddressSanitizer's shadow memory hides what is private")
def test_an_engine_made_before_fork_works_in_children_and_shares_its_weights():
    assert run_script(PREFORK).startswith("right")


@each_table()
def test_calls_from_many_threads_do_not_mix(dtype, isa):
    encoder = Encoder(hidden=64, heads=2)
    batches = [encoder.batch(lengths) for lengths in ([3, 9], [40] * 5, [12], [30] * 20)]
    engine = encoder.engine(dtype, isa, threads=2)
    expected = [engine.forward(*batch)[0] for batch in batches]
    wrong: list[int] = []

    def caller(first: int) -> None:
        for i in range(60):
            at = (first + i) % len(batches)
            if not np.array_equal(engine.forward(*batches[at])[0], expected[at]):
                wrong.append(at)

    callers = [threading.Thread(target=caller, args=(i,)) for i in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not wrong


def thread_count() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@needs_native
def test_engines_share_threads():
    encoder = Encoder()
    engines = [encoder.engine(threads=3) for _ in range(4)]
    before = thread_count()
    for engine in engines:
        engine.forward(*encoder.batch([30] * 20))
    assert thread_count() <= before + 2


LEAKS = """
from native_machine import Encoder

def growth(leak):
    encoder = Encoder(layers=1)
    engine = encoder.engine(threads=2)
    batches = [encoder.batch([1 + i % 7] * (1 + i % 5)) for i in range(50)]
    kept = []
    def run(calls):
        for i in range(calls):
            vectors, norms = engine.forward(*batches[i % 50])
            if i % 100 == 0:
                # An engine of its own now and then: packing and freeing count too.
                encoder.engine(threads=2).forward(*batches[0])
            if leak:
                kept.append(bytes(3000 + i % 2))
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    run(2_000)
    before = resident()
    run(CALLS)
    return resident() - before

print(growth(LEAK))
"""


@needs_native
@pytest.mark.skipif(SANITIZED, reason="AddressSanitizer keeps freed memory for a while")
def test_ten_thousand_calls_leave_no_memory_behind():
    limit = 4 * 2**20
    assert int(run_script("CALLS, LEAK = 10_000, False\n" + LEAKS)) < limit
    # The negative control: 3 kB a call left behind are seen, in fewer calls.
    assert int(run_script("CALLS, LEAK = 2_000, True\n" + LEAKS)) > limit


@pytest.mark.skipif(sys.platform != "linux", reason="the engine is built on Linux alone")
def test_the_pool_under_thread_sanitizer(tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++")
    if SANITIZED:
        pytest.skip("LD_PRELOAD holds another sanitizer")
    program = tmp_path / "thread_pool_race"
    command = [
        *(compiler, "-std=c++20", "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{SOURCES}"),
        *(
            str(HERE / "thread_pool_race.cpp"),
            str(SOURCES / "thread_pool.cpp"),
            str(SOURCES / "affinity.cpp"),
            "-o",
            str(program),
        ),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find -ltsan" in built.stderr or "libtsan" in built.stderr:
        pytest.skip("this g++ comes without ThreadSanitizer")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "right\n", "")
