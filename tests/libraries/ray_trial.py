"""kosine.ray on a local cluster of several workers, one killed in the middle.

    .venvs/ray/bin/python tests/libraries/ray_trial.py BUNDLE OUT.json

No row may be lost or doubled, and each vector must have the bits that one process gives.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import sys
import tempfile
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.exceptions import RayError

import kosine
import kosine.ray

ROWS = 4_000
BLOCKS = 40
WORKERS = 3
REPLICAS = 2
LOAD = {"threads": 1}
KILLED_AT_ROW = ROWS // 2
SENTENCES = 400
MIDDLE = f"{SENTENCES // 2}번 문장은 {SENTENCES // 2 % 97}쪽에 있다."


class KilledOnce(kosine.ray.EncodeBatches):
    """The worker that gets the middle row first dies there, by SIGKILL, once."""

    def __init__(self, bundle: str, marker: str, **options: Any) -> None:
        super().__init__(bundle, **options)
        self.marker = Path(marker)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        done = super().__call__(batch)
        if KILLED_AT_ROW in batch["id"] and not self.marker.exists():
            self.marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return {**done, "pid": np.full(len(done["id"]), os.getpid())}


class DiesOnce(kosine.ray.Embedder):
    """The replica that gets the middle sentence first dies in that request, by SIGKILL, once."""

    def __init__(self, bundle: str, marker: str, **options: Any) -> None:
        super().__init__(bundle, **options)
        self.marker = Path(marker)

    async def encode(self, texts: Any, **options: Any) -> Any:
        if texts == MIDDLE and not self.marker.exists():
            self.marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().encode(texts, **options)


def texts() -> list[str]:
    return [f"{number}번 문장은 {number % 97}쪽에 있다." for number in range(ROWS)]


def died(marker: Path) -> int:
    """The process that killed itself, once it is gone."""
    pid = int(marker.read_text())
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return pid
        time.sleep(0.1)
    raise RuntimeError(f"the worker {pid} is still there")


def data(bundle: str, expected: np.ndarray, marker: Path) -> dict[str, Any]:
    rows = [{"id": number, "text": text} for number, text in enumerate(texts())]
    found = (
        ray.data.from_items(rows, override_num_blocks=BLOCKS)
        .map_batches(
            KilledOnce,
            fn_constructor_args=(bundle, str(marker)),
            fn_constructor_kwargs={"load": LOAD},
            num_cpus=1,
            concurrency=WORKERS,
            batch_size=50,
        )
        .take_all()
    )
    killed = died(marker)
    found.sort(key=lambda row: int(row["id"]))
    ids = [int(row["id"]) for row in found]
    lost, doubled = len({*range(ROWS)} - {*ids}), len(ids) - len({*ids})
    assert (lost, doubled) == (0, 0)
    pids = {int(row["pid"]) for row in found}
    assert int(found[KILLED_AT_ROW]["pid"]) != killed, "the dead worker's own answer"
    assert len(pids) >= 2, pids
    vectors = np.stack([row["vector"] for row in found])
    assert same_bits(vectors, expected), "other bits than one process gives"
    return {"rows": len(found), "workers": WORKERS, "answered_by": len(pids), "killed": 1,
            "lost": lost, "doubled": doubled, "same_bits": True}  # fmt: skip


def same_bits(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool((found.astype(np.float32).view(np.uint32) == expected.view(np.uint32)).all())


def served(bundle: str, expected: np.ndarray, marker: Path) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    app = (
        serve.deployment(DiesOnce)
        .options(num_replicas=REPLICAS, ray_actor_options={"num_cpus": 1}, health_check_period_s=1)
        .bind(bundle, str(marker), load=LOAD)
    )
    handle = serve.run(app, name="kosine")
    sentences = texts()[:SENTENCES]
    waiting = {n: handle.encode.remote(text) for n, text in enumerate(sentences)}
    answers: dict[int, Any] = {}
    sent_again = 0
    while waiting:
        (number, reply), *_ = waiting.items()
        del waiting[number]
        try:
            answers[number] = reply.result(timeout_s=120)
        except RayError as error:
            sent_again += 1
            if sent_again > 10 * len(sentences):
                raise RuntimeError("the other replica does not answer") from error
            time.sleep(0.05)
            waiting[number] = handle.encode.remote(sentences[number])
    died(marker)
    assert sent_again, "the request in which its replica died was answered"
    found = np.stack([answers[n] for n in range(len(sentences))])
    assert same_bits(found, expected[: len(sentences)])
    body = json.dumps({"inputs": sentences[:3]}).encode()
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/", body, headers)
    with urllib.request.urlopen(asked, timeout=60) as reply:
        over_http = np.array(json.load(reply), np.float32)
    assert same_bits(over_http, expected[:3])
    serve.shutdown()
    return {"requests": len(sentences), "replicas": REPLICAS, "killed": 1, "sent_again": sent_again,
            "answered": len(answers), "same_bits": True, "http": True}  # fmt: skip


def main(bundle: str, out: Path) -> None:
    bundle = str(Path(bundle).resolve())
    expected = kosine.load(bundle, **LOAD, device="cpu").encode(texts())
    # Where the machine has other things to do, workers import for longer than Serve's 5 s, and
    # starve at the niceness of 15 that Ray gives them.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "300")
    os.environ.setdefault("RAY_worker_niceness", "0")
    path = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    ray.init(num_cpus=WORKERS + REPLICAS, include_dashboard=False, runtime_env={"env_vars": path})
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = {
                "data": data(bundle, expected, Path(folder, "worker")),
                "serve": served(bundle, expected, Path(folder, "replica")),
            }
    finally:
        ray.shutdown()
    names = ("ray", "pyarrow", "pandas", "numpy", "tokenizers", "starlette")
    versions = {"python": platform.python_version(), **{name: version(name) for name in names}}
    out.write_text(json.dumps({"library": "ray", "versions": versions, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve())
