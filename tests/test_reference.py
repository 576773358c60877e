"""The numpy reference against PyTorch in float64: what every faster path is held against."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest

from kosine.spec import PoolingMode
from kosine_kernels import activations, reference
from kosine_kernels.steps import Attention, Dense, Embed, FeedForward, Linear, Norm, Pool

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "pad_token_id": 1,
    "attn_implementation": "eager",
}
SENTENCES = [[0, 7, 2], [0, 2], [0, *range(5, 35), 2], [9], [0, 11, 11, 11, 2]]


def make(family: str):
    """A random model in double precision, its weights far from their initial sameness."""
    torch.manual_seed(3)
    if family == "bert":
        model = transformers.BertModel(transformers.BertConfig(**SIZES))
    elif family == "roberta":
        sizes = {**SIZES, "type_vocab_size": 1}
        model = transformers.RobertaModel(transformers.RobertaConfig(**sizes))
    else:
        model = transformers.ElectraModel(transformers.ElectraConfig(**SIZES, embedding_size=10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.25)
    return model.double().eval()


def tensors_of(model) -> dict[str, np.ndarray]:
    """Canonical names and layouts, spelled out here anew and not taken from the exporter."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    out = {}
    for ours, theirs in (("word", "word_embeddings"), ("position", "position_embeddings"),
                         ("token_type", "token_type_embeddings")):  # fmt: skip
        out[f"embeddings.{ours}.weight"] = state[f"embeddings.{theirs}.weight"]
    for part in ("weight", "bias"):
        out[f"embeddings.norm.{part}"] = state[f"embeddings.LayerNorm.{part}"]
    if "embeddings_project.weight" in state:
        out["embeddings.project.weight"] = state["embeddings_project.weight"].T
        out["embeddings.project.bias"] = state["embeddings_project.bias"]
    for n in range(SIZES["num_hidden_layers"]):
        own, at = f"layers.{n}", f"encoder.layer.{n}"
        for part in ("weight", "bias"):
            parts = [state[f"{at}.attention.self.{x}.{part}"] for x in ("query", "key", "value")]
            out[f"{own}.attention.qkv.{part}"] = np.concatenate(parts).T
            for ours, theirs in (("attention.output", "attention.output.dense"),
                                 ("ffn.up", "intermediate.dense"),
                                 ("ffn.down", "output.dense")):  # fmt: skip
                out[f"{own}.{ours}.{part}"] = state[f"{at}.{theirs}.{part}"].T
            out[f"{own}.attention.norm.{part}"] = state[f"{at}.attention.output.LayerNorm.{part}"]
            out[f"{own}.ffn.norm.{part}"] = state[f"{at}.output.LayerNorm.{part}"]
    return out


def hidden_states(model, sentence: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([sentence])).last_hidden_state[0].numpy()


def run(
    model, family, sentences, *, skip=None, pooling="mean", dense=(), more=None, dtype=np.float64
):
    ids = np.concatenate([np.int32(s) for s in sentences])
    starts = np.cumsum([0, *map(len, sentences)]).astype(np.int32)
    offset = 2 if family == "roberta" else 0
    positions = np.concatenate([np.arange(len(s)) + offset for s in sentences]).astype(np.int32)
    shape = SIZES["num_attention_heads"], SIZES["hidden_size"] // SIZES["num_attention_heads"]
    eps = model.config.layer_norm_eps
    steps = [
        Embed("embeddings.word", "embeddings.position", "embeddings.token_type"),
        Norm("embeddings.norm", eps),
    ]
    tensors = {**tensors_of(model), **(more or {})}
    if "embeddings.project.weight" in tensors:
        steps.append(Linear("embeddings.project"))
    for n in range(SIZES["num_hidden_layers"]):
        at = f"layers.{n}"
        steps += [
            Attention(f"{at}.attention.qkv", f"{at}.attention.output", *shape),
            Norm(f"{at}.attention.norm", eps),
            FeedForward(f"{at}.ffn.up", f"{at}.ffn.down"),
            Norm(f"{at}.ffn.norm", eps),
        ]
    steps += [Pool((pooling,)), *dense]
    return reference.encode(steps, tensors, ids, starts, skip, positions, dtype=dtype)


@pytest.fixture(scope="module", params=["bert", "roberta", "electra"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return make(family)


def pool(states: np.ndarray, mode: str, skip: int = 0) -> np.ndarray:
    kept = states[skip:]
    places = np.arange(1, len(states) + 1)[skip:, None]
    return {
        "cls": lambda: kept[0],
        "mean": lambda: kept.mean(axis=0),
        "max": lambda: kept.max(axis=0),
        "mean_sqrt_len_tokens": lambda: kept.sum(axis=0) / len(kept) ** 0.5,
        "weightedmean": lambda: (kept * places).sum(axis=0) / places.sum(),
        "lasttoken": lambda: kept[-1],
    }[mode]()


@pytest.mark.parametrize("pooling", get_args(PoolingMode))
def test_vectors_and_norms_are_those_of_torch(model, family, pooling):
    vectors, norms = run(model, family, SENTENCES, pooling=pooling)
    expected = np.stack([pool(hidden_states(model, s), pooling) for s in SENTENCES])
    lengths = np.linalg.norm(expected, axis=1)
    # Equal but for the rounding of the result to float32.
    np.testing.assert_allclose(norms, lengths, rtol=1.2e-7)
    np.testing.assert_allclose(vectors, expected / lengths[:, None], rtol=1.2e-7, atol=1e-12)
    assert vectors.dtype == norms.dtype == np.float32


def test_float32_arithmetic_stays_near(model, family):
    exact, exact_norms = run(model, family, SENTENCES)
    near, near_norms = run(model, family, SENTENCES, dtype=np.float32)
    np.testing.assert_allclose(near, exact, atol=2e-6)
    np.testing.assert_allclose(near_norms, exact_norms, rtol=2e-6)
    assert (near != exact).any()  # it really was other arithmetic


def test_sentences_do_not_see_their_neighbours(model, family):
    together, norms = run(model, family, SENTENCES)
    for i, sentence in enumerate(SENTENCES):
        alone, alone_norm = run(model, family, [sentence])
        np.testing.assert_array_equal(alone[0], together[i])
        assert alone_norm[0] == norms[i]


@pytest.mark.parametrize("pooling", get_args(PoolingMode))
def test_prompts_are_left_out_of_pooling(model, family, pooling):
    skip = np.array([1, 0, 5, 0, 2], np.int32)
    vectors, _ = run(model, family, SENTENCES, pooling=pooling, skip=skip)
    for i, sentence in enumerate(SENTENCES):
        expected = pool(hidden_states(model, sentence), pooling, int(skip[i]))
        np.testing.assert_allclose(vectors[i], expected / np.linalg.norm(expected), rtol=2e-7)


def test_nothing_left_to_pool():
    model = make("bert")
    skip = np.array([3], np.int32)
    for pooling in set(get_args(PoolingMode)) - {"cls"}:
        vectors, norms = run(model, "bert", [[0, 7, 2]], pooling=pooling, skip=skip)
        assert not vectors.any()
        assert not norms.any()
    cls, _ = run(model, "bert", [[0, 7, 2]], pooling="cls", skip=skip)
    plain, _ = run(model, "bert", [[0, 7, 2]], pooling="cls")
    np.testing.assert_array_equal(cls, plain)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("identity", torch.nn.Identity()),
        ("tanh", torch.nn.Tanh()),
        ("relu", torch.nn.ReLU()),
        ("sigmoid", torch.nn.Sigmoid()),
        ("gelu", torch.nn.GELU()),
    ],
)
def test_dense_modules(name, activation, residual):
    model = make("bert")
    torch.manual_seed(5)
    layer = torch.nn.Linear(24, 24, bias=not residual).double()
    more = {"dense.0.weight": layer.weight.detach().numpy().T}
    if not residual:
        more["dense.0.bias"] = layer.bias.detach().numpy()
    step = Dense("dense.0", not residual, name, residual)
    vectors, norms = run(model, "bert", SENTENCES, dense=[step], more=more)
    pooled = torch.tensor(np.stack([pool(hidden_states(model, s), "mean") for s in SENTENCES]))
    with torch.no_grad():
        out = activation(layer(pooled))
    out = (out + pooled if residual else out).numpy()
    np.testing.assert_allclose(norms, np.linalg.norm(out, axis=1), rtol=2e-7)
    np.testing.assert_allclose(vectors, out / np.linalg.norm(out, axis=1)[:, None], rtol=2e-7)


X = np.concatenate([np.linspace(-9, 9, 2001), [0.0, -0.0, 1e-300, 40.0, -40.0]])


def test_erf_and_gelu():
    expected = np.array([math.erf(x) for x in X])
    np.testing.assert_allclose(activations.erf(X), expected, rtol=4 * np.finfo(float).eps)
    theirs = torch.nn.functional.gelu(torch.tensor(X)).numpy()
    np.testing.assert_allclose(activations.gelu(X), theirs, rtol=1e-12, atol=1e-15)
    assert activations.gelu(X.astype(np.float32)).dtype == np.float32
    tanh = torch.nn.functional.gelu(torch.tensor(X), approximate="tanh").numpy()
    assert np.abs(activations.gelu(X) - tanh).max() > 1e-4  # and not the other GELU


def test_erf_across_blocks():
    x = np.random.default_rng(5).normal(size=(2, activations.ERF_BLOCK + 1)) * 2
    expected = np.array([[math.erf(value) for value in row] for row in x])
    assert np.abs(activations.erf(x) - expected).max() <= 1e-15
    assert np.abs(activations.erf(x[:, ::-3]) - expected[:, ::-3]).max() <= 1e-15


def test_a_nan_stays_one_and_alone():
    for x in (np.nan, -np.nan):
        found = activations.gelu(np.array([1.0, x, -2.0]))
        np.testing.assert_array_equal(np.isnan(found), [False, True, False])
    assert np.isnan(activations.erf(np.array([np.nan], np.float32))).all()


def test_layer_norm():
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((5, 12)), rng.standard_normal(12), rng.standard_normal(12)
    theirs = torch.nn.functional.layer_norm(
        torch.tensor(x), (12,), torch.tensor(weight), torch.tensor(bias), 1e-5
    )
    np.testing.assert_allclose(reference.layer_norm(x, weight, bias, 1e-5), theirs, rtol=1e-12)


def test_names_that_do_not_exist():
    with pytest.raises(ValueError, match="activation 'swish'; known: identity"):
        activations.activate(X, "swish")
    with pytest.raises(ValueError, match="pooling 'median'; known: mean, cls, max"):
        run(make("bert"), "bert", SENTENCES, pooling="median")
