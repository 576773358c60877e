"""Rivals that wrap an engine which takes part by itself, for services to embed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from kosine_bench.contestants.contestant import Checkpoint, Contestant, Float32, Setting, normalise

__all__ = ["FastEmbed", "Infinity"]


class FastEmbed(Contestant):
    """fastembed with the same weights as a custom model; it offers no way past its tokenizer."""

    name = "fastembed-float32"
    label = "fastembed fp32"
    precision = "float32"
    converts = ("fastembed",)
    packages = ("fastembed", "onnxruntime")
    imports = "import fastembed"
    engine = False

    def load(self, checkpoint: Checkpoint, threads: int) -> None:
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType

        TextEmbedding.add_custom_model(
            model="kosine-bench/encoder",
            pooling=PoolingType(checkpoint.pooling.upper()),
            normalization=True,
            sources=ModelSource(hf="kosine-bench/encoder"),
            dim=checkpoint.dim,
            model_file="model.onnx",
        )
        self.model = TextEmbedding(
            "kosine-bench/encoder",
            threads=threads,
            specific_model_path=str(checkpoint.converted / "fastembed"),
        )

    def encode(self, texts: Sequence[str], setting: Setting) -> Float32:
        indices = [i for group in setting.groups([len(text) for text in texts]) for i in group]
        ordered = self.model.embed([texts[i] for i in indices], batch_size=setting.batch_size)
        vectors: Float32 = np.empty((len(texts), 0), np.float32)
        for i, vector in zip(indices, ordered, strict=True):
            if not vectors.shape[1]:
                vectors = np.empty((len(texts), len(vector)), np.float32)
            vectors[i] = vector
        return vectors


class Infinity(Contestant):
    """infinity's asynchronous engine in process, on PyTorch; it batches and sorts by itself."""

    name = "infinity-float32"
    label = "infinity fp32"
    precision = "float32"
    environment = "infinity"
    packages = ("infinity-emb", "sentence-transformers", "torch")
    imports = "import infinity_emb"
    environ: ClassVar[dict[str, str]] = {"INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    engine = False
    sorts = True
    start_seconds = 12.0
    batch_size = 0

    def load(self, checkpoint: Checkpoint, threads: int) -> None:
        import asyncio

        import torch

        torch.set_num_threads(threads)
        self.loop = asyncio.new_event_loop()
        self.folder = checkpoint.folder
        self.apply(Setting(32))

    def apply(self, setting: Setting) -> None:
        from infinity_emb import AsyncEmbeddingEngine, EngineArgs

        if setting.batch_size == self.batch_size:
            return
        self.close()
        self.engine_ = AsyncEmbeddingEngine.from_args(
            EngineArgs(
                model_name_or_path=str(self.folder),
                engine="torch",
                device="cpu",
                dtype="float32",
                bettertransformer=False,
                model_warmup=False,
                batch_size=setting.batch_size,
            )
        )
        self.loop.run_until_complete(self.engine_.astart())
        self.batch_size = setting.batch_size

    def settings(self, mode: str) -> list[Setting]:
        # One engine serves single texts and bursts alike; its batch size is a start-up option.
        return [Setting(n) for n in ((32, 8) if mode == "burst" else (32,))]

    def encode(self, texts: Sequence[str], setting: Setting) -> Float32:
        self.apply(setting)
        vectors, _ = self.loop.run_until_complete(self.engine_.embed(list(texts)))
        return normalise(np.stack(vectors))

    def close(self) -> None:
        if self.batch_size:
            self.loop.run_until_complete(self.engine_.astop())
            self.batch_size = 0
