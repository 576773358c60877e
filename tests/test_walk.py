"""The walk of one text to the engine meets no function whose name it has met before.

Who reads the code along that way, or a profile of it, can tell every step by its name.
"""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from pathlib import Path

import pytest

import kosine
import kosine_kernels
from kosine_kernels.engine import Engine

PACKAGES = tuple(str(Path(package.__file__).parent) for package in (kosine, kosine_kernels))
TEXT = "한 남자가 기타를 친다."


class Walk:
    """The functions of kosine that are entered, in any thread, until an engine's `run` is; with
    the native engine until the kernels' `forward` is.

    Methods of Python's own (`__init__`) and comprehensions have no names of their own to tell.
    """

    def __init__(self, engine):
        self.last = Engine.forward if engine.name == "native" else type(engine).run
        self.last = getattr(self.last, "__wrapped__", self.last).__code__
        self.steps = []  # code objects
        self.arrived = False

    def __enter__(self):
        threading.setprofile(self.enter)
        sys.setprofile(self.enter)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)
        threading.setprofile(None)

    def enter(self, frame, event, _):
        code = frame.f_code
        if event != "call" or self.arrived or not code.co_filename.startswith(PACKAGES):
            return
        if not code.co_name.startswith(("__", "<")) and code not in self.steps:
            self.steps.append(code)
        self.arrived = code is self.last

    def names(self):
        return [code.co_name for code in self.steps]

    def shared(self):
        """Names that several functions have, and where these are."""
        where = defaultdict(list)
        for code in self.steps:
            where[code.co_name].append(f"{Path(code.co_filename).name}:{code.co_firstlineno}")
        return {name: places for name, places in where.items() if len(places) > 1}


@pytest.fixture(scope="module", params=["native", "onnx"])
def encoder(request, sample_bundle):
    try:
        return kosine.load(sample_bundle, backend=request.param)
    except kosine.errors.BackendUnavailable as error:
        pytest.skip(f"engine {request.param}: {error.problem}")


def test_from_encode(encoder):
    with Walk(encoder.backend) as walk:
        encoder.encode(TEXT)
    assert walk.arrived
    assert walk.names()[0] == "encode"
    assert "tokenize" in walk.names()
    assert walk.shared() == {}


@pytest.mark.parametrize(
    "options",
    [{}, {"deadline": 30.0, "priority": 1, "truncate_dim": 64, "prompt": "가 "}],
    ids=["plain", "with options"],
)
def test_from_submit(encoder, options):
    # The batcher's threads are begun by the first submit, and so under the profiler.
    with kosine.Batcher(encoder) as batcher, Walk(encoder.backend) as walk:
        batcher.submit(TEXT, **options).result()
    assert walk.arrived
    assert walk.names()[0] == "submit"
    assert {"tokenize", "take"} <= set(walk.names())
    assert walk.shared() == {}


def test_a_name_that_two_functions_have_is_noticed(encoder, monkeypatch):
    tokenize = type(encoder._tokenizer).tokenize

    def encode(self, *args, **options):  # as `Encoder.encode`
        return tokenize(self, *args, **options)

    monkeypatch.setattr(type(encoder._tokenizer), "tokenize", encode)
    monkeypatch.setattr(sys.modules[__name__], "PACKAGES", str(Path(__file__).parent.parent))
    with Walk(encoder.backend) as walk:
        encoder.encode(TEXT)
    assert len(walk.shared()["encode"]) == 2
