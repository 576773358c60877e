"""A process that ends while daemon threads encode: quietly, and with its own exit status."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kosine.exit_gate import ExitGate, awaited_at_exit
from native_machine import needs_native

ENCODING = """
import sys, threading, time
import kosine

encoder = kosine.load(BUNDLE, backend=BACKEND, threads=2)
under_way = threading.Event()

def encode():
    while True:
        encoder.encode(["한 남자가 기타를 치고 있다."] * 64)
        under_way.set()

for _ in range(3):
    threading.Thread(target=encode, daemon=True).start()
under_way.wait()
"""
LOADING = """
import threading, time
import kosine
from kosine.backends.registry import make_backend
from kosine.bundle import Bundle

bundle = Bundle(BUNDLE)
under_way = threading.Event()

def load():
    while True:
        under_way.set()
        make_backend(bundle, backend=BACKEND, dtype="float32", threads=2)

threading.Thread(target=load, daemon=True).start()
under_way.wait()
time.sleep(0.2)
"""


def end(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_native), "onnx"])
class TestProcesses:
    @pytest.mark.parametrize(
        ("last", "status"), [("", 0), ("sys.exit(3)", 3), ("raise KeyError('own')", 1)]
    )
    def test_daemon_threads_that_encode(
        self, sample_bundle: Path, backend: str, last: str, status: int
    ) -> None:
        head = f"BUNDLE, BACKEND = {str(sample_bundle)!r}, {backend!r}\n"
        done = end(head + ENCODING + last)
        assert done.returncode == status, done.stderr
        assert done.stdout == ""
        said = done.stderr.splitlines()
        assert (said[-1:] == ["KeyError: 'own'"]) if status == 1 else not said

    def test_a_daemon_thread_that_loads(self, sample_bundle: Path, backend: str) -> None:
        done = end(f"BUNDLE, BACKEND = {str(sample_bundle)!r}, {backend!r}\n{LOADING}")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_code_that_runs_later_still_encodes(self, sample_bundle: Path, backend: str) -> None:
        # What was registered before kosine was imported runs after the gate has closed.
        done = end(
            "import atexit\n"
            "atexit.register(lambda: print(encoder.encode('가').shape))\n"
            f"import kosine\nencoder = kosine.load({str(sample_bundle)!r}, backend={backend!r})\n"
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("(")


class TestGate:
    def test_closing_waits_for_calls_under_way_and_lets_no_other_begin(self) -> None:
        gate = ExitGate()
        inside, leave, ended = threading.Event(), threading.Event(), []

        def call() -> None:
            gate.enter()
            inside.set()
            leave.wait()
            gate.leave()
            try:
                gate.enter()
            except SystemExit:  # of which threading says nothing; pytest would
                ended.append(True)

        caller = threading.Thread(target=call)
        caller.start()
        inside.wait()
        closer = threading.Thread(target=gate.close)
        closer.start()
        time.sleep(0.05)
        assert closer.is_alive()
        leave.set()
        closer.join(10)
        caller.join(10)
        assert not closer.is_alive()
        assert ended == [True]

    def test_who_closed_it_passes(self) -> None:
        gate = ExitGate()
        gate.close()
        gate.enter()
        gate.leave()

    def test_an_error_leaves(self) -> None:
        @awaited_at_exit
        def fail() -> None:
            raise ValueError

        for _ in range(2):
            with pytest.raises(ValueError):
                fail()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
    def test_a_child_waits_for_nobody_elses_calls(self) -> None:
        # Were the parent's calls still counted there, the child would not end.
        done = end(
            "import os, threading\n"
            "from kosine.exit_gate import EXIT_GATE\n"
            "inside = threading.Event()\n"
            "def call():\n"
            "    EXIT_GATE.enter()\n"
            "    inside.set()\n"
            "    leave.wait()\n"
            "    EXIT_GATE.leave()\n"
            "leave = threading.Event()\n"
            "thread = threading.Thread(target=call)\n"
            "thread.start()\n"
            "inside.wait()\n"
            "child = os.fork()\n"
            "if child:\n"
            "    status = os.waitpid(child, 0)[1]\n"
            "    leave.set()\n"
            "    print(os.waitstatus_to_exitcode(status))\n"
        )
        assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
