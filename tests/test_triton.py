"""A Triton model repository: its configs against Triton's own protobuf, its model on ONNX Runtime.

Triton itself cannot be started here. Its Python backend's module is stood in for; the graph of the
repository is run by ONNX Runtime from the folder that Triton would read.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kosine
from conftest import SAMPLE
from kosine.errors import BundleExists, InputError
from kosine_export.export import export
from kosine_export.triton import repository
from kosine_export.triton.repository import check_repository, write_repository

TEXTS = ["한 문장", "비행기가 하늘로 날아오른다. " * 9, "", "커피"]


@pytest.fixture(scope="module")
def written(sample_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repo = tmp_path_factory.mktemp("triton")
    assert write_repository(sample_bundle, repo) == repo / "sample"
    return repo


@pytest.fixture(scope="module")
def with_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "asks.kosine"
    return export(SAMPLE, path, prompts={"query": "질문: "}).path


def parsed(config: Path) -> Any:
    """A config.pbtxt read by Triton's own description of it; unknown fields are errors."""
    pytest.importorskip("tritonclient", reason="tritonclient is not installed")
    text_format = pytest.importorskip("google.protobuf.text_format")
    # The package around it wants gRPC, which the description does not.
    found = importlib.util.find_spec("tritonclient").submodule_search_locations[0]
    path = Path(found) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return text_format.Parse(config.read_text("utf-8"), module.ModelConfig())


def test_the_model_that_clients_ask(written: Path, sample_bundle: Path) -> None:
    config = parsed(written / "sample" / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("sample", "python", 256)
    assert config.HasField("dynamic_batching")
    assert [each.name for each in config.input] == ["text", "prompt_name"]
    assert [each.optional for each in config.input] == [False, True]
    dim = kosine.load(sample_bundle, backend="onnx").dim
    assert [*config.output[0].dims] == [dim]


def test_the_graphs_model_takes_what_the_graph_takes(written: Path) -> None:
    import onnxruntime

    config = parsed(written / "sample_graph" / "config.pbtxt")
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 0)
    session = onnxruntime.InferenceSession(written / "sample_graph" / "1" / "model.onnx")
    assert [each.name for each in config.input] == [node.name for node in session.get_inputs()]
    for each, node in zip(config.input, session.get_inputs(), strict=True):
        assert [*each.dims] == [-1] * len(node.shape)
        assert (each.data_type, node.type) == (9, "tensor(int64)")  # TYPE_INT64
    assert [each.name for each in config.output] == [node.name for node in session.get_outputs()]


def test_the_protobuf_refuses_what_triton_would(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text('name: "x" max_batch_sise: 3')
    with pytest.raises(Exception, match="max_batch_sise"):
        parsed(tmp_path / "config.pbtxt")


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> np.ndarray:
        return self.array


class Response:
    def __init__(self, output_tensors: list[Tensor], error: Any = None) -> None:
        self.tensors, self.failed = output_tensors, error

    def has_error(self) -> bool:
        return self.failed is not None

    def error(self) -> Any:
        return self.failed


@pytest.fixture
def served(written: Path, with_prompts: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The repository's model.py, as Triton's Python backend would run it."""
    import onnxruntime

    calls: list[tuple[int, ...]] = []

    def run(name: str, wanted: list[str], inputs: list[Tensor]) -> Response:
        path = repo / name / "1" / "model.onnx"
        session = sessions.setdefault(name, onnxruntime.InferenceSession(path))
        calls.append(inputs[0].array.shape)
        done = session.run(wanted, {each.name: each.array for each in inputs})
        return Response([Tensor(*pair) for pair in zip(wanted, done, strict=True)])

    def by_name(holder: Any, name: str) -> Tensor | None:
        return next((each for each in holder.tensors if each.name == name), None)

    stand_in = SimpleNamespace(
        Tensor=Tensor,
        InferenceResponse=Response,
        TritonError=lambda message: SimpleNamespace(message=lambda: message),
        InferenceRequest=lambda model_name, requested_output_names, inputs: SimpleNamespace(
            exec=lambda: run(model_name, requested_output_names, inputs)
        ),
        get_output_tensor_by_name=by_name,
        get_input_tensor_by_name=by_name,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stand_in)
    repo, sessions = written, {}
    write_repository(with_prompts, repo, force=True)

    def start(name: str) -> Any:
        file = repo / name / "1" / "model.py"
        spec = importlib.util.spec_from_file_location(f"triton_{name}", file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        config = json.dumps({
            "parameters": {
                key: {"string_value": value.string_value}
                for key, value in parsed(repo / name / "config.pbtxt").parameters.items()
            }
        })  # fmt: skip
        model.initialize({
            "model_config": config, "model_repository": str(repo / name), "model_version": "1",
        })  # fmt: skip
        return model

    return SimpleNamespace(start=start, calls=calls)


def request(texts: list[Any], prompt: str | None = None) -> Any:
    raw = [text.encode() if isinstance(text, str) else text for text in texts]
    tensors = [Tensor("text", np.array(raw, object).reshape(-1, 1))]
    if prompt is not None:
        tensors.append(Tensor("prompt_name", np.array([[prompt.encode()]], object)))
    return SimpleNamespace(tensors=tensors)


def vectors(response: Response) -> np.ndarray:
    assert not response.has_error(), response.error().message()
    assert response.tensors[0].name == "embedding"
    return response.tensors[0].array


def test_requests_are_answered_together_and_each_its_own(served: Any, sample_bundle: Path) -> None:
    model = served.start("sample")
    groups = [TEXTS[:1], TEXTS[1:], TEXTS]
    responses = model.execute([request(texts) for texts in groups])
    encoder = kosine.load(sample_bundle, backend="onnx", dtype="float32")
    for texts, response in zip(groups, responses, strict=True):
        found = vectors(response)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, encoder.encode(texts), atol=2e-6)
    # Fewer calls of the graph than texts: they share rectangles.
    assert len(served.calls) < sum(len(texts) for texts in groups)


def test_a_bad_request_fails_alone(served: Any, sample_bundle: Path) -> None:
    model = served.start("sample")
    nul, latin, good, prompt = model.execute(
        [request(["a\0b"]), request([b"\xff"]), request(["한 문장"]), request(["x"], "nobody")]
    )
    assert "NUL" in nul.error().message()
    assert latin.error().message() == "a text is not UTF-8"
    assert "nobody" in prompt.error().message()
    encoder = kosine.load(sample_bundle, backend="onnx", dtype="float32")
    np.testing.assert_allclose(vectors(good), encoder.encode(["한 문장"]), atol=2e-6)


def test_prompts_by_name(served: Any, with_prompts: Path) -> None:
    plain, asked = served.start("asks").execute(
        [request(["보험 약관"]), request(["보험 약관"], "query")]
    )
    encoder = kosine.load(with_prompts, backend="onnx", dtype="float32")
    expected = encoder.encode(["보험 약관"], prompt_name="query")
    np.testing.assert_allclose(vectors(asked), expected, atol=2e-6)
    assert not np.allclose(vectors(plain), vectors(asked), atol=1e-3)


def test_what_is_there_is_replaced_only_by_force(written: Path, sample_bundle: Path) -> None:
    with pytest.raises(BundleExists, match="--force"):
        write_repository(sample_bundle, written)
    write_repository(sample_bundle, written, force=True)
    assert not [*written.glob(".*.part")]


def test_a_place_that_is_none_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/models"):
        with pytest.raises(InputError, match="no model repository can be written"):
            check_repository(tmp_path / "x.kosine", tmp_path / place)


def test_names_that_triton_would_not_take(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="letters, digits"):
        repository.model_name(tmp_path / "한국어.kosine")


def test_from_the_command_line(tmp_path: Path, kosine_command: Any) -> None:
    done = kosine_command("export", SAMPLE, tmp_path / "ko.kosine", "--triton", tmp_path / "repo")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "repo").iterdir()) == ["ko", "ko_graph"]
    again = kosine_command("export", SAMPLE, tmp_path / "ko.kosine", "--triton", tmp_path / "repo")
    assert again.returncode == 2
