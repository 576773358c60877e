"""kosine.ray on a local cluster of several workers, one killed in the middle.

    .venvs/ray/bin/python tests/libraries/ray_trial.py BUNDLE OUT.json

No row may be lost or doubled, and each vector must have the bits that one process gives.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve

import kosine
import kosine.ray

ROWS = 4_000
BLOCKS = 40
LOAD = {"threads": 1}
KILLED_AT_ROW = ROWS // 2


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


def texts() -> list[str]:
    return [f"{number}번 문장은 {number % 97}쪽에 있다." for number in range(ROWS)]


def data(bundle: str, expected: np.ndarray, folder: Path) -> dict[str, Any]:
    marker = folder / "killed"
    rows = [{"id": number, "text": text} for number, text in enumerate(texts())]
    found = (
        ray.data.from_items(rows, override_num_blocks=BLOCKS)
        .map_batches(
            KilledOnce,
            fn_constructor_args=(bundle, str(marker)),
            fn_constructor_kwargs={"load": LOAD},
            num_cpus=1,
            concurrency=3,
            batch_size=50,
        )
        .take_all()
    )
    ids = sorted(int(row["id"]) for row in found)
    killed = int(marker.read_text())
    pids = {int(row["pid"]) for row in found}
    ordered = np.stack([row["vector"] for row in sorted(found, key=lambda row: int(row["id"]))])
    assert ids == list(range(ROWS)), "rows lost or doubled"
    assert killed not in {int(r["pid"]) for r in found if int(r["id"]) == KILLED_AT_ROW}
    same = bool((ordered.astype(np.float32).view(np.uint32) == expected.view(np.uint32)).all())
    assert same, "other bits than one process gives"
    assert len(pids) >= 2, pids
    return {"rows": len(found), "workers": len(pids), "killed": 1, "lost": 0, "doubled": 0,
            "same_bits": same}  # fmt: skip


def served(bundle: str, expected: np.ndarray) -> dict[str, Any]:
    app = (
        serve.deployment(kosine.ray.Embedder)
        .options(num_replicas=2, ray_actor_options={"num_cpus": 1}, health_check_period_s=1)
        .bind(bundle, load=LOAD)
    )
    handle = serve.run(app, name="kosine")
    sentences = texts()[:400]
    answers: dict[int, Any] = {}
    waiting = {n: handle.encode.remote(text) for n, text in enumerate(sentences)}
    named = ray.util.list_named_actors(all_namespaces=True)
    replicas = [actor for actor in named if "Embedder" in actor["name"]]
    assert len(replicas) == 2, replicas
    victim = ray.get_actor(replicas[0]["name"], namespace=replicas[0]["namespace"])
    ray.kill(victim, no_restart=True)
    failed = 0
    while waiting:
        (number, reply), *_ = waiting.items()
        del waiting[number]
        try:
            answers[number] = reply.result(timeout_s=120)
        except Exception as error:
            failed += 1
            if failed > 10 * len(sentences):
                raise RuntimeError("the other replica does not answer") from error
            time.sleep(0.05)
            waiting[number] = handle.encode.remote(sentences[number])
    found = np.stack([answers[n] for n in range(len(sentences))])
    assert (found.view(np.uint32) == expected[: len(sentences)].view(np.uint32)).all()
    body = json.dumps({"inputs": sentences[:3]}).encode()
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request("http://127.0.0.1:8000/", body, headers)
    with urllib.request.urlopen(asked, timeout=60) as reply:
        over_http = np.array(json.load(reply), np.float32)
    np.testing.assert_allclose(over_http, expected[:3], atol=1e-6)
    serve.shutdown()
    return {"requests": len(sentences), "replicas": 2, "killed": 1, "sent_again": failed,
            "answered": len(answers), "same_bits": True, "http": True}  # fmt: skip


def main(bundle: str, out: Path) -> None:
    bundle = str(Path(bundle).resolve())
    expected = kosine.load(bundle, **LOAD, device="cpu").encode(texts())
    marker = out.parent / "killed"
    marker.unlink(missing_ok=True)
    path = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    ray.init(num_cpus=5, include_dashboard=False, runtime_env={"env_vars": path})
    try:
        made = {"data": data(bundle, expected, out.parent), "serve": served(bundle, expected)}
    finally:
        ray.shutdown()
        marker.unlink(missing_ok=True)
    names = ("ray", "pyarrow", "pandas", "numpy", "tokenizers", "starlette")
    versions = {"python": platform.python_version(), **{name: version(name) for name in names}}
    out.write_text(json.dumps({"library": "ray", "versions": versions, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve())
