"""Starts a contestant's worker process and talks to it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from kosine_bench import paths
from kosine_bench.contestants.contestant import Absent

__all__ = ["WorkerFailed", "WorkerProcess", "import_seconds"]

TIMEOUT_SECONDS = 1_800.0

# A worker's environment has no kosine and must not see this one's site-packages, so the
# package is made known from its folder alone.
BOOT = """
import importlib.util, os, sys
folder, threads = sys.argv[1], int(sys.argv[2])
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
spec = importlib.util.spec_from_file_location(
    "kosine_bench", folder + "/__init__.py", submodule_search_locations=[folder])
module = importlib.util.module_from_spec(spec)
sys.modules["kosine_bench"] = module
spec.loader.exec_module(module)
from kosine_bench.measuring.worker import main
sys.exit(main(*sys.argv[3:]))
"""


class WorkerFailed(Exception):
    """A worker answered with an error, died, or took too long."""


def variables(threads: int, extra: Mapping[str, str], python: Path) -> dict[str, str]:
    """Environment of every process that is measured: the same threads, nothing downloaded.

    What PYTHONPATH names belongs to the interpreter that runs now, and to no other.
    """
    count = str(threads)
    hidden = () if str(python) == sys.executable else ("PYTHONPATH",)
    return {
        **{key: value for key, value in os.environ.items() if key not in hidden},
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "RAYON_NUM_THREADS": count,
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DO_NOT_TRACK": "1",
        **extra,
    }


class WorkerProcess:
    """One contestant in a process of its own, confined to `threads` CPUs.

    Args:
        python: The interpreter of its environment.
        log: File that takes what the process prints.
    """

    def __init__(
        self,
        python: Path,
        name: str,
        folder: Path,
        converted: Path,
        threads: int,
        extra: Mapping[str, str],
        log: Path,
    ) -> None:
        self.name = name
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [
                    *(str(python), "-c", BOOT, str(paths.PACKAGE), str(threads)),
                    *(name, str(folder), str(converted)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=variables(threads, extra, python),
            )

    def ask(self, do: str, **arguments: Any) -> Any:
        """The answer to one request.

        Raises:
            Absent: The contestant cannot take part here.
            WorkerFailed: It failed, died, or took longer than `TIMEOUT_SECONDS`.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write((json.dumps({"do": do, **arguments}) + "\n").encode())
            process.stdin.flush()
        except BrokenPipeError:
            raise WorkerFailed(f"the process ended: {self._last_line()}") from None
        end = time.monotonic() + TIMEOUT_SECONDS
        while not select.select([process.stdout], [], [], max(end - time.monotonic(), 0))[0]:
            if time.monotonic() >= end:
                process.kill()
                raise WorkerFailed(f"{do} took longer than {TIMEOUT_SECONDS:.0f} s")
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            raise WorkerFailed(f"the process ended with {code} during {do}: {self._last_line()}")
        answer = json.loads(line)
        if "absent" in answer:
            raise Absent(answer["absent"])
        if "error" in answer:
            raise WorkerFailed(f"{do}: {answer['error']}: {answer['message']}"[:400])
        return answer["ok"]

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(30)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _last_line(self) -> str:
        lines = self._log.read_text("utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")[:200]


def import_seconds(python: Path, statement: str, threads: int, extra: Mapping[str, str]) -> float:
    """Seconds that `statement` takes in a fresh interpreter.

    Raises:
        Absent: It cannot be imported there.
    """
    code = (
        "import time; start = time.perf_counter()\n"
        f"{statement}\n"
        "print('seconds', time.perf_counter() - start)"
    )
    done = subprocess.run(
        [str(python), "-c", code],
        env=variables(threads, extra, python),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise Absent(f"{statement!r} failed: {lines[-1] if lines else done.returncode}"[:300])
    return float(done.stdout.strip().splitlines()[-1].split()[1])
