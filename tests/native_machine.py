"""What tests of the native engine share: the tables of kernels, random encoders, batches."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import kosine_kernels
from kosine_kernels import engine, reference
from kosine_kernels.quantized import quantize_weight
from kosine_kernels.steps import (
    Attention,
    Dense,
    Distances,
    Embed,
    FeedForward,
    Linear,
    Norm,
    Pool,
    Rotary,
    Step,
)

AMX_TABLES = (("bfloat16", "amx_bf16"), ("bfloat16", "amx_bf16_emulated"))
AMX_W8A16_TABLES = (("w8a16", "amx_int8"), ("w8a16", "amx_int8_emulated"))
AMX_INT8_TABLES = (("int8", "amx_int8"), ("int8", "amx_int8_emulated"))
# Where attention multiplies bfloat16, in the dtypes of weights of bytes too.
BFLOAT16_LEVELS = ("avx512_bf16", "amx_int8", "amx_int8_emulated")
ALL_TABLES = (
    ("float32", "avx2"),
    ("float32", "avx512"),
    ("bfloat16", "avx512_bf16"),
    *AMX_TABLES,
)
# Of weights of bytes: they take other tensors, `Encoder.in_bytes`.
BYTES_TABLES = (
    ("w8a16", "avx2"),
    ("w8a16", "avx_vnni"),
    ("w8a16", "avx512_vnni"),
    ("w8a16", "avx512_bf16"),
    ("int8", "avx2"),
    ("int8", "avx_vnni"),
    ("int8", "avx512_vnni"),
    ("int8", "avx512_bf16"),
    *AMX_W8A16_TABLES,
    *AMX_INT8_TABLES,
)
MISSING = "" if engine.isa_levels() else "the native module is not in this build"

needs_native = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def why_not(dtype: str, isa: str) -> str:
    """Why the table cannot run here; empty where it can."""
    try:
        engine.select_isa(dtype, isa)
    except engine.Unavailable as error:
        return str(error)
    return ""


def tables(chosen: Sequence[tuple[str, str]]) -> Any:
    """Parametrise `dtype, isa` over tables; those that cannot run here skip visibly."""
    return pytest.mark.parametrize(
        ("dtype", "isa"),
        [
            pytest.param(
                dtype, isa, marks=pytest.mark.skipif(why != "", reason=why or "it can"), id=isa
            )
            for dtype, isa in chosen
            for why in [why_not(dtype, isa)]
        ],
    )


def each_table(*dtypes: str) -> Any:
    """Parametrise `dtype, isa` over every table, or every one of the dtypes."""
    return tables([table for table in ALL_TABLES if not dtypes or table[0] in dtypes])


def kernels() -> Any:
    return engine.native_module().kernels


def script(code: str, *, leaks: bool = True) -> list[str]:
    """The command that runs `code` in a process of its own, with this process's native module.

    With `leaks` it says at its end, on stderr, what of the module's objects is still there.
    """
    where = (
        f"import kosine_kernels\nkosine_kernels.__path__[:] = {list(kosine_kernels.__path__)!r}\n"
    )
    if leaks and not MISSING:
        where += "from kosine_kernels import _native\n_native.kernels.report_leaks()\n"
    return [sys.executable, "-c", where + code]


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Float32 values rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    bits = bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def as_operand(x: np.ndarray, dtype: str) -> np.ndarray:
    """What a product of that dtype sees of `x`."""
    return to_bfloat16(x) if dtype == "bfloat16" else x


class Encoder:
    """A random encoder: tensors, and how to run them in numpy and natively."""

    def __init__(
        self,
        *,
        hidden: int = 64,
        heads: int = 4,
        head_size: int | None = None,
        inner: int = 96,
        layers: int = 2,
        vocab: int = 50,
        positions: int = 64,
        embedding: int | None = None,
        types: int = 2,
        pooling: str | tuple[str, ...] = "mean",
        dense: Sequence[tuple[int, str, bool, bool]] = (),
        modern: bool = False,
        windows: Sequence[int | None] = (None, 7),
        buckets: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        """`dense` is (columns, activation, use_residual, has a bias) of each Dense module.

        The heads share `hidden` among them, unless `head_size` says otherwise. A `modern` encoder
        has norms before its sublayers, rotary positions, a window in each layer, taken in turn
        from `windows`, a gated feed-forward, and no bias. Heads of another add to a score by
        `buckets`, one for each distance, where there are some.
        """
        self.rng = rng = np.random.default_rng(seed)
        self.vocab, self.positions = vocab, positions
        width = embedding or hidden
        head_size = head_size or hidden // heads
        tensors: dict[str, np.ndarray] = {}

        def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
            return (rng.standard_normal(shape) * scale).astype(np.float32)

        def linear(name: str, rows: int, columns: int, bias: bool = True) -> None:
            tensors[f"{name}.weight"] = normal(rows, columns, scale=rows**-0.5)
            if bias:
                tensors[f"{name}.bias"] = normal(columns, scale=0.1)

        def norm(name: str, size: int) -> None:
            tensors[f"{name}.weight"] = 1 + normal(size, scale=0.1)
            if not modern:
                tensors[f"{name}.bias"] = normal(size, scale=0.1)

        types = 0 if modern else types
        tensors["embeddings.word.weight"] = normal(vocab, width)
        if not modern:
            tensors["embeddings.position.weight"] = normal(positions, width)
        if types:
            tensors["embeddings.token_type.weight"] = normal(types, width)
        norm("embeddings.norm", width)
        if width != hidden:
            linear("embeddings.project", width, hidden)
        for i in range(layers):
            linear(f"layers.{i}.attention.qkv", hidden, 3 * heads * head_size, not modern)
            linear(f"layers.{i}.attention.output", heads * head_size, hidden, not modern)
            norm(f"layers.{i}.attention.norm", hidden)
            linear(f"layers.{i}.ffn.up", hidden, inner, not modern)
            linear(f"layers.{i}.ffn.down", inner, hidden, not modern)
            norm(f"layers.{i}.ffn.norm", hidden)
            if modern:
                linear(f"layers.{i}.ffn.gate", hidden, inner, False)
        if modern:
            norm("final.norm", hidden)
        distances = None
        if buckets:
            tensors["buckets.weight"] = normal(max(buckets) + 1, heads)
            distances = Distances("buckets", tuple(buckets))
        columns = hidden * (1 if isinstance(pooling, str) else len(pooling))
        for i, (out, _, _, bias) in enumerate(dense):
            linear(f"dense.{i}", columns, out, bias)
            columns = out
        self.tensors = tensors
        self.options: dict[str, Any] = {
            "num_layers": layers,
            "num_heads": heads,
            "layer_norm_eps": 1e-5,
            "pooling": pooling,
            "dense": [(activation, residual) for _, activation, residual, _ in dense],
        }
        token_type = "embeddings.token_type" if types else None
        place = None if modern else "embeddings.position"
        walk: list[Step] = [
            Embed("embeddings.word", place, token_type),
            Norm("embeddings.norm", 1e-5, not modern),
        ]
        if width != hidden:
            walk.append(Linear("embeddings.project"))
        for i in range(layers):
            at = f"layers.{i}"
            names = f"{at}.attention.qkv", f"{at}.attention.output"
            if modern:
                rotary = Rotary((10_000.0, 160_000.0)[i % 2], positions)
                window = windows[i % len(windows)]
                before = Norm(f"{at}.attention.norm", 1e-5, bias=False, keeps_x=True)
                walk += [
                    *([before] if i else []),
                    Attention(*names, heads, head_size, False, rotary, window),
                    Norm(f"{at}.ffn.norm", 1e-5, bias=False, keeps_x=True),
                    FeedForward(f"{at}.ffn.up", f"{at}.ffn.down", f"{at}.ffn.gate", bias=False),
                ]
            else:
                walk += [
                    Attention(*names, heads, head_size, distances=distances),
                    Norm(f"{at}.attention.norm", 1e-5),
                    FeedForward(f"{at}.ffn.up", f"{at}.ffn.down"),
                    Norm(f"{at}.ffn.norm", 1e-5),
                ]
        if modern:
            walk.append(Norm("final.norm", 1e-5, bias=False))
        modes = (pooling,) if isinstance(pooling, str) else pooling
        walk.append(Pool(modes))
        for i, (_, activation, residual, bias) in enumerate(dense):
            walk.append(Dense(f"dense.{i}", bias, activation, residual))
        self.steps: Sequence[Step] = tuple(walk)

    @classmethod
    def decoder(
        cls,
        *,
        hidden: int = 64,
        heads: int = 4,
        shared: int = 2,
        head_size: int = 32,
        inner: int = 96,
        layers: int = 2,
        windows: Sequence[int | None] = (None, 7),
        causal: bool = True,
        sandwich: bool = False,
        activation: str = "silu",
        divisor: float = 1.0,
        **options: Any,
    ) -> Encoder:
        """RMSNorm, heads of k and v that several of q share, norms of heads, a last token."""
        self = cls(hidden=hidden, heads=heads, head_size=head_size, inner=inner, layers=layers,
                   modern=True, windows=windows, **{"pooling": "lasttoken", **options})  # fmt: skip
        rng, tensors, walk = self.rng, self.tensors, list[Step]()

        def norm(name: str, size: int, *, keeps_x: bool = False) -> Norm:
            gain = 1 + 0.1 * rng.standard_normal(size)
            tensors[f"{name}.weight"] = gain.astype(np.float32)
            return Norm(name, 1e-6, bias=False, keeps_x=keeps_x, rms=True)

        del tensors["embeddings.norm.weight"]
        for step in self.steps:
            match step:
                case Attention():
                    at = step.qkv.removesuffix(".qkv")
                    walk.append(norm(f"{at}.norm", hidden, keeps_x=True))
                    columns = (heads + 2 * shared) * head_size
                    weight = rng.standard_normal((hidden, columns)) / hidden**0.5
                    tensors[f"{step.qkv}.weight"] = weight.astype(np.float32)
                    assert step.rotary is not None
                    walk.append(
                        replace(
                            step,
                            num_key_value_heads=shared,
                            causal=causal,
                            query_norm=norm(f"{at}.query.norm", head_size),
                            key_norm=norm(f"{at}.key.norm", head_size),
                            norm=norm(f"{at}.output.norm", hidden) if sandwich else None,
                            rotary=replace(step.rotary, divisor=divisor),
                        )
                    )
                case FeedForward():
                    after = norm(f"{step.down}.norm", hidden) if sandwich else None
                    walk.append(norm(step.up.replace("up", "norm"), hidden, keeps_x=True))
                    walk.append(replace(step, activation=activation, norm=after))
                case Norm():
                    if step.name == "final.norm":
                        walk.append(norm(step.name, hidden))
                case _:
                    walk.append(step)
        self.steps = tuple(walk)
        return self

    def in_bytes(self, *, smooth: bool = True) -> Encoder:
        """The same encoder with weights of bytes in its layers, and random smoothing vectors."""
        other = copy(self)
        other.tensors = dict(self.tensors)
        for name, weight in self.tensors.items():
            product, _, part = name.rpartition(".")
            inside = product.startswith("layers.") or product == "embeddings.project"
            if part != "weight" or weight.ndim == 1 or not inside:
                continue
            factors = None
            if product.endswith("ffn.gate"):  # it reads what `up` reads
                factors = other.tensors.get(product.replace("gate", "up") + ".smooth")
            elif smooth:
                spread = np.exp(0.3 * self.rng.standard_normal(len(weight)))
                factors = other.tensors[f"{product}.smooth"] = spread.astype(np.float32)
            found = quantize_weight(weight, factors)
            other.tensors[name], other.tensors[f"{product}.scale"] = found
        return other

    def batch(self, lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Random ids, starts, positions."""
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        ids = self.rng.integers(0, self.vocab, starts[-1]).astype(np.int32)
        positions = (np.arange(len(ids)) - np.repeat(starts[:-1], lengths)).astype(np.int32)
        return ids, starts, positions

    def engine(self, dtype: str = "float32", isa: str | None = None, **options: Any) -> Any:
        return engine.Engine(self.tensors, self.steps, dtype=dtype, isa=isa, **options)

    def reference(
        self,
        ids: np.ndarray,
        starts: np.ndarray,
        positions: np.ndarray,
        skip: np.ndarray | None = None,
        dtype: Any = np.float64,
        **options: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        return reference.encode(
            self.steps, self.tensors, ids, starts, skip, positions, dtype=dtype, **options
        )


# Sentences of `overflowing`: the token that becomes NaN alone, first, last, between, and absent.
NAN_ORDERS = ((0,), (1,), (0, 1), (1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1))


def overflowing(**shape: Any) -> Encoder:
    """An encoder in whose last layer token 0 becomes NaN and token 1 does not.

    Nothing but their own word rows tells the tokens apart, and attention mixes nothing: the last
    feed-forward lifts token 0 alone beyond float32, and LayerNorm makes NaN of that.
    """
    encoder = Encoder(**{"layers": 1, "types": 0, **shape})
    tensors = encoder.tensors
    tensors["embeddings.word.weight"][1] = -tensors["embeddings.word.weight"][0]
    tensors["embeddings.position.weight"][:] = 0
    last = f"layers.{encoder.options['num_layers'] - 1}"
    for name in (f"{last}.attention.output", f"{last}.ffn.up", f"{last}.ffn.down"):
        tensors[f"{name}.weight"][:] = 0
        tensors[f"{name}.bias"][:] = 0
    for name in ("embeddings.norm", f"{last}.attention.norm"):
        tensors[f"{name}.weight"][:] = 1
        tensors[f"{name}.bias"][:] = 0
    up, down = tensors[f"{last}.ffn.up.weight"], tensors[f"{last}.ffn.down.weight"]
    up[:, 0] = np.sign(tensors["embeddings.word.weight"][0])
    down[0] = np.float32(3e38)
    return encoder
