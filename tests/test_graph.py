"""The graphs as ONNX Runtime runs them: NaN, blocks of queries, and what must not change."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from kosine.backends.rows.fill import fill_rows
from kosine.backends.rows.plan import plan_rows
from kosine.bundle.graphscan import MAX_GRAPH_BYTES, scan_graph
from kosine.bundle.tensorfile import TensorEntry, write_tensors
from kosine.packed import Packed
from kosine.spec import Dense, EncoderSpec
from kosine_export.graph.packed import QUERY_BLOCK, packed_graph
from kosine_export.graph.padded import model_graph
from native_machine import NAN_ORDERS, Encoder, overflowing, script
from specs import spec_of_sizes


def spec_of(encoder: Encoder) -> EncoderSpec:
    shapes = {name: tensor.shape for name, tensor in encoder.tensors.items()}
    options = encoder.options
    return spec_of_sizes(
        hidden=shapes["layers.0.attention.output.weight"][0],
        heads=options["num_heads"],
        inner=shapes["layers.0.ffn.up.weight"][1],
        layers=options["num_layers"],
        vocab=encoder.vocab,
        embedding=shapes["embeddings.word.weight"][1],
        positions=encoder.positions,
        token_types=shapes.get("embeddings.token_type.weight", (0,))[0],
        eps=options["layer_norm_eps"],
        pooling=options["pooling"],
        dense=tuple(
            Dense(*shapes[f"dense.{i}.weight"], f"dense.{i}.bias" in shapes, activation, residual)
            for i, (activation, residual) in enumerate(options["dense"])
        ),
    )


def open_graph(model: onnx.ModelProto, path: Path) -> Any:
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def packed_runner(
    encoder: Encoder, folder: Path, *, max_tokens: int = 64
) -> Callable[[Packed], tuple[np.ndarray, np.ndarray]]:
    """Vectors and norms of a batch by the packed graph, all sentences in one plan."""
    entries = write_tensors(folder / "weights.safetensors", encoder.tensors)
    model, _ = packed_graph(spec_of(encoder), entries, max_tokens=max_tokens)
    session = open_graph(model, folder / "packed.onnx")
    names = [node.name for node in session.get_inputs()]

    def run(batch: Packed) -> tuple[np.ndarray, np.ndarray]:
        positions = np.concatenate([np.arange(n) for n in batch.lengths]).astype(np.int32)
        found = []
        for plan in plan_rows(batch.lengths):
            rows = fill_rows(batch, positions, plan, 0)
            vectors, norms = session.run(None, {name: getattr(rows, name) for name in names})
            found += list(zip(plan.indices, vectors, norms, strict=True))
        found.sort(key=lambda each: int(each[0]))
        return np.stack([each[1] for each in found]), np.stack([each[2] for each in found])

    return run


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("activation", ["", "identity", "tanh", "relu", "gelu", "sigmoid"])
def test_a_nan_of_any_token_shows(tmp_path: Path, pooling: str, activation: str) -> None:
    dense = ((64, activation, False, True),) if activation else ()
    encoder = overflowing(pooling=pooling, dense=dense)
    packed = packed_runner(encoder, tmp_path)
    entries = write_tensors(tmp_path / "weights.safetensors", encoder.tensors)
    model = open_graph(model_graph(spec_of(encoder), entries), tmp_path / "model.onnx")
    for sentence in NAN_ORDERS:
        shows = sentence[0] == 0 if pooling == "cls" else 0 in sentence
        vectors, norms = packed(Packed.of([sentence]))
        assert np.isnan(vectors).all() == np.isnan(norms).all() == shows
        assert np.isfinite(vectors).all() != shows
        # A token of padding is no token of the sentence, whatever becomes of it.
        ids, mask = np.array([[*sentence, 1]]), np.array([[1] * len(sentence) + [0]])
        (found,) = model.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})
        assert np.isnan(found).all() == shows
        assert np.isfinite(found).all() != shows


def test_maxima_are_those_of_the_reference(tmp_path: Path) -> None:
    encoder = Encoder(pooling="max")
    ids, starts, positions = encoder.batch([5, 1, 17, 33, 2, 16])
    vectors, norms = packed_runner(encoder, tmp_path)(Packed(ids, starts))
    expected, expected_norms = encoder.reference(ids, starts, positions)
    assert np.abs(vectors - expected).max() <= 2e-6
    np.testing.assert_allclose(norms, expected_norms, rtol=2e-6)


# Graphs of encoders of up to `QUERY_BLOCK` tokens: TensorRT and OpenVINO know their form. Who
# means to change it measures both, and then changes these.
GOLDEN = {
    "mean float32 packed": "77b1c582a80086efb1c274cd6f111e583d3a253193dc2ee1b2a3425999c9b649",
    "mean float32 model": "a487a2b48994164f545433fd7a70d01f511b3be0f992515316ab76160b4eea24",
    "mean float16 packed": "2648de09d3286cf0c21ba7fe6b0beece74c29dac5dc4af6aa3e7892953c3c230",
    "mean float16 model": "b622cc21e7e0ced2b18f064487bbfa8290c4e065ed3f94310f2122800c7d8619",
    "cls float32 packed": "477e26521542934af13cd8f4db251fba03c664b1173f9659f80fbe85450c68e6",
    "cls float32 model": "90a4f0140fbc2f0b07af4b8adfea5b27eec18bed2c78c83b1bb1dba419458b03",
    "cls float16 packed": "19666f7141117ae6e48aea7f0ec23ca26863dd95771fb07413f33e849263f501",
    "cls float16 model": "c2a82f675bd7b9bb03eae5bd56825ac5e19c9d5a166b238880aae97b352040e1",
    "max float32 packed": "bbfe1ff8911accb05e62bd97449d40e09a8cb782e573097e43403f7775cd0839",
    "max float32 model": "5798da5d7da5458f849d45894c3d98821591644c4c7f29ec261740178e0d76f9",
    "max float16 packed": "1a335b40f03d61eb27c47730f1ed187b0ff2f1b1e6f58b47871ddf157c1fbb8d",
    "max float16 model": "2f7a13335e998db447aea524b84e0a879c80d7977a269c4745a6b1846ae7d43d",
}


@pytest.mark.parametrize("max_tokens", [512, QUERY_BLOCK])
@pytest.mark.parametrize("name", list(GOLDEN))
def test_graphs_of_ordinary_length_stay_as_they_are(name: str, max_tokens: int) -> None:
    pooling, precision, face = name.split()
    encoder = Encoder(pooling=pooling, embedding=32, dense=((40, "gelu", False, True),))
    entries = {
        tensor: TensorEntry(
            tensor,
            np.dtype("float16" if precision == "float16" and ".norm." not in tensor else "float32"),
            value.shape,
            64 * number,
            value.nbytes,
        )
        for number, (tensor, value) in enumerate(sorted(encoder.tensors.items()))
    }
    spec = spec_of(encoder)
    if face == "packed":
        model, _ = packed_graph(spec, entries, max_tokens=max_tokens, precision=precision)
    else:
        model = model_graph(spec, entries, precision=precision)
    data = model.SerializeToString(deterministic=True)
    assert hashlib.sha256(data).hexdigest() == GOLDEN[name]


class TestQueryBlocks:
    def test_vectors_are_those_of_one_block(self, tmp_path: Path) -> None:
        encoder = Encoder(positions=2600)
        runners = []
        for max_tokens in (QUERY_BLOCK, 2600):
            folder = tmp_path / str(max_tokens)
            folder.mkdir()
            runners.append(packed_runner(encoder, folder, max_tokens=max_tokens))
        # A text of one block, at its edge, just past it, of two and a bit, and rows of many.
        for lengths in ([3], [QUERY_BLOCK], [QUERY_BLOCK + 1], [5, 2600, 7, 40]):
            batch = Packed(*encoder.batch(lengths)[:2])
            whole, blocks = (run(batch) for run in runners)
            assert np.abs(blocks[0] - whole[0]).max() <= 1e-6
            np.testing.assert_allclose(blocks[1], whole[1], rtol=1e-6)

    @pytest.mark.parametrize("precision", ["float32", "float16"])
    def test_the_graph_passes_the_scan(self, tmp_path: Path, precision: str) -> None:
        encoder = Encoder(layers=24)
        entries = write_tensors(tmp_path / "weights.safetensors", encoder.tensors)
        spec = spec_of(encoder)
        model, _ = packed_graph(spec, entries, max_tokens=8192, precision=precision)
        data = model.SerializeToString()
        assert len(data) < MAX_GRAPH_BYTES / 2
        assert scan_graph(data, "packed.onnx")
        kinds = [node.op_type for node in model.graph.node]
        # TensorRT fuses the float16 graph's attention, which then holds no scores.
        blocks = 8192 // QUERY_BLOCK if precision == "float32" else 1
        assert kinds.count("Softmax") == 24 * blocks

    @pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
    def test_memory_is_that_of_a_block(self, tmp_path: Path) -> None:
        grown = {}
        for max_tokens in (QUERY_BLOCK, 4096):
            folder = tmp_path / str(max_tokens)
            folder.mkdir()
            encoder = Encoder(hidden=128, heads=8, positions=4096, layers=1)
            packed_runner(encoder, folder, max_tokens=max_tokens)
            done = subprocess.run(
                script(f"FOLDER = {str(folder)!r}\n{GROWTH}"),
                capture_output=True,
                text=True,
                check=True,
            )
            grown[max_tokens] = int(done.stdout)
        scores = 8 * 4096 * 4096 * 4  # of eight heads, in bytes
        assert grown[4096] < 1.3 * scores  # a quarter of them, a few times, and the mask
        # The negative control: here all of them are held, a few times.
        assert grown[QUERY_BLOCK] > 2 * scores


GROWTH = """
import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(FOLDER + "/packed.onnx", options)

def run(length):
    ids = np.arange(length)[None] % 50
    rows = {"input_ids": ids, "position_ids": np.arange(length)[None]}
    rows |= {"segment_ids": np.ones_like(ids), "slots": np.array([1])}
    session.run(None, rows | {"sentence_index": np.array([0])})

def peak():  # getrusage counts in what this process held before it became this program
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

run(8)
before = peak()
run(4096)
print(peak() - before)
"""
