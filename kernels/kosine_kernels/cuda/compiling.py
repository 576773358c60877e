"""Triton kernels as machine code, without a GPU and without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kosine_kernels.cuda import heads, narrow, pooling, rows

__all__ = ["CHAINING", "Compiled", "argument_types", "compile_kernel", "find"]

MODULES = (rows, heads, narrow, pooling)
WARP = 32
CHAINING = 90  # the least architecture whose kernels can be started ahead
HALF, WHOLE, INDEX = "*half", "*fp32", "*i32"
# The type behind each address or number that a kernel takes, in its order.
SIGNATURES: Mapping[str, Mapping[str, str]] = {
    "embed": {
        "ids": INDEX,
        "positions": INDEX,
        "word": HALF,
        "position": HALF,
        "token_type": HALF,
        "weight": WHOLE,
        "bias": WHOLE,
        "x": HALF,
        "eps": "fp32",
    },
    "add_norm": {
        "x": HALF,
        "added": HALF,
        "weight": WHOLE,
        "bias": WHOLE,
        "inner_weight": WHOLE,
        "inner_bias": WHOLE,
        "added_bias": HALF,
        "y": HALF,
        "eps": "fp32",
        "inner_eps": "fp32",
        "tokens": "i32",
    },
    "narrow_product": {"x": HALF, "weight": HALF, "bias": HALF, "out": HALF, "tokens": "i32"},
    "activate": {"inner": HALF, "out": HALF, "residual": HALF},
    "rotate": {
        "qkv": HALF,
        "positions": INDEX,
        "cosines": WHOLE,
        "sines": WHOLE,
        "query_weight": WHOLE,
        "query_bias": WHOLE,
        "key_weight": WHOLE,
        "key_bias": WHOLE,
        "query_eps": "fp32",
        "key_eps": "fp32",
    },
    "attention": {
        "qkv": HALF,
        "starts": INDEX,
        "tile_sentence": INDEX,
        "tile_begin": INDEX,
        "distances": WHOLE,
        "buckets": INDEX,
        "out": HALF,
        "scale": "fp32",
    },
    "pool": {"x": HALF, "starts": INDEX, "skip": INDEX, "pooled": WHOLE},
    "normalize": {"pooled": WHOLE, "vectors": WHOLE},
}
NAMES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}


@dataclass(frozen=True, slots=True)
class Compiled:
    """A kernel for one architecture.

    Attributes:
        name: Of the function in `code`.
        code: A cubin.
        types: Of its arguments, in order, as Triton names them. Two null addresses follow them.
        threads: Of a block.
        shared: Bytes of dynamic shared memory.
    """

    name: str
    code: bytes
    types: tuple[str, ...]
    threads: int
    shared: int


def argument_types(name: str, constants: Mapping[str, Any], dtype: str) -> dict[str, str]:
    """Triton's type of each address and number that a kernel takes, in its order."""
    types = {
        argument: "*" + NAMES[dtype] if kind == HALF else kind
        for argument, kind in SIGNATURES[name].items()
    }
    # Sums of parts are float32 on their way from one kernel to the other.
    if constants.get("PARTS", 1) > 1:
        types["out" if name == "narrow_product" else "added"] = WHOLE
    return types


def find(name: str) -> Any:
    """The kernel of that name, as Triton holds it."""
    return next(vars(module)[name] for module in MODULES if name in module.__all__)


def compile_kernel(
    name: str,
    constants: Mapping[str, Any],
    *,
    dtype: str,
    architecture: int,
    warps: int = 4,
    stages: int = 3,
) -> Compiled:
    """The kernel of that name for one architecture; Triton keeps a cache of them.

    Args:
        constants: Its upper-case parameters. CHAINED needs an architecture from CHAINING on.
        dtype: "float16", "bfloat16" or "float32", of what `SIGNATURES` calls half.
        architecture: The GPU's compute capability times ten, such as 90.
        warps: Of a block.
        stages: How many tiles are under way to shared memory at once.
    """
    function = find(name)
    types = argument_types(name, constants, dtype)
    source = ASTSource(
        function,
        types | dict.fromkeys(constants, "constexpr"),
        dict(constants),
        # Every address that is passed is a multiple of 16 bytes.
        {
            (number,): [["tt.divisibility", 16]]
            for number, argument in enumerate(function.arg_names)
            if types.get(argument, "")[:1] == "*"
        },
    )
    built = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, WARP),
        options={"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True},
    )
    return Compiled(
        built.metadata.name,
        built.asm["cubin"],
        tuple(types.values()),
        warps * WARP,
        built.metadata.shared,
    )
