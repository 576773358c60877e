"""PyTorch's tensors at the doors: vectors as tensors, and scores of tensors.

PyTorch is imported where tensors are asked for only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kosine.errors import MissingExtra

__all__ = ["as_arrays", "as_asked"]


def as_asked(vectors: NDArray[Any], convert_to_numpy: bool, convert_to_tensor: bool) -> Any:
    """(n, d) or (d,) vectors as an array; as a tensor; or, with neither, as a list of tensors."""
    if convert_to_numpy and not convert_to_tensor:
        return vectors
    try:
        import torch
    except ImportError:
        raise MissingExtra(
            "tensors need PyTorch",
            limit="PyTorch installed",
            remedy="pip install 'kosine[torch]', or leave out convert_to_tensor",
        ) from None
    tensor = torch.from_numpy(vectors)
    return tensor if convert_to_tensor or vectors.ndim == 1 else list(tensor)


def as_arrays(*sides: Any) -> tuple[list[Any], bool]:
    """Both sides of a score without PyTorch's types, and whether any was a tensor, or a list of
    them: then so should be the scores."""
    arrays = [_as_array(side) for side in sides]
    return arrays, any(a is not b for a, b in zip(arrays, sides, strict=True))


def _as_array(side: Any) -> Any:
    if _is_tensor(side):
        return side.detach().cpu().numpy()
    if isinstance(side, list | tuple) and side and _is_tensor(side[0]):
        return np.stack([_as_array(row) for row in side])
    return side


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")
