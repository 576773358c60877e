"""The steps of an encoder as kernels and products on a stream."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kosine.backends.cuda.calls import NARROW_PARTS, NARROW_TOKENS, NO_NORM, Calls, power
from kosine.backends.cuda.device import KernelDevice
from kosine.backends.cuda.shape import MAX_SENTENCES, TILES, Shape
from kosine.backends.cuda.weights import LOG2_E, Weights
from kosine_kernels.cuda.compiling import CHAINING
from kosine_kernels.steps import Attention, Dense, Embed, FeedForward, Linear, Norm, Pool, Step

__all__ = ["Forward"]

ROW_WARP = 1_024  # columns of a row that a warp takes
POOL_COLUMNS, POOL_ROWS = 128, 16
CHAINED_TOKENS = 1_024  # above it kernels are long, and their gaps short


class _Added(NamedTuple):
    """What waits to be added to x: in how many parts, with a bias that is yet to be added at an
    address or 0, and normed before.
    """

    parts: int = 1
    bias: int = 0
    norm: Norm = NO_NORM


class Forward:
    """An encoder on one GPU: its weights, its buffers, its kernels.

    Args:
        gpu: Where; its stream takes everything, and its memory is freed with it.
        steps: As `kosine_kernels.steps`, ending in `Pool` and any number of `Dense`.
        tensors: Names to float32 arrays, linear weights of shape (in, out).
        hidden: Columns of what `Pool` reads.
        dtype: "float16" or "bfloat16": of weights and activations in memory. Sums, norms, softmax,
            pooling and Dense modules are float32.
        max_tokens: The most rows of a shape.

    Attributes:
        dim: Length of the vectors.
        inputs: Address of what `Shape.fill` writes.
        vectors: Address of (sentences, dim + 1) float32: rows of length 1, and behind each its
            length before that.
        input_bytes, vector_bytes: Of the largest shape.

    Raises:
        BackendError: The GPU has too little memory, or the weights do not fit the dtype.
    """

    def __init__(
        self,
        gpu: KernelDevice,
        steps: Sequence[Step],
        tensors: Mapping[str, NDArray[np.float32]],
        *,
        hidden: int,
        dtype: str,
        max_tokens: int,
    ) -> None:
        self._gpu = gpu
        self._steps = steps
        self._dtype = dtype
        self._hidden = hidden
        self._weights = Weights(gpu, steps, tensors, dtype)
        linear = self._weights.linear
        self._width = tensors[f"{_only(steps, Embed).word}.weight"].shape[1]
        pooled = [hidden * len(_only(steps, Pool).modes)]
        pooled += [linear[step.name].columns for step in steps if isinstance(step, Dense)]
        self.dim = pooled[-1]
        widest = max(each.columns for each in linear.values())
        mixed = max(each.inner for each in linear.values())
        width = max(hidden, self._width)
        self._x, self._y, self._projected = (gpu.allocate(max_tokens * width * 2) for _ in range(3))
        self._added = gpu.allocate(
            width * max(max_tokens * 2, min(max_tokens, NARROW_TOKENS) * NARROW_PARTS * 4)
        )
        self._wide, self._mixed = (gpu.allocate(max_tokens * n * 2) for n in (widest, mixed))
        # Three, since a Dense module may add its input to its output.
        self._pooled = tuple(gpu.allocate(MAX_SENTENCES * max(pooled) * 4) for _ in range(3))
        self.vector_bytes = MAX_SENTENCES * (self.dim + 1) * 4
        self.vectors = gpu.allocate(self.vector_bytes)
        largest = (Shape(max_tokens, MAX_SENTENCES, tile) for tile in TILES)
        self.input_bytes = 4 * max(shape.numbers for shape in largest)
        self.inputs = gpu.allocate(self.input_bytes)
        self._calls = Calls(gpu, self._weights, dtype)

    def close(self) -> None:
        """Let go of cuBLASLt."""
        self._calls.close()

    def enqueue(self, shape: Shape) -> None:
        """Put the computation on the stream, from `inputs` to `vectors`.

        The first time that sizes or constants occur, kernels are compiled and products timed, so
        the first call of a shape is not for a capture.
        """
        self._calls.chained = shape.tokens <= CHAINED_TOKENS and self._gpu.capability >= CHAINING
        at = {name: self.inputs + 4 * begin for name, (begin, _) in shape.places.items()}
        x, y, width = self._x, self._x, self._width
        added: _Added | None = None
        steps = iter(self._steps)
        waiting: Step | None = next(steps)
        while waiting is not None:
            step, waiting = waiting, next(steps, None)
            match step:
                case Embed():
                    fused = NO_NORM
                    if isinstance(waiting, Norm) and not waiting.keeps_x:
                        fused, waiting = waiting, next(steps, None)
                    self._embed(step, fused, shape, at, x)
                case Norm():
                    y = self._y if step.keeps_x else x
                    self._add_norm(shape, x, added, step, y, width)
                    added = None
                case Linear():
                    self._calls.multiply(step.name, shape.tokens, y, self._projected)
                    x = y = self._projected
                    width = self._weights.linear[step.name].columns
                case Attention():
                    added = self._attend(step, shape, at, y)
                case FeedForward():
                    added = self._feed(step, shape, y)
                case Pool():
                    if added is not None:
                        self._add_norm(shape, x, added, None, x, width)
                    self._pool(step, shape, at, x)
                    x, y = self._pooled[:2]
                    width *= len(step.modes)
                case Dense():
                    x, y = self._dense(step, shape, x, y)
                    width = self._weights.linear[step.name].columns
        self._calls.launch(
            "normalize",
            (shape.sentences, 1),
            (x, self.vectors),
            {"WIDTH": width, "BLOCK": power(width)},
        )

    def _embed(self, step: Embed, norm: Norm, shape: Shape, at: Mapping[str, int], x: int) -> None:
        find = self._weights.at
        self._calls.launch(
            "embed",
            (shape.tokens, 1),
            (
                *(at["ids"], at["positions"]),
                *(find[name or ""] for name in (step.word, step.position, step.token_type)),
                *self._calls.norm(norm),
                *(x, norm.eps),
            ),
            {
                "WIDTH": self._width,
                "BLOCK": power(self._width),
                "POSITION": step.position is not None,
                "TYPE": step.token_type is not None,
                "NORM": norm is not NO_NORM,
                "BIAS": norm.bias,
                "RMS": norm.rms,
            },
        )

    def _add_norm(
        self, shape: Shape, x: int, added: _Added | None, norm: Norm | None, y: int, width: int
    ) -> None:
        """x += added; y = norm(x). Only a norm that keeps x, or none, leaves that sum in x."""
        outer, more = norm or NO_NORM, added or _Added()
        self._calls.launch(
            "add_norm",
            (shape.tokens, 1),
            (
                *(x, self._added),
                *self._calls.norm(outer),
                *self._calls.norm(more.norm),
                *(more.bias, y, outer.eps, more.norm.eps, shape.tokens),
            ),
            {
                "WIDTH": width,
                "BLOCK": power(width),
                "ADD": added is not None,
                "PARTS": more.parts,
                "PARTS_BIAS": more.bias != 0,
                "NORM": norm is not None,
                "BIAS": outer.bias,
                "RMS": outer.rms,
                "INNER": more.norm is not NO_NORM,
                "INNER_BIAS": more.norm.bias,
                "INNER_RMS": more.norm.rms,
                "KEEPS_X": norm is None or norm.keeps_x,
            },
            warps=4 if more.parts > 1 else max(1, power(width) // ROW_WARP),
        )

    def _attend(self, step: Attention, shape: Shape, at: Mapping[str, int], y: int) -> _Added:
        """The buffer `added` = output(attention(y))."""
        find = self._weights.at
        qkv = self._wide
        self._calls.multiply(step.qkv, shape.tokens, y, qkv)
        heads, shared = step.num_heads, step.num_key_value_heads or step.num_heads
        sizes = {"HEADS": heads, "KV_HEADS": shared, "HEAD": step.head_size}
        query, key = step.query_norm or NO_NORM, step.key_norm or NO_NORM
        if step.rotary is not None or step.query_norm or step.key_norm:
            angles = (0, 0)
            if step.rotary is not None:
                angles = self._weights.angles(step.rotary, step.head_size)
            self._calls.launch(
                "rotate",
                (shape.tokens, heads + shared),
                (
                    *(qkv, at["positions"], *angles),
                    *(*self._calls.norm(query), *self._calls.norm(key), query.eps, key.eps),
                ),
                {
                    **sizes,
                    "ROTARY": step.rotary is not None,
                    "QUERY_NORM": step.query_norm is not None,
                    "QUERY_BIAS": query.bias,
                    "KEY_NORM": step.key_norm is not None,
                    "KEY_BIAS": key.bias,
                    "RMS": query.rms or key.rms,
                },
                warps=1,
            )
        table, reach = step.distances, 0
        if table is not None:
            reach = len(table.buckets) // 2
        keys, warps, stages = _tile(shape.tile, step.head_size)
        self._calls.launch(
            "attention",
            (shape.tiles, heads),
            (
                *(qkv, at["starts"], at["tile_sentence"], at["tile_begin"]),
                *((0, 0) if table is None else (find[table.name], find[f"{table.name}.buckets"])),
                *(self._mixed, LOG2_E / math.sqrt(step.head_size)),
            ),
            {
                **sizes,
                "ROWS": shape.tile,
                "KEYS": keys,
                "WINDOW": step.window or 0,
                "CAUSAL": step.causal,
                "REACH": reach,
            },
            warps=warps,
            stages=stages,
        )
        return self._add_product(step.output, shape.tokens, self._mixed, step.norm)

    def _feed(self, step: FeedForward, shape: Shape, y: int) -> _Added:
        """The buffer `added` = down(activation(up(y)) * gate(y))."""
        inner = self._weights.linear[step.down].inner
        out = self._wide
        if step.gate is None and self._calls.is_narrow(shape.tokens):
            self._calls.narrow(step.up, shape.tokens, y, out, activation=step.activation)
        else:
            self._calls.multiply(step.up, shape.tokens, y, self._wide)
            out = self._wide if step.gate is None else self._mixed
            self._calls.activate(
                step.activation, inner, shape.tokens, self._wide, out, gated=step.gate is not None
            )
        return self._add_product(step.down, shape.tokens, out, step.norm)

    def _add_product(self, name: str, rows: int, x: int, norm: Norm | None) -> _Added:
        """The buffer `added` = linear(x), in parts that are yet to be summed where rows are few."""
        norm = norm or NO_NORM
        if not self._calls.is_narrow(rows):
            self._calls.multiply_by_cublas(name, rows, x, self._added, self._dtype)
            return _Added(norm=norm)
        parts = self._calls.narrow(name, rows, x, self._added, parts=NARROW_PARTS)
        return _Added(parts, self._weights.linear[name].bias if parts > 1 else 0, norm)

    def _pool(self, step: Pool, shape: Shape, at: Mapping[str, int], x: int) -> None:
        for number, mode in enumerate(step.modes):
            self._calls.launch(
                "pool",
                (shape.sentences, -(-self._hidden // POOL_COLUMNS)),
                (x, at["starts"], at["skip"], self._pooled[0]),
                {
                    "WIDTH": self._hidden,
                    "BLOCK": POOL_COLUMNS,
                    "STRIDE": self._hidden * len(step.modes),
                    "OFFSET": self._hidden * number,
                    "MODE": mode,
                    "ROWS": POOL_ROWS,
                },
            )

    def _dense(self, step: Dense, shape: Shape, x: int, y: int) -> tuple[int, int]:
        """Where its output is, and a buffer that is free."""
        columns = self._weights.linear[step.name].columns
        out = next(each for each in self._pooled if each not in (x, y))
        self._calls.multiply_by_cublas(step.name, shape.sentences, x, y, "float32")
        self._calls.activate(
            step.activation,
            columns,
            shape.sentences,
            y,
            out,
            residual=x if step.use_residual else 0,
            dtype="float32",
        )
        return out, y


def _tile(rows: int, head_size: int) -> tuple[int, int, int]:
    """Keys that a program of attention takes at once, its warps, its stages."""
    if rows == TILES[0]:
        return 16, 1, 2
    if head_size > 128:
        return 32, 8, 2
    return (32, 4, 3) if rows == TILES[1] else (64, 8, 3)


def _only(steps: Sequence[Step], kind: type[Any]) -> Any:
    return next(step for step in steps if isinstance(step, kind))
