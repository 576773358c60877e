"""New versions of bundles while they are served: each answer comes from exactly one, and what is
broken changes nothing."""

from __future__ import annotations

import shutil
import signal
import threading
import time

import httpx
import numpy as np
import pytest

from kosine.errors import ParityError

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from kosine.serving.http.models import load_verified
from rehash import change_tensor
from serve_machine import PROMPTS, InThread, ask, running, variant

KEY = "a-key-for-reloading"
TEXTS = [f"{number}번째 문장" for number in range(300)]  # several calls of the batcher


@pytest.fixture(scope="module")
def versions(sample_bundle, tmp_path_factory):
    """Two versions of a model whose vectors differ."""
    folder = tmp_path_factory.mktemp("versions")
    return [variant(sample_bundle, folder / name, default=name) for name in ("query", "document")]


def put(link, target) -> None:
    fresh = link.with_suffix(".new")
    fresh.symlink_to(target)
    fresh.replace(link)


def test_swaps_under_load(versions, sample, tmp_path):
    """Nothing is dropped, and each answer, of several calls of the batcher, is one version's."""
    link = tmp_path / "model"
    put(link, versions[0])
    expected = [sample.encode(TEXTS, prompt=PROMPTS[name]) for name in ("query", "document")]
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    failures, seen = [], set()
    stop = threading.Event()
    words = (f"m={link}", "--backend", "onnx")
    with running(tmp_path / "log", *words, env={"KOSINE_API_KEY": KEY}) as service:
        headers = {"Authorization": KEY}

        def work(texts: list[str]) -> None:
            while not stop.is_set():
                answer = ask(service.url, texts, headers, model="m")
                if answer.status_code != 200:
                    failures.append(answer.text)
                    continue
                found = np.array([row["embedding"] for row in answer.json()["data"]], np.float32)
                near = [np.abs(found - rows[: len(found)]).max() < 2e-6 for rows in expected]
                if sum(near) != 1:
                    failures.append(near)
                seen.add(near.index(True) if any(near) else -1)

        threads = [threading.Thread(target=work, args=(TEXTS[:n],)) for n in (1, 3, 300)]
        for thread in threads:
            thread.start()
        prints = set()
        for swap in range(10):
            put(link, versions[(swap + 1) % 2])
            if swap % 2:
                times = service.log.count("fingerprint")
                service.process.send_signal(signal.SIGHUP)
                service.wait_for("fingerprint", times + 1)
            else:
                answer = httpx.post(f"{service.url}/reload", headers=headers, timeout=60)
                assert answer.status_code == 200, answer.text
                prints.add(answer.json()["fingerprints"]["m"])
        stop.set()
        for thread in threads:
            thread.join()
        assert service.stop() == 0
    assert failures == []
    assert seen == {0, 1}
    assert len(prints) == 1


def test_a_corrupt_bundle_keeps_the_old(versions, tmp_path):
    folder = shutil.copytree(versions[0], tmp_path / "m.kosine")
    log = tmp_path / "log"
    with running(log, folder, "--backend", "onnx", env={"KOSINE_API_KEY": KEY}) as service:
        headers = {"Authorization": f"Bearer {KEY}"}
        before = ask(service.url, TEXTS[:3], headers, model="m").content
        good = (folder / "weights.safetensors").read_bytes()
        manifest = (folder / "manifest.json").read_bytes()

        def refused(kind: str) -> None:
            answer = httpx.post(f"{service.url}/reload", headers=headers, timeout=60)
            assert answer.status_code == 409
            assert kind in answer.text
            assert str(tmp_path) not in answer.text
            times = service.log.count("the old version goes on")
            service.process.send_signal(signal.SIGHUP)
            service.wait_for("the old version goes on", times + 1)
            assert ask(service.url, TEXTS[:3], headers, model="m").content == before
            assert httpx.get(f"{service.url}/health").status_code == 200

        (folder / "weights.new").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        (folder / "weights.new").replace(folder / "weights.safetensors")
        refused("IntegrityError")
        (folder / "manifest.json").write_bytes(manifest[:-10])
        refused("ManifestError")
        (folder / "manifest.json").unlink()
        refused("BundleNotFound")
        assert "Traceback" not in service.log


def test_weights_that_are_wrong_but_whole_keep_the_old(versions, tmp_path):
    """Sizes and sha256 are right, and the vectors are not: the canary tells."""
    folder = shutil.copytree(versions[0], tmp_path / "m.kosine")
    load_verified(folder, {"backend": "onnx"})
    change_tensor(folder, "embeddings.word.weight", lambda weight: weight * 1.01 + 0.01)
    with pytest.raises(ParityError):
        load_verified(folder, {"backend": "onnx"})


def test_the_route_is_off_without_a_key_and_takes_no_path(sample_bundle, tmp_path):
    with InThread(sample_bundle) as service:
        assert httpx.post(f"{service.url}/reload").status_code == 404
        assert httpx.post(f"{service.url}/reload", json={"path": "/etc"}).status_code == 404
    with running(tmp_path / "log", sample_bundle, env={"KOSINE_API_KEY": KEY}) as service:
        assert httpx.post(f"{service.url}/reload").status_code == 401
        assert httpx.get(f"{service.url}/reload", headers={"Authorization": KEY}).status_code == 405


def test_two_models_share_one_lane_and_neither_starves(versions, tmp_path):
    """Both under load all the time: each gets its turns."""
    words = (*versions, "--backend", "onnx")
    done = {"query": 0, "document": 0}
    with running(tmp_path / "log", *words) as service:
        ends = time.monotonic() + 3

        def work(name: str) -> None:
            while time.monotonic() < ends:
                assert ask(service.url, TEXTS[:50], model=name).status_code == 200
                done[name] += 1

        threads = [threading.Thread(target=work, args=(name,)) for name in [*done] * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert min(done.values()) >= max(done.values()) / 4
