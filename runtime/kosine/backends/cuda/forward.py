"""The steps of an encoder as kernels and products on a stream."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kosine.backends.cuda.device import KernelDevice
from kosine.backends.cuda.products import WORKSPACE_BYTES, Product, Products
from kosine.backends.cuda.shape import MAX_SENTENCES, TILES, Shape
from kosine.backends.cuda.weights import LOG2_E, Weights
from kosine_kernels.cuda.compiling import CHAINING, Compiled, compile_kernel
from kosine_kernels.steps import Attention, Dense, Embed, FeedForward, Linear, Norm, Pool, Step

__all__ = ["Forward"]

ACTIVATE_COLUMNS = 1_024  # of a row that one program takes
ROW_WARP = 1_024  # columns of a row that a warp takes
POOL_COLUMNS, POOL_ROWS = 128, 16
CHAINED_TOKENS = 1_024  # above it kernels are long, and their gaps short
C_TYPES = {"fp32": ctypes.c_float, "i32": ctypes.c_int}
# Up to so many rows products are kernels of our own, see `_narrow`: (columns, depth, warps) of a
# program, and the parts that the depth is cut into where the sum can wait.
NARROW_TOKENS = 128
NARROW_ROWS = 64  # of a program
NARROW = (32, 128, 4)
NARROW_STAGES = 6, 4  # for one program's rows, and for more
NARROW_PARTS = 4
NO_NORM = Norm("", 0.0, bias=False)


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
        self._kernels: dict[Any, tuple[Compiled, Any]] = {}
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
        self._products = Products(gpu.allocate(WORKSPACE_BYTES), gpu.stream, gpu.seconds)

    def close(self) -> None:
        """Let go of cuBLASLt."""
        self._products.close()

    def enqueue(self, shape: Shape) -> None:
        """Put the computation on the stream, from `inputs` to `vectors`.

        The first time that sizes or constants occur, kernels are compiled and products timed, so
        the first call of a shape is not for a capture.
        """
        self._chained = shape.tokens <= CHAINED_TOKENS and self._gpu.capability >= CHAINING
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
                    self._multiply(step.name, shape.tokens, y, self._projected)
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
        self._launch(
            "normalize",
            (shape.sentences, 1),
            (x, self.vectors),
            {"WIDTH": width, "BLOCK": _power(width)},
        )

    def _embed(self, step: Embed, norm: Norm, shape: Shape, at: Mapping[str, int], x: int) -> None:
        find = self._weights.at
        self._launch(
            "embed",
            (shape.tokens, 1),
            (
                *(at["ids"], at["positions"]),
                *(find[name or ""] for name in (step.word, step.position, step.token_type)),
                *self._norm(norm),
                *(x, norm.eps),
            ),
            {
                "WIDTH": self._width,
                "BLOCK": _power(self._width),
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
        self._launch(
            "add_norm",
            (shape.tokens, 1),
            (
                *(x, self._added),
                *self._norm(outer),
                *self._norm(more.norm),
                *(more.bias, y, outer.eps, more.norm.eps, shape.tokens),
            ),
            {
                "WIDTH": width,
                "BLOCK": _power(width),
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
            warps=4 if more.parts > 1 else max(1, _power(width) // ROW_WARP),
        )

    def _attend(self, step: Attention, shape: Shape, at: Mapping[str, int], y: int) -> _Added:
        """The buffer `added` = output(attention(y))."""
        find = self._weights.at
        qkv = self._wide
        self._multiply(step.qkv, shape.tokens, y, qkv)
        heads, shared = step.num_heads, step.num_key_value_heads or step.num_heads
        sizes = {"HEADS": heads, "KV_HEADS": shared, "HEAD": step.head_size}
        query, key = step.query_norm or NO_NORM, step.key_norm or NO_NORM
        if step.rotary is not None or step.query_norm or step.key_norm:
            angles = (0, 0)
            if step.rotary is not None:
                angles = self._weights.angles(step.rotary, step.head_size)
            self._launch(
                "rotate",
                (shape.tokens, heads + shared),
                (
                    *(qkv, at["positions"], *angles),
                    *(*self._norm(query), *self._norm(key), query.eps, key.eps),
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
        self._launch(
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
        if step.gate is None and self._is_narrow(shape.tokens):
            self._narrow(step.up, shape.tokens, y, out, activation=step.activation)
        else:
            self._multiply(step.up, shape.tokens, y, self._wide)
            out = self._wide if step.gate is None else self._mixed
            self._activate(
                step.activation, inner, shape.tokens, self._wide, out, gated=step.gate is not None
            )
        return self._add_product(step.down, shape.tokens, out, step.norm)

    def _pool(self, step: Pool, shape: Shape, at: Mapping[str, int], x: int) -> None:
        for number, mode in enumerate(step.modes):
            self._launch(
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
        self._multiply_by_cublas(step.name, shape.sentences, x, y, "float32")
        self._activate(
            step.activation,
            columns,
            shape.sentences,
            y,
            out,
            residual=x if step.use_residual else 0,
            dtype="float32",
        )
        return out, y

    def _activate(
        self,
        activation: str,
        width: int,
        rows: int,
        inner: int,
        out: int,
        *,
        gated: bool = False,
        residual: int = 0,
        dtype: str | None = None,
    ) -> None:
        block = min(ACTIVATE_COLUMNS, _power(width))
        self._launch(
            "activate",
            (rows, -(-width // block)),
            (inner, out, residual),
            {
                "WIDTH": width,
                "BLOCK": block,
                "ACTIVATION": activation,
                "GATED": gated,
                "RESIDUAL": residual != 0,
            },
            dtype=dtype,
            warps=2,
        )

    def _norm(self, norm: Norm) -> tuple[int, int]:
        """Addresses of its weight and its bias."""
        if norm is NO_NORM:
            return 0, 0
        bias = self._weights.at[f"{norm.name}.bias"] if norm.bias else 0
        return self._weights.at[f"{norm.name}.weight"], bias

    def _launch(
        self,
        name: str,
        grid: tuple[int, int],
        arguments: Sequence[float],
        constants: Mapping[str, Any],
        *,
        dtype: str | None = None,
        warps: int = 4,
        stages: int = 2,
    ) -> None:
        """Put a kernel of `kosine_kernels.cuda.kernels` on the stream."""
        dtype = dtype or self._dtype
        # The first of all follows no kernel.
        chained = self._chained and name != "embed"
        constants = {**constants, "CHAINED": chained}
        key = (name, dtype, warps, stages, *constants.values())
        if key not in self._kernels:
            compiled = compile_kernel(
                name,
                constants,
                dtype=dtype,
                architecture=self._gpu.capability,
                warps=warps,
                stages=stages,
            )
            self._kernels[key] = (compiled, self._gpu.load(compiled))
        compiled, function = self._kernels[key]
        types = [C_TYPES.get(kind, ctypes.c_void_p) for kind in compiled.types]
        types += [ctypes.c_void_p] * 2  # scratch memory, which no kernel here needs
        self._gpu.launch(
            function,
            grid,
            compiled.threads,
            compiled.shared,
            ((*arguments, 0, 0), tuple(types)),
            chained=chained,
        )

    def _multiply(self, name: str, rows: int, x: int, out: int) -> None:
        """out = linear(x)"""
        if self._is_narrow(rows):
            self._narrow(name, rows, x, out)
        else:
            self._multiply_by_cublas(name, rows, x, out, self._dtype)

    def _add_product(self, name: str, rows: int, x: int, norm: Norm | None) -> _Added:
        """The buffer `added` = linear(x), in parts that are yet to be summed where rows are few."""
        norm = norm or NO_NORM
        if not self._is_narrow(rows):
            self._multiply_by_cublas(name, rows, x, self._added, self._dtype)
            return _Added(norm=norm)
        parts = self._narrow(name, rows, x, self._added, parts=NARROW_PARTS)
        return _Added(parts, self._weights.linear[name].bias if parts > 1 else 0, norm)

    def _is_narrow(self, rows: int) -> bool:
        return rows <= NARROW_TOKENS

    def _narrow(
        self,
        name: str,
        rows: int,
        x: int,
        out: int,
        *,
        activation: str = "identity",
        parts: int = 1,
    ) -> int:
        """out = activation(linear(x)) in a kernel of our own; in how many parts."""
        linear = self._weights.linear[name]
        columns, depth, warps = NARROW
        while linear.inner % (depth * parts):
            depth, parts = (depth // 2, parts) if depth > 16 else (NARROW[1], parts // 2)
        height = min(NARROW_ROWS, max(16, _power(rows)))
        self._launch(
            "narrow_product",
            (-(-linear.columns // columns) * parts, -(-rows // height)),
            (x, linear.weight, linear.bias, out, rows),
            {
                "INNER": linear.inner,
                "COLUMNS": linear.columns,
                "ROWS": height,
                "BLOCK": columns,
                "DEPTH": depth,
                "PARTS": parts,
                "BIAS": linear.bias != 0,
                "ACTIVATION": activation,
            },
            warps=warps,
            stages=NARROW_STAGES[rows > height],
        )
        return parts

    def _multiply_by_cublas(self, name: str, rows: int, x: int, out: int, dtype: str) -> None:
        linear = self._weights.linear[name]
        self._products.multiply(
            Product(rows, linear.inner, linear.columns, dtype, x, linear.weight, linear.bias, out)
        )


class _Added(NamedTuple):
    """What waits to be added to x: in how many parts, with a bias that is yet to be added at an
    address or 0, and normed before.
    """

    parts: int = 1
    bias: int = 0
    norm: Norm = NO_NORM


def _tile(rows: int, head_size: int) -> tuple[int, int, int]:
    """Keys that a program of attention takes at once, its warps, its stages."""
    if rows == TILES[0]:
        return 16, 1, 2
    if head_size > 128:
        return 32, 8, 2
    return (32, 4, 3) if rows == TILES[1] else (64, 8, 3)


def _power(width: int) -> int:
    """The least power of two that is not less."""
    return 1 << (width - 1).bit_length()


def _only(steps: Sequence[Step], kind: type[Any]) -> Any:
    return next(step for step in steps if isinstance(step, kind))
