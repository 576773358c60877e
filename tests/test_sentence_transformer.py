"""Code written for sentence-transformers, handed an encoder: it runs unchanged, to its figures."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import get_args

import numpy as np
import pytest

import kosine
from conftest import SAMPLE
from evaluators import OTHERS, TEXTS, evaluators
from kosine.backends.registry import BACKENDS, DTYPES
from kosine.errors import InputError, MissingExtra, UnknownOption
from kosine.loading import BackendName, DtypeName
from kosine.quantization import PRECISIONS, Precision
from kosine.scoring import SIMILARITIES, Similarity


@pytest.fixture(scope="module")
def theirs():
    torch = pytest.importorskip("torch")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    return sentence_transformers.SentenceTransformer(
        str(SAMPLE), device="cpu", model_kwargs={"dtype": torch.float32}
    )


@pytest.fixture(scope="module")
def ours(sample_bundle):
    return kosine.load(sample_bundle, backend="onnx", normalize_embeddings=False)


def test_what_encode_gives(theirs, ours):
    import torch

    expected = theirs.encode(TEXTS)
    assert not np.allclose(np.linalg.norm(expected, axis=1), 1), "lengths would tell nothing"
    for call in (ours.encode, ours.encode_query, ours.encode_document):
        np.testing.assert_allclose(call(TEXTS), expected, atol=2e-5)
        np.testing.assert_allclose(call(inputs=TEXTS), expected, atol=2e-5)
        np.testing.assert_allclose(call(TEXTS, precision=None), expected, atol=2e-5)
        for options in (
            {"convert_to_tensor": True},
            {"convert_to_tensor": True, "convert_to_numpy": False},
            {"convert_to_numpy": False},
        ):
            for given in (TEXTS, TEXTS[0]):
                found, like = call(given, **options), theirs.encode(given, **options)
                assert type(found) is type(like)
                found, like = (torch.stack(list(x)) if x is found and isinstance(x, list) else
                               torch.stack(x) if isinstance(x, list) else x
                               for x in (found, like))  # fmt: skip
                assert found.dtype == like.dtype
                assert found.shape == like.shape
                assert torch.allclose(found, like, atol=2e-5)
    unit = ours.encode(TEXTS, normalize_embeddings=True, convert_to_tensor=True)
    assert torch.allclose(unit, theirs.encode(TEXTS, normalize_embeddings=True,
                                              convert_to_tensor=True), atol=2e-6)  # fmt: skip
    cut = ours.encode(TEXTS, truncate_dim=32)
    np.testing.assert_allclose(cut, theirs.encode(TEXTS, truncate_dim=32), atol=2e-5)


def test_unit_vectors_are_the_default(sample, ours):
    assert sample.normalize_embeddings
    np.testing.assert_allclose(np.linalg.norm(sample.encode(TEXTS), axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(ours.encode(TEXTS, normalize_embeddings=True),
                                  sample.encode(TEXTS))  # fmt: skip
    assert not pickle.loads(pickle.dumps(ours)).normalize_embeddings
    assert pickle.loads(pickle.dumps(sample)).normalize_embeddings


def test_properties(theirs, ours):
    import torch

    assert ours.similarity_fn_name == theirs.similarity_fn_name
    assert {"query": "", "document": ""} | ours.prompts == theirs.prompts
    assert ours.default_prompt_name == theirs.default_prompt_name
    assert torch.device(ours.device) == theirs.device
    assert ours.max_seq_length == theirs.max_seq_length == ours.get_max_seq_length()
    assert ours.get_embedding_dimension() == theirs.get_embedding_dimension() == ours.dim
    assert ours.get_sentence_embedding_dimension() == ours.dim
    assert ours.eval() is ours
    with pytest.raises(AttributeError):
        ours.max_seq_length = 12  # set at export


def test_tokenize(theirs, ours):
    found, expected = ours.tokenize(TEXTS), theirs.tokenize(TEXTS)
    for name in ("input_ids", "attention_mask"):
        np.testing.assert_array_equal(found[name], expected[name].numpy())
        assert found[name].dtype == np.int64
    assert found.keys() == {"input_ids", "attention_mask"}
    assert ours.tokenize(TEXTS[0])["input_ids"].shape == (
        1,
        len(ours.tokenize(TEXTS[0])["input_ids"][0]),
    )
    assert ours.tokenize([])["input_ids"].shape == (0, 0)


def test_scores_of_tensors_are_tensors(theirs, ours):
    import torch

    tensors = theirs.encode(TEXTS, convert_to_tensor=True)
    arrays = tensors.numpy()
    for name in ("similarity", "similarity_pairwise"):
        found, expected = getattr(ours, name), getattr(theirs, name)(tensors, tensors)
        for a, b in ((tensors, tensors), (tensors, arrays), (arrays, tensors),
                     (list(tensors), arrays)):  # fmt: skip
            assert isinstance(found(a, b), torch.Tensor)
            assert torch.allclose(found(a, b), expected, atol=1e-5)
        assert isinstance(found(arrays, arrays), np.ndarray)


# Evaluators


@pytest.mark.filterwarnings("ignore")  # what theirs say of themselves
@pytest.mark.parametrize("name", evaluators(None, None))
def test_evaluators(theirs, ours, name):
    from sentence_transformers import evaluation

    make = evaluators(evaluation, theirs)[name]
    expected, found = make()(theirs), make()(ours)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=2e-5, rel=1e-4), key
    assert next(reversed(ours.model_card_data.eval_results_dict.values())).keys() <= found.keys()


def test_their_paraphrase_mining(theirs, ours):
    from sentence_transformers import util

    expected, found = (util.paraphrase_mining(model, TEXTS) for model in (theirs, ours))
    assert [pair[1:] for pair in found] == [pair[1:] for pair in expected]
    np.testing.assert_allclose([p[0] for p in found], [p[0] for p in expected], atol=1e-5)


def test_their_mine_hard_negatives(theirs, ours, tmp_path):
    datasets = pytest.importorskip("datasets", reason="no datasets; see `make test-libraries`")
    from sentence_transformers import util

    pairs = datasets.Dataset.from_dict({"query": TEXTS, "answer": OTHERS})
    mined = [
        util.mine_hard_negatives(pairs, model, num_negatives=2, verbose=False,
                                 cache_folder=str(tmp_path / str(i)))
        for i, model in enumerate((theirs, ours))
    ]  # fmt: skip
    assert mined[0].to_dict() == mined[1].to_dict()


def test_a_cache_by_the_models_name_mixes_no_two(sample):
    """Whoever keeps vectors by `model_card_data.base_model` keeps them by the fingerprint."""
    card = sample.model_card_data
    assert card.base_model == f"kosine/{sample.fingerprint}"
    assert sample.model_card_data is card
    assert copy.copy(sample).model_card_data is not card


# What is refused, and what is not brought along


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"output_value": "token_embeddings"}, UnknownOption, "output_value is 'token_embeddings'"),
        ({"output_value": None}, UnknownOption, "output_value is None"),
        ({"device": "cuda"}, InputError, "device is 'cuda'; this encoder is on 'cpu'"),
        ({"device": ["cpu", "cpu"]}, InputError, "device is"),
        ({"pool": {"processes": []}}, InputError, "pool of processes"),
        ({"inputs": ["가"]}, InputError, "sentences and inputs"),
        ({"precision": "int4"}, UnknownOption, "int4"),
    ],
)
def test_what_would_change_something_is_an_error(sample, options, error, message):
    for call in (sample.encode, sample.encode_query, sample.encode_document):
        with pytest.raises(error, match=message):
            call(TEXTS, **options)


def test_its_own_device_is_taken(sample):
    for device in ("cpu", None):
        assert sample.encode(TEXTS[:1], device=device).shape == (1, sample.dim)


def test_tensors_need_torch(sample, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert sample.encode(TEXTS).shape == (len(TEXTS), sample.dim)
    for options in ({"convert_to_tensor": True}, {"convert_to_numpy": False}):
        with pytest.raises(MissingExtra, match=r"pip install 'kosine\[torch\]'"):
            sample.encode(TEXTS, **options)


def test_literals_are_what_is_known():
    assert get_args(Precision) == PRECISIONS
    assert get_args(Similarity) == SIMILARITIES
    assert get_args(BackendName) == ("auto", *sorted(BACKENDS, key=get_args(BackendName).index))
    assert {"auto", *DTYPES} <= set(get_args(DtypeName))
