"""A batcher does not survive a fork, and says so; the encoder does.

Each case forks in a process of its own, so that nothing of the suite's threads comes along.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

ENCODER = """
import json, os, sys, threading, time
import kosine
from kosine.serving.batcher import Batcher
from kosine.errors import ForkedBatcher
encoder = kosine.load(os.environ["KOSINE_BUNDLE"])

def attempt(call):
    try:
        call()
    except ForkedBatcher:
        return "ForkedBatcher"
    except BaseException as error:
        return type(error).__name__
    return "worked"
"""


def environment(bundle):
    return {
        **os.environ,
        "KOSINE_BUNDLE": str(bundle),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore::DeprecationWarning",
    }


def run_forking(code, bundle):
    done = subprocess.run(
        [sys.executable, "-c", ENCODER + code],
        env=environment(bundle),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_call_in_a_child_raises_or_returns(sample_bundle):
    """os.fork with a batch running, requests waiting and the lock held by another thread."""
    seen = run_forking(
        """
import asyncio
from kosine.testing import FakeBackend, FakeEncoder
from kosine.clock import SystemClock

taken = threading.Event()
class SlowInOneThread(SystemClock):
    # The batcher reads its clock under its lock: a thread that is slow to read holds the lock.
    def __init__(self):
        pass
    def now(self):
        if threading.current_thread().name == "holder":
            taken.set()
            time.sleep(3.0)
        return time.monotonic()

backend = FakeBackend(cost=lambda batch: 3.0)
batcher = Batcher(FakeEncoder(backend), clock=SlowInOneThread())
running = batcher.submit("running")
waiting = [batcher.submit("waiting"), *batcher.submit_many(["a", "b"])]
time.sleep(0.1)
threading.Thread(target=batcher.health, name="holder", daemon=True).start()
taken.wait()
reading, writing = os.pipe()
pid = os.fork()
if pid == 0:
    started = time.monotonic()
    seen = {
        "submit": attempt(lambda: batcher.submit("x")),
        "submit_many": attempt(lambda: batcher.submit_many(["x"])),
        "aencode": attempt(lambda: asyncio.run(batcher.aencode("x"))),
        "stats": attempt(batcher.stats),
        "running": attempt(lambda: running.result(20)),
        "waiting": [attempt(lambda f=f: f.result(20)) for f in waiting],
        "cancel": waiting[0].cancel(),
        "close": batcher.close(),
        "health": batcher.health().state,
        "own": attempt(lambda: Batcher(FakeEncoder()).submit("x").result(20)),
    }
    seen["seconds"] = time.monotonic() - started
    os.write(writing, json.dumps(seen).encode())
    # An ordinary exit: the handlers registered before the fork run, and must not hang either.
    sys.exit(0)
os.close(writing)
message = b""
while part := os.read(reading, 65536):
    message += part
os.waitpid(pid, 0)
seen = json.loads(message)
seen["parent"] = [attempt(lambda: f.result(30)) for f in [running, *waiting]]
print(json.dumps(seen))
""",
        sample_bundle,
    )
    print(f"row 17: {seen}")
    forked = "ForkedBatcher"
    for call in ("submit", "submit_many", "aencode", "stats", "running"):
        assert seen[call] == forked
    assert seen["waiting"] == [forked] * 3
    assert seen["cancel"] is False
    assert seen["close"] is True
    assert seen["health"] == "forked"
    assert seen["own"] == "worked"
    assert seen["seconds"] < 2.5
    assert seen["parent"] == ["worked"] * 4


def test_the_encoder_works_in_the_child(sample_bundle):
    """Loaded and used before the fork; used, and given to a new batcher, after it."""
    seen = run_forking(
        """
import numpy as np
texts = ["한 남자가 기타를 친다.", "A man plays."]
right = encoder.encode(texts)
pid = os.fork()
if pid == 0:
    same = np.abs(encoder.encode(texts) - right).max() < 1e-6
    with Batcher(encoder) as batcher:
        same = same and np.abs(batcher.submit(texts).result(60) - right).max() < 1e-6
    os._exit(0 if same else 1)
print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
""",
        sample_bundle,
    )
    assert seen == 0


APP = (
    ENCODER
    + """
inherited = Batcher(encoder)
inherited.submit("before the fork").result(60)
master = os.getpid()
own = None

def app(environ, start_response):
    global own
    if own is None:
        own = Batcher(encoder)
    answer = {
        "forked": os.getpid() != master,
        "pid": os.getpid(),
        "inherited": attempt(lambda: inherited.submit("x").result(30)),
        "encoder": attempt(lambda: encoder.encode(["x"])),
        "own": attempt(lambda: own.submit("x").result(30)),
    }
    body = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body]
"""
)

RIGHT = {"inherited": "ForkedBatcher", "encoder": "worked", "own": "worked"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop(process):
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        # The workers too: it started a session of its own.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def test_gunicorn_preload(sample_bundle, tmp_path):
    pytest.importorskip("gunicorn", reason="gunicorn is not installed")
    (tmp_path / "preloaded.py").write_text(APP, "utf-8")
    port = free_port()
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--preload", "-w", "4"),
                *("-b", f"127.0.0.1:{port}", "--chdir", str(tmp_path), "preloaded:app"),
            ],
            env=environment(sample_bundle),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        workers = {}
        ends = time.monotonic() + 90
        while time.monotonic() < ends and len(workers) < 4:
            assert process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=40) as answer:
                    seen = json.load(answer)
            except ConnectionError:
                time.sleep(0.2)
            except urllib.error.URLError as error:
                if not isinstance(error.reason, ConnectionError):
                    raise
                time.sleep(0.2)
            else:
                assert seen.pop("forked")
                workers[seen.pop("pid")] = seen
    finally:
        stop(process)
    print(f"row 17, gunicorn --preload -w 4: {len(workers)} workers answered {RIGHT}")
    assert workers
    assert all(seen == RIGHT for seen in workers.values())


TASKS = (
    ENCODER
    + """
from celery import Celery
from pathlib import Path
folder = Path(os.environ["CELERY_FOLDER"])
celery = Celery("tasks", broker="filesystem://", backend=f"file://{folder / 'results'}")
celery.conf.broker_transport_options = {
    "data_folder_in": str(folder / "queue"),
    "data_folder_out": str(folder / "queue"),
    "control_folder": str(folder / "control"),
}
celery.conf.broker_connection_retry_on_startup = True
inherited = Batcher(encoder)
inherited.submit("before the fork").result(60)
master = os.getpid()
own = None

@celery.task
def embed():
    global own
    if own is None:
        own = Batcher(encoder)
    return {
        "forked": os.getpid() != master,
        "inherited": attempt(lambda: inherited.submit("x").result(30)),
        "encoder": attempt(lambda: encoder.encode(["x"])),
        "own": attempt(lambda: own.submit("x").result(30)),
    }
"""
)


def test_celery_prefork(sample_bundle, tmp_path):
    pytest.importorskip("celery", reason="celery is not installed")
    for name in ("queue", "results", "control"):
        (tmp_path / name).mkdir()
    (tmp_path / "tasks.py").write_text(TASKS, "utf-8")
    variables = {**environment(sample_bundle), "CELERY_FOLDER": str(tmp_path)}
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", "tasks:celery", "worker"),
                *("-P", "prefork", "-c", "2", "--without-gossip", "--without-mingle"),
            ],
            cwd=tmp_path,
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    ask = (
        "import json, tasks; results = [tasks.embed.delay() for _ in range(4)]\n"
        "print(json.dumps([result.get(timeout=90) for result in results]))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", ask],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=150,
        )
    finally:
        stop(process)
    assert done.returncode == 0, done.stderr + Path(log).read_text()
    answers = json.loads(done.stdout.splitlines()[-1])
    print(f"row 17, Celery prefork: {answers[0]}")
    assert answers == [{"forked": True, **RIGHT}] * 4
