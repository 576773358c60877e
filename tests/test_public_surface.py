"""What users may rely on: names, signatures, and what importing kosine brings along."""

from __future__ import annotations

import inspect
import json
import statistics
import subprocess
import sys

import pytest

import kosine
from kosine import Encoder, cli
from kosine.backend import Backend
from kosine.backends.registry import BACKENDS, DTYPES, capabilities
from kosine.bundle.canary import GATES

HEAVY = ("torch", "transformers", "sentence_transformers", "onnx", "onnxruntime", "kosine_export",
         "kosine_bench", "tqdm", "safetensors", "openvino", "optimum")  # fmt: skip


def test_the_names():
    assert kosine.__all__ == [
        "Batcher",
        "Encoder",
        "KosineError",
        "Packed",
        "Pooled",
        "TopK",
        "community_detection",
        "cosine",
        "errors",
        "load",
        "paraphrase_mining",
        "semantic_search",
        "top_k",
    ]
    assert kosine.__all__ == sorted(kosine.__all__)
    assert all(hasattr(kosine, name) for name in kosine.__all__)


def test_what_comes_late_is_listed_too():
    """`dir` and completion show what is imported only when it is used."""
    code = "import kosine; print(sorted({*kosine.__all__, '__version__'} - {*dir(kosine)}))"
    assert python(code) == "[]\n"


def parameters(function) -> str:
    return ", ".join(
        f"{'*' if p.kind is p.KEYWORD_ONLY else ''}{name}"
        for name, p in inspect.signature(function).parameters.items()
        if name != "self"
    )


ENCODE = (
    "sentences, prompt_name, prompt, batch_size, show_progress_bar, precision, "
    "normalize_embeddings, truncate_dim, *truncate, *ranges, *convert_to_numpy, "
    "*convert_to_tensor, *device, *output_value, *pool, *chunk_size, *inputs, *output"
)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (
            kosine.load,
            "bundle, *backend, *dtype, *device, *threads, *spin, *max_batch_tokens, "
            "*max_text_bytes, *normalize_embeddings",
        ),
        *[
            (encode, ENCODE)
            for encode in (Encoder.encode, Encoder.encode_query, Encoder.encode_document)
        ],
        (Encoder.similarity, "a, b, *precision, *ranges"),
        (Encoder.similarity_pairwise, "a, b, *precision, *ranges"),
        (Encoder.count_tokens, "sentences, prompt_name, prompt"),
        (Encoder.counts, ""),
        (kosine.cosine, "a, b, *precision, *ranges"),
        (kosine.top_k, "queries, corpus, k, *similarity, *precision, *ranges"),
        (
            kosine.semantic_search,
            "query_embeddings, corpus_embeddings, query_chunk_size, corpus_chunk_size, top_k, "
            "score_function",
        ),
        (
            kosine.paraphrase_mining,
            "model, sentences, show_progress_bar, batch_size, query_chunk_size, "
            "corpus_chunk_size, max_pairs, top_k, score_function, truncate_dim, prompt_name, "
            "prompt",
        ),
        (
            kosine.community_detection,
            "embeddings, threshold, min_community_size, batch_size, show_progress_bar",
        ),
    ],
)
def test_signatures(function, expected):
    assert parameters(function) == expected


def test_names_that_sentence_transformers_users_know():
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = inspect.signature(sentence_transformers.SentenceTransformer.encode).parameters
    ours = inspect.signature(Encoder.encode).parameters
    # Each version of theirs has one of the last two.
    own = {"truncate", "ranges", "output", "sentences", "inputs"}
    assert set(ours) - own == set(theirs) - {*own, "kwargs"}
    assert {"sentences", "inputs"} <= set(ours)
    assert {"sentences", "inputs"} & set(theirs)


def test_the_encoders_public_names():
    public = {name for name in dir(Encoder) if not name.startswith("_")}
    assert public == {
        # what a SentenceTransformer has
        *("default_prompt_name", "device", "eval", "get_embedding_dimension"),
        *("get_max_seq_length", "get_sentence_embedding_dimension", "max_seq_length"),
        *("model_card_data", "prompts", "similarity_fn_name", "tokenize"),
        "compute",
        "count_tokens",
        "counts",
        "encode",
        "encode_document",
        "encode_query",
        "fingerprint",
        "finish",
        "prepare",
        "prompt_text",
        "similarity",
        "similarity_pairwise",
    }


def test_backends_keep_the_protocol(sample):
    assert isinstance(sample.backend, Backend)
    able = {name: capabilities(name) for name in BACKENDS}
    assert set().union(*(each.dtypes for each in able.values())) == set(DTYPES)
    assert set(DTYPES) == set(GATES), "every dtype needs a canary gate"
    for name, each in able.items():
        assert set(each.auto) <= {"cpu", "cuda"}, name
        for tried in each.auto.values():
            assert set(tried) <= set(each.dtypes), name


def test_every_public_thing_says_what_it_is():
    for name in kosine.__all__:
        assert inspect.getdoc(getattr(kosine, name)), name
    for name in dir(Encoder):
        if not name.startswith("_"):
            assert inspect.getdoc(getattr(Encoder, name)), name


def test_verbs_come_in_the_designs_order():
    order = [
        "export", "verify", "info", "embed", "score", "eval", "compare", "search", "serve",
        "bench", "completion",
    ]  # fmt: skip
    assert list(cli.VERBS) == [verb for verb in order if verb in cli.VERBS]
    assert set(order[:8]) <= set(cli.VERBS)


# Importing


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stderr == ""
    return done.stdout


def modules_after(code: str) -> set[str]:
    listing = python(f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))")
    return {name.partition(".")[0] for name in json.loads(listing.splitlines()[-1])}


def test_import_is_lean():
    loaded = modules_after("import kosine")
    assert "kosine" in loaded
    assert "numpy" in loaded
    assert not loaded & set(HEAVY)


def test_encoding_needs_its_engine_and_no_more(sample_bundle):
    loaded = modules_after(
        f"import kosine\nkosine.load({str(sample_bundle)!r}, backend='onnx').encode(['가'])"
    )
    assert {"tokenizers", "onnxruntime"} <= loaded
    assert not loaded & (set(HEAVY) - {"onnxruntime"})


def test_the_command_line_imports_a_verb_when_it_is_used(sample_bundle):
    loaded = modules_after(
        f"from kosine.cli import main\nassert main(['info', {str(sample_bundle)!r}]) == 0"
    )
    assert not loaded & (set(HEAVY) - {"onnxruntime"})


def test_import_time():
    """At most what numpy and tokenizers alone take; medians, the two taken turn about."""
    code = "import time; b = time.perf_counter(); import {}; print(time.perf_counter() - b)"
    over = []
    for _ in range(3):
        alone, ours = [], []
        for _ in range(5):
            alone.append(float(python(code.format("numpy, tokenizers"))))
            ours.append(float(python(code.format("numpy, tokenizers, kosine"))))
        over.append(statistics.median(ours) / statistics.median(alone) - 1)
        if over[-1] <= 1:
            return
    pytest.fail(f"import kosine takes {min(over):.0%} more than numpy and tokenizers alone")
