"""What else runs a sentence encoder on a GPU, one small class each, in float16.

`target` and `dtype` are the only places that name the device and the precision, so that the
batching, packing and pooling here are checked on a CPU as well. A call returns float32 vectors
in host memory, so a clock around it has waited for the device.
"""

# ruff: noqa: ARG002  an interface's arguments are not all of use to every class

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kosine_bench.contestants.contestant import (
    Absent,
    Checkpoint,
    Contestant,
    Float32,
    Rows,
    Setting,
    padded,
)
from kosine_bench.contestants.rivals import SentenceTransformersFloat32

__all__ = [
    *("BULK_TEXTS", "SentenceTransformersCuda", "SentenceTransformersFloat32Cuda"),
    *("TorchCompiled", "TorchPadded", "TorchVarlen"),
]

BULK_TEXTS = (128, 512, 2_048)


class SentenceTransformersCuda(SentenceTransformersFloat32):
    """sentence-transformers as its users run it: float16 weights, its own sorting and padding."""

    name = "sentence-transformers-float16-cuda"
    label = "sentence-transformers fp16"
    precision = "float16"
    environment = "gpu"
    device = "cuda"
    target = "cuda:0"
    engine = False
    start_seconds = 8.0

    def settings(self, mode: str) -> list[Setting]:
        if mode == "bulk":
            return [Setting(n) for n in (32, *BULK_TEXTS)]
        return [Setting(1 if mode == "single" else 32)]


class SentenceTransformersFloat32Cuda(SentenceTransformersCuda):
    """The reference: PyTorch in full float32."""

    name = "torch-float32-cuda"
    label = "PyTorch fp32"
    precision = "float32"

    def load(self, checkpoint: Checkpoint, threads: int) -> None:
        super().load(checkpoint, threads)
        self.torch.backends.cuda.matmul.allow_tf32 = False
        self.torch.backends.cudnn.allow_tf32 = False


class TorchCuda(Contestant):
    """The checkpoint's own PyTorch modules, the batches of a call queued without waiting."""

    precision = "float16"
    environment = "gpu"
    device = "cuda"
    packages = ("torch", "transformers")
    imports = "import torch, transformers"
    start_seconds = 8.0
    target: ClassVar[str] = "cuda:0"
    dtype: ClassVar[str] = "float16"

    def load(self, checkpoint: Checkpoint, threads: int) -> None:
        import torch
        from transformers import AutoModel

        if self.target.startswith("cuda") and not torch.cuda.is_available():
            raise Absent("this PyTorch sees no CUDA device")
        torch.set_num_threads(threads)
        self.torch = torch
        self.checkpoint = checkpoint
        self.pooling = checkpoint.pooling
        self.tokenizer = checkpoint.tokenizer()
        self.model = AutoModel.from_pretrained(
            checkpoint.folder,
            dtype=getattr(torch, self.dtype),
            attn_implementation="sdpa",
        )
        self.model = self.model.to(self.target).eval().requires_grad_(False)
        self.open()

    def open(self) -> None:
        """Make of `model` what `run` needs."""

    @abstractmethod
    def run(self, rows: Rows) -> Any:
        """(n, dim) pooled float32 vectors of token-id rows on the device, unfinished or not."""

    def encode(self, texts: Sequence[str], setting: Setting) -> Float32:
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]
        return self.encode_ids(rows, setting)

    def encode_ids(self, rows: Rows, setting: Setting) -> Float32:
        groups = setting.groups([len(row) for row in rows])
        with self.torch.inference_mode():
            pooled = [self.run([rows[i] for i in group]) for group in groups]
            unit = self.torch.nn.functional.normalize(self.torch.cat(pooled), dim=1)
            host = unit.cpu().numpy()
        vectors = np.empty_like(host)
        vectors[[i for group in groups for i in group]] = host
        return vectors

    def upload(self, values: NDArray[np.int64]) -> Any:
        """`values` on the device; from pinned memory, so that the copy does not wait."""
        tensor = self.torch.from_numpy(values)
        if self.target.startswith("cuda"):
            tensor = tensor.pin_memory()
        return tensor.to(self.target, non_blocking=True)


class TorchPadded(TorchCuda):
    """Padded rectangles through scaled_dot_product_attention."""

    name = "torch-padded-float16-cuda"
    label = "PyTorch fp16, SDPA, padded"
    serves = True

    def settings(self, mode: str) -> list[Setting]:
        if mode == "single":
            return [Setting(1)]
        if mode == "burst":
            return [Setting(32), Setting(16, "length"), Setting(8, "length")]
        return [Setting(n, "length") for n in BULK_TEXTS] + [Setting(BULK_TEXTS[1])]

    def run(self, rows: Rows) -> Any:
        ids, mask = padded(rows, self.checkpoint.pad_id)
        real = self.upload(mask)
        hidden = self.forward(self.upload(ids), real)
        if self.pooling == "cls":
            return hidden[:, 0].float()
        weights = real[:, :, None].to(self.torch.float32)
        return (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1)

    def forward(self, ids: Any, mask: Any) -> Any:
        """(b, s, dim) hidden state."""
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state


class TorchCompiled(TorchPadded):
    """The same through torch.compile with dynamic shapes."""

    name = "torch-compiled-float16-cuda"
    label = "PyTorch fp16, SDPA, padded, compiled"
    start_seconds = 60.0
    most_rounds: ClassVar[dict[str, int]] = {"base": 1, "large": 1}

    def open(self) -> None:
        self.compiled = self.torch.compile(self.model.forward, dynamic=True)
        # A batch of one is compiled apart; both kinds are compiled before anything is timed.
        row = [0, 5, 6, 7, 8, 9, 2]
        self.encode_ids([row], Setting(1))
        self.encode_ids([row, row[:5], row[:4]], Setting(3))

    def forward(self, ids: Any, mask: Any) -> Any:
        return self.compiled(input_ids=ids, attention_mask=mask).last_hidden_state


class TorchVarlen(TorchCuda):
    """No padding: all tokens end to end, attention over cumulative lengths.

    `attend` is PyTorch's varlen_attn, or flash-attn's where PyTorch is older.
    """

    name = "torch-varlen-float16-cuda"
    label = "PyTorch fp16, varlen_attn, unpadded"
    serves = True

    def settings(self, mode: str) -> list[Setting]:
        if mode == "single":
            return [Setting(1)]
        if mode == "burst":
            return [Setting(32)]
        return [Setting(n) for n in (*BULK_TEXTS, 8_192)] + [Setting(BULK_TEXTS[1], "length")]

    def open(self) -> None:
        torch, model = self.torch, self.model
        self.attend = self.attention()
        self.config = model.config
        # RoBERTa counts positions from one past its padding id, BERT from 0.
        roberta = model.config.model_type in ("roberta", "xlm-roberta", "camembert")
        self.first_position = model.config.pad_token_id + 1 if roberta else 0
        self.queries = [self._joined(layer.attention.self) for layer in model.encoder.layer]
        self.linear = torch.nn.functional.linear

    def attention(self) -> Any:
        """`(q, k, v, starts, longest)` of (tokens, heads, size) tensors to the same shape.

        Raises:
            Absent: Neither PyTorch nor flash-attn has one.
        """
        places = (
            ("torch.nn.attention.varlen", "varlen_attn"),
            ("flash_attn", "flash_attn_varlen_func"),
        )
        for module, name in places:
            try:
                function = getattr(importlib.import_module(module), name)
            except ImportError:
                continue
            return lambda q, k, v, starts, longest, f=function: f(
                q, k, v, starts, starts, longest, longest
            )
        raise Absent(
            f"PyTorch {self.torch.__version__} has no varlen_attn and flash-attn is not installed"
        )

    def _joined(self, attention: Any) -> tuple[Any, Any]:
        parts = (attention.query, attention.key, attention.value)
        weight = self.torch.cat([part.weight for part in parts]).contiguous()
        return weight, self.torch.cat([part.bias for part in parts]).contiguous()

    def run(self, rows: Rows) -> Any:
        lengths = np.array([len(row) for row in rows], np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        ids = np.concatenate([np.asarray(row, np.int64) for row in rows])
        positions = np.arange(len(ids)) - np.repeat(starts[:-1], lengths) + self.first_position
        counts, begins = self.upload(lengths), self.upload(starts)
        hidden = self.hidden(
            self.upload(ids),
            self.upload(positions),
            begins.to(self.torch.int32),
            int(lengths.max()),
        )
        if self.pooling == "cls":
            return hidden[begins[:-1]].float()
        return self.torch.segment_reduce(
            hidden.float(), "mean", lengths=counts, axis=0, unsafe=True
        )

    def hidden(self, ids: Any, positions: Any, starts: Any, longest: int) -> Any:
        """(tokens, dim) hidden state: the encoder, step by step, with the checkpoint's modules."""
        embeddings = self.model.embeddings
        hidden = embeddings.LayerNorm(
            embeddings.word_embeddings(ids)
            + embeddings.position_embeddings(positions)
            + embeddings.token_type_embeddings.weight[0]
        )
        tokens, width = hidden.shape
        heads = self.config.num_attention_heads
        for layer, (weight, bias) in zip(self.model.encoder.layer, self.queries, strict=True):
            joined = self.linear(hidden, weight, bias).view(tokens, 3, heads, width // heads)
            q, k, v = joined.unbind(1)
            mixed = self.attend(q, k, v, starts, longest).reshape(tokens, width)
            out = layer.attention.output
            hidden = out.LayerNorm(out.dense(mixed) + hidden)
            inner = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(hidden))
            hidden = layer.output.LayerNorm(layer.output.dense(inner) + hidden)
        return hidden

    def computed_tokens(self, lengths: Sequence[int], setting: Setting) -> int:
        return sum(lengths)
