"""What a bundle says of its weights of signed bytes, which `int8` and `w8a16` run on."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["INT8_WEIGHTS", "Int8Weights"]

INT8_WEIGHTS = "int8/weights.safetensors"


@dataclass(frozen=True, slots=True)
class Int8Weights:
    """How the weights in `int8/weights.safetensors` were made.

    Attributes:
        texts, tokens: That the inputs of products were calibrated on.
        max_error: The relative root mean square error of a product's output over which `int8`
            gives its input 15 bits.
        errors: That error by product, as it is with an input of bytes.
        bytes_only: The products that stay with weights of bytes only, as in `w8a16`. A gate and
            what it gates read the same input: both do, or none.
        bytes_only_share: Their share of the multiply-adds in all these products, 0 to 1.
    """

    texts: int
    tokens: int
    max_error: float
    errors: dict[str, float]
    bytes_only: tuple[str, ...]
    bytes_only_share: float
