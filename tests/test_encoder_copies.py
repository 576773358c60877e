"""Encoders that are pickled, copied, and inherited by other processes."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kosine
from kosine.backends.registry import make_backend
from kosine.bundle import Bundle
from kosine.errors import BundleNotFound, InputError, IntegrityError
from rehash import perturb_weights

TEXTS = ["한 남자가 기타를 친다.", "A man plays.", ""]
ENGINES = (("native", "float32"), ("onnx", "float32"), ("onnx", "float16"))
OPTIONS = {"backend": "onnx", "threads": 1, "max_batch_tokens": 512, "max_text_bytes": 5000}


@pytest.fixture
def path(sample_bundle, tmp_path):
    shutil.copytree(sample_bundle, tmp_path / "ko.kosine")
    return tmp_path / "ko.kosine"


def encode_there(encoder):
    return encoder.encode(TEXTS), encoder.backend.name, encoder.backend.threads


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_loads_the_bundle_again(path, protocol):
    encoder = kosine.load(path, **OPTIONS)
    data = pickle.dumps(encoder, protocol)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again.backend is not encoder.backend
    assert again.bundle.sha256 == encoder.bundle.sha256
    assert (again.backend.name, again.backend.threads) == ("onnx", 1)
    assert (again.max_batch_tokens, again._tokenizer.max_text_bytes) == (512, 5000)
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    assert pickle.dumps(again, protocol) == data


def test_a_pickle_holds_what_was_asked_for(path, monkeypatch):
    """On another machine "auto" may be another engine in another dtype."""
    data = pickle.dumps(kosine.load(path, threads=1))
    asked = []

    def elsewhere(bundle, **options):
        asked.append(options)
        return make_backend(bundle, **{**options, "backend": "onnx", "dtype": "float16"})

    monkeypatch.setattr("kosine.loading.make_backend", elsewhere)
    there = pickle.loads(data)
    expected = {"backend": "auto", "dtype": "auto", "device": "auto", "threads": 1, "spin": False}
    assert asked == [expected]
    assert (there.backend.name, there.backend.dtype) == ("onnx", "float16")
    assert pickle.dumps(there) == data


def test_a_relative_path_holds_elsewhere(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    data = pickle.dumps(kosine.load(path.name, **OPTIONS))
    monkeypatch.chdir("/")
    assert pickle.loads(data).encode("가").shape == (256,)


def test_the_path_is_where_it_was_when_loaded(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    encoder = kosine.load(path.name, **OPTIONS)
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(encoder)).encode("가").shape == (256,)


def test_a_bundle_that_changed_is_an_error(path):
    data = pickle.dumps(kosine.load(path, **OPTIONS))
    shutil.move(path, path.with_name("old"))
    shutil.copytree(path.with_name("old"), path)
    perturb_weights(path)
    with pytest.raises(IntegrityError, match=r"has changed: .*was pickled with .*kosine\.load"):
        pickle.loads(data)
    shutil.rmtree(path)
    with pytest.raises(BundleNotFound):
        pickle.loads(data)
    shutil.move(path.with_name("old"), path)
    pickle.loads(data)


def test_an_encoder_over_a_backend_object_says_that_it_cannot(path):
    encoder = kosine.Encoder(Bundle(path), kosine.load(path, **OPTIONS).backend)
    with pytest.raises(InputError, match=r"cannot be pickled; encoders made by kosine\.load"):
        pickle.dumps(encoder)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("loaded", [True, False])
def test_a_copy_shares_the_engine_and_counts_for_itself(path, copied, loaded):
    encoder = kosine.load(path, **OPTIONS)
    if not loaded:
        encoder = kosine.Encoder(encoder.bundle, encoder.backend)
    encoder.encode(TEXTS)
    shutil.rmtree(path)
    other = copied(encoder)
    assert type(other) is kosine.Encoder
    assert other is not encoder
    assert other.backend is encoder.backend
    assert other.counts()["texts"] == 0
    np.testing.assert_array_equal(other.encode(TEXTS), encoder.encode(TEXTS))
    assert other.counts()["texts"] == len(TEXTS)
    assert encoder.counts()["texts"] == 2 * len(TEXTS)


def test_inside_other_objects(path):
    """What scikit-learn's `clone` and BERTopic's `save` do."""
    encoder = kosine.load(path, **OPTIONS)
    holder = {"model": encoder, "again": [encoder]}
    copied = copy.deepcopy(holder)
    assert copied["model"].backend is encoder.backend
    back = pickle.loads(pickle.dumps(holder))
    assert back["model"] is back["again"][0]
    np.testing.assert_array_equal(back["model"].encode(TEXTS), encoder.encode(TEXTS))


def test_scikit_learn_clones_it(path):
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")

    class Embedder(base.BaseEstimator):
        def __init__(self, encoder=None):
            self.encoder = encoder

    encoder = kosine.load(path, **OPTIONS)
    cloned = base.clone(Embedder(encoder))
    np.testing.assert_array_equal(cloned.encoder.encode(TEXTS), encoder.encode(TEXTS))


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_multiprocessing(path, method):
    encoder = kosine.load(path, **OPTIONS)
    right = encoder.encode(TEXTS)
    with multiprocessing.get_context(method).Pool(1) as pool:
        vectors, name, threads = pool.apply(encode_there, (encoder,))
    np.testing.assert_array_equal(vectors, right)
    assert (name, threads) == ("onnx", 1)


def test_joblib(path):
    joblib = pytest.importorskip("joblib", reason="joblib is not installed")
    encoder = kosine.load(path, **OPTIONS)
    try:
        found = joblib.Parallel(n_jobs=2)(joblib.delayed(encoder.encode)([text]) for text in TEXTS)
    finally:
        joblib.externals.loky.get_reusable_executor().shutdown()
    np.testing.assert_allclose(np.concatenate(found), encoder.encode(TEXTS), atol=1e-6)


FORKING = """
import json, os, shutil, sys, threading
from pathlib import Path
import numpy as np
import kosine
from rehash import perturb_weights

path, backend, dtype = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
texts = ["한 남자가 기타를 친다.", "A man plays.", ""]
encoder = kosine.load(path, backend=backend, dtype=dtype, threads=1)
before = encoder.encode(texts)

# Another bundle is renamed into its place, with the same shapes.
shutil.copytree(path, path.with_name("next"))
perturb_weights(path.with_name("next"))
path.rename(path.with_name("old"))
path.with_name("next").rename(path)
shutil.rmtree(path.with_name("old"))
other = kosine.load(path, backend=backend, dtype="float32", threads=1).encode(texts)
cosines = (other * before).sum(1)

pid = os.fork()
if pid == 0:
    same = np.array_equal(encoder.encode(texts), before)
    small = encoder.encode(texts, precision="int8", truncate_dim=16).shape == (3, 16)
    os._exit(0 if same and small else 1)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(json.dumps([code, float(cosines.min())]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize(
    "engine", [("onnx", "float32"), ("onnx", "float16"), ("native", "float32")]
)
def test_a_child_answers_from_the_bundle_that_was_loaded(path, engine):
    code, cosine = run_forking(FORKING, path, *engine)
    assert code == 0
    assert cosine < 0.9999, "the other bundle gives the same vectors: this shows nothing"


HELD = """
import json, os, signal, sys, threading
import kosine
encoder = kosine.load(sys.argv[1], backend="onnx", threads=1)
encoders = [encoder, encoder.__copy__()]
encoder.encode(["a"])
taken, leave = threading.Event(), threading.Event()

def hold():
    with encoders[0]._counter._lock, encoders[1]._counter._lock, encoder.backend._lock:
        taken.set()
        leave.wait()

thread = threading.Thread(target=hold)
thread.start()
taken.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    for each in encoders:
        each.encode(["a", "b"])
        each.counts()
    os._exit(0)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
leave.set()
thread.join()
print(json.dumps([code, encoder.counts()["texts"]]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_does_not_wait_for_a_thread_that_held_a_lock(path):
    assert run_forking(HELD, path) == [0, 1]


def run_forking(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
            ),
            "PYTHONWARNINGS": "ignore::DeprecationWarning",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
