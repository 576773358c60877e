r"""Encoders at the sizes that are published, random weights: what export and loading take, and how
far each engine is from PyTorch. Outside `make test`: gigabytes, and minutes for each step.

    python tests/full_size_trial.py make    modernbert-base FOLDER
    python tests/full_size_trial.py export  modernbert-base FOLDER
    python tests/full_size_trial.py float16 modernbert-base FOLDER
    python tests/full_size_trial.py compare modernbert-base FOLDER [--lengths 2,128,2048] \
        [--dtypes float32,bfloat16]

Each step is a process of its own and prints one line of JSON with its seconds, those of its CPUs
and its peak memory. `float16` says what the range certificate found. Runs so far:
bench/results/full-size/.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import factories
import kosine
from kosine.errors import ParityError
from test_published_shapes import GEMMA_300M, GTE_BASE, MODERNBERT_BASE, QWEN3_600M

XLM_R_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "max_position_embeddings": 8194,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "vocab_size": 250002,
}
# Family, config, pooling, Dense modules, and the most tokens.
MODELS: dict[str, tuple[str, dict[str, Any], str, list[dict[str, Any]], int]] = {
    "xlm-roberta-large-8192": ("xlm-roberta", XLM_R_LARGE, "cls", [], 8192),
    "modernbert-base": ("modernbert", MODERNBERT_BASE, "cls", [], 8192),
    # As transformers spells it: sentence-transformers loads no NewModel without its own code.
    "gte-multilingual-base": (
        "gte",
        {**GTE_BASE, **factories.GTE_OF_ITS_OWN["gte"], "model_type": "gte"},
        "cls",
        [],
        8192,
    ),
    "qwen3-0.6b": ("qwen3", QWEN3_600M, "lasttoken", [], 8192),
    "embeddinggemma-300m": (
        "gemma3_text",
        GEMMA_300M,
        "mean",
        [
            {"outputs": 3072, "bias": False, "activation": "torch.nn.modules.linear.Identity"},
            {"outputs": 768, "bias": False, "activation": "torch.nn.modules.linear.Identity"},
        ],
        2048,
    ),
}


def make(name: str, folder: Path) -> dict[str, Any]:
    family, config, pooling, dense, longest = MODELS[name]
    factories.build(
        folder / name,
        family=family,
        pooling=pooling,
        normalize=True,
        dense=dense,
        generation="5.4",
        max_length=longest,
        sizes=dict(config),
        layout="transformers" if family == "gte" else "packed",
    )
    return {"bytes": sum(each.stat().st_size for each in (folder / name).rglob("*.safetensors"))}


def export(name: str, folder: Path) -> dict[str, Any]:
    """As on a machine without PyTorch: `compare` is what holds the vectors against it."""
    from kosine_export import export as exporting

    exporting.missing_packages = lambda **_: ("torch",)
    done = exporting.export(folder / name, folder / f"{name}.kosine", force=True)
    return {"bytes": sum(entry.bytes for entry in done.manifest.files().values())}


def float16(name: str, folder: Path) -> dict[str, Any]:
    """The export with float16 graphs: refused, or the largest number that a tensor reached."""
    from kosine_export import export as exporting

    exporting.missing_packages = lambda **_: ("torch",)
    bundle = folder / f"{name}-fp16.kosine"
    try:
        done = exporting.export(folder / name, bundle, targets=["onnx-fp16"], force=True)
    except ParityError as refused:
        return {"refused": str(refused)}
    assert done.certificate is not None
    return {"certificate": done.certificate.to_json()}


def compare(
    name: str, folder: Path, backend: str, dtypes: list[str], lengths: list[int]
) -> dict[str, Any]:
    """For each dtype the seconds to load, and for each length the seconds, the largest difference
    of a number from PyTorch's float32, and how far the cosine is below one; peaks of memory of
    loading and of encoding. With bfloat16 also how far PyTorch's own bfloat16 is.
    """
    result: dict[str, Any] = {"lengths": lengths}
    texts: list[str] = []
    found: dict[str, list[np.ndarray]] = {}
    for dtype in dtypes:
        forget_peak()
        loading, encoding = Stopwatch(), Stopwatch()
        with loading:
            encoder = kosine.load(folder / f"{name}.kosine", backend=backend, dtype=dtype)
        result[dtype] = {**loading.line("load"), "load_mib": peak()}
        forget_peak()
        texts = texts or [text_of(encoder, length) for length in lengths]
        found[dtype] = []
        for text in texts:
            with encoding:
                found[dtype].append(encoder.encode(text))
        result[dtype] |= {**encoding.line("encode"), "encode_mib": peak()}
        encoder.backend.close()
        del encoder
    expected, result["pytorch_float32"] = referee(name, folder, texts, "float32")
    if "bfloat16" in dtypes:
        theirs = referee(name, folder, texts, "bfloat16")
        found["pytorch_bfloat16"], result["pytorch_bfloat16"] = theirs
    for dtype, vectors in found.items():
        errors, below = [], []
        for own, true in zip(vectors, expected, strict=True):
            errors.append(float(f"{np.abs(true - own).max():.2g}"))
            cosine = float(true.astype(np.float64) @ own.astype(np.float64))
            below.append(float(f"{1 - cosine:.2g}"))
        result[dtype] |= {"max_abs_error": errors, "cosine_below_1": below}
    return result


def referee(
    name: str, folder: Path, texts: list[str], dtype: str
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """PyTorch's unit vectors, each text alone, and its times. Its fused attention: a text of 8,192
    tokens would have 4 GB of scores.
    """
    forget_peak()
    model = factories.referee(folder / name, attention="sdpa", dtype=dtype)
    vectors, encoding = [], Stopwatch()
    for text in texts:
        with encoding:
            (vector,) = factories.referee_vectors(model, [text], threads=2)
        vector = vector.astype(np.float32)
        vectors.append(vector / np.linalg.norm(vector))
    return vectors, {**encoding.line("encode"), "mib": peak()}


class Stopwatch:
    """Seconds of each block, and of the CPUs: those change less where others work too."""

    def __init__(self) -> None:
        self.laps: list[tuple[float, float]] = []

    def __enter__(self) -> None:
        self.began = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        now = time.perf_counter(), time.process_time()
        self.laps.append((round(now[0] - self.began[0], 2), round(now[1] - self.began[1], 2)))

    def line(self, what: str) -> dict[str, Any]:
        seconds, cpu = zip(*self.laps, strict=True)
        return {f"{what}_s": seconds, f"{what}_cpu_s": cpu}


def text_of(encoder: kosine.Encoder, length: int) -> str:
    """A text of that many tokens, special ones included."""
    words, least = [], encoder.count_tokens("")
    while len(words) + least < length:
        words.append("xyzuvw"[len(words) ** 2 % 6])
    text = "".join(words)
    if encoder.count_tokens(text) != length:  # where neighbours would be joined
        text = " ".join(words)
    counted = encoder.count_tokens(text)
    while counted > length:
        words = words[: len(words) * length // counted]
        text = " ".join(words)
        counted = encoder.count_tokens(text)
    return text


def forget_peak() -> None:
    """Count `peak` from here."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")


def peak() -> int:
    """MiB of memory that this process held at most, mapped files included."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=("make", "export", "float16", "compare"))
    parser.add_argument("model", choices=tuple(MODELS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lengths", default="2,128,512,2048")
    parser.add_argument("--backend", default="native")
    parser.add_argument("--dtypes", default="float32")
    args = parser.parse_args()
    line: dict[str, Any] = {"step": args.step, "model": args.model}
    if args.step == "compare":
        lengths = [int(each) for each in args.lengths.split(",")]
        dtypes = args.dtypes.split(",")
        line |= compare(args.model, args.folder, args.backend, dtypes, lengths)
    else:
        steps = {"make": make, "export": export, "float16": float16}
        whole = Stopwatch()
        with whole:
            result = steps[args.step](args.model, args.folder)
        line |= {**whole.line(args.step), "peak_mib": peak(), **result}
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
