"""`model.onnx` of every family and pooling: the same vectors on whichever side it is padded."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnxruntime
import pytest

import factories
import numpy_encoder
from family_checks import MAX_ABS_ERROR
from kosine.bundle.tensorfile import write_tensors
from kosine.spec import PoolingMode
from kosine_export.checkpoint.checkpoint import read_checkpoint
from kosine_export.families.registry import MODEL_TYPES
from kosine_export.graph.files import write_graphs

pytest.importorskip("torch", reason="the factories make checkpoints with PyTorch")

TEXTS = ["한국어 문장 xyz", "", "긴 문장 " * 30, "안녕 xyzuvw xyzuvw", "xyzuvw" * 12]
MODES = get_args(PoolingMode)
SIDES = ("left", "right", "both", "mixed")


def rectangle(sentences, side):
    """Ids and mask. "both" has padding before and behind all, "mixed" left and right in turn.

    The id of padding is that of an ordinary token: the mask alone says what it is.
    """
    width = max(map(len, sentences)) + (7 if side == "both" else 0)
    ids, mask = (np.zeros((len(sentences), width), np.int64) for _ in range(2))
    for row, own in enumerate(sentences):
        free = width - len(own)
        before = {"left": free, "right": 0, "both": 3 + row % 3, "mixed": free * (row % 2)}[side]
        place = slice(before, before + len(own))
        ids[row, place], mask[row, place] = own, 1
    return ids, mask


def runner(checkpoint, folder):
    """Unit vectors of `model.onnx` for ids and mask."""
    folder.mkdir()
    entries = write_tensors(folder / "weights.safetensors", checkpoint.tensors)
    write_graphs(folder, checkpoint.spec, entries, "float32", max_tokens=checkpoint.max_tokens)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    names = {node.name for node in session.get_inputs()}

    def run(ids, mask):
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        feed = {name: value for name, value in feed.items() if name in names}
        return session.run(["sentence_embedding"], feed)[0]

    return run


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def padded_with(checkpoint, ids, mask):
    """The family's own id of padding, where positions are counted from it."""
    positions = checkpoint.spec.embeddings.positions
    return np.where(mask == 0, positions.pad_id, ids) if positions.rule == "roberta" else ids


def check(checkpoint, folder):
    run = runner(checkpoint, folder)
    sentences = numpy_encoder.token_ids(checkpoint, TEXTS)
    expected = unit(numpy_encoder.vectors(checkpoint, TEXTS))
    for side in SIDES:
        ids, mask = rectangle(sentences, side)
        found = run(padded_with(checkpoint, ids, mask), mask)
        assert np.abs(found - expected).max() <= MAX_ABS_ERROR, side
    # The negative control: who counts its padding in gets something else.
    whole = run(ids, np.ones_like(mask))
    assert np.abs(whole - expected).max() > 100 * MAX_ABS_ERROR


@pytest.mark.parametrize("family", MODEL_TYPES)
def test_every_family_takes_padding_on_any_side(family, tmp_path):
    path = factories.build(tmp_path / "m", family=family, pooling=MODES, generation="5.4")
    check(read_checkpoint(path), tmp_path / "graphs")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["bert", "roberta", "gte"])
def test_every_pooling_takes_padding_on_any_side(family, mode, tmp_path):
    """The three rules of positions: a table from 0, one from the pad id, and none."""
    path = factories.build(tmp_path / "m", family=family, pooling=mode, generation="5.4")
    check(read_checkpoint(path), tmp_path / "graphs")


@pytest.mark.parametrize("family", ["bert", "gte", "gemma3_text"])
def test_padding_far_before_a_text_costs_no_digits(family, tmp_path):
    """Rotary angles grow with places: those of the text count, not those of the rectangle."""
    sizes = {"max_position_embeddings": 4096}
    path = factories.build(
        tmp_path / "m", family=family, pooling="cls", generation="5.4", sizes=sizes
    )
    checkpoint = read_checkpoint(path)
    run = runner(checkpoint, tmp_path / "graphs")
    own = np.array(numpy_encoder.token_ids(checkpoint, ["안녕 xyzuvw"]), np.int64)
    far = np.zeros((1, 4000), np.int64)
    mask = np.zeros_like(far)
    far[0, -own.shape[1] :], mask[0, -own.shape[1] :] = own, 1
    alone = run(own, np.ones_like(own))
    assert np.abs(run(far, mask) - alone).max() <= 1e-6
