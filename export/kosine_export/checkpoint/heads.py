"""BGE-M3's heads for tokens: two linear layers, each a pickle of its own beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kosine.errors import CorruptCheckpoint
from kosine.spec import Heads
from kosine_export.files.weights import Float32, PickledWeights

__all__ = ["HEAD_FILES", "ReadHeads", "read_heads"]

HEAD_FILES = {"sparse": "sparse_linear.pt", "multi": "colbert_linear.pt"}


@dataclass(frozen=True, slots=True)
class ReadHeads:
    """The heads of a checkpoint.

    Attributes:
        heads: For the spec; None where there are none, or they were not to be read.
        tensors: By the names of `kosine.spec`.
        files: sha256 by file.
        notes: What a user should know.
    """

    heads: Heads | None = None
    tensors: Mapping[str, Float32] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_heads(folder: Path, hidden_size: int, *, allow_pickle: bool) -> ReadHeads:
    """The heads in a transformer's folder, as FlagEmbedding writes and finds them there.

    Args:
        allow_pickle: Read them, with `torch.load(weights_only=True)`; else they are left out,
            with a note.

    Raises:
        CorruptCheckpoint: Damaged files, or layers that do not fit the encoder.
        MissingExtra: They are to be read and PyTorch is not installed.
    """
    there = {name: folder / file for name, file in HEAD_FILES.items() if (folder / file).is_file()}
    if not there:
        return ReadHeads()
    if not allow_pickle:
        names = " and ".join(path.name for path in there.values())
        note = f"{names} left out: pickles, which --allow-pickle reads with weights_only=True"
        return ReadHeads(notes=(note,))
    tensors: dict[str, Float32] = {}
    files: dict[str, str] = {}
    columns: dict[str, int] = {}
    for name, path in there.items():
        weights = PickledWeights([path])
        files |= weights.files
        shapes = weights.shapes()
        out = shapes.get("weight", (0,))[0]
        expected = {"weight": (out, hidden_size), "bias": (out,)}
        if shapes != expected or out < 1 or (name == "sparse" and out != 1):
            raise CorruptCheckpoint(
                f"{path.name} holds {dict(shapes)}",
                limit=f"a linear layer from {hidden_size} columns"
                + (" to 1 is needed" if name == "sparse" else " is needed"),
                remedy="check that the file and the encoder belong together",
            )
        tensors[f"heads.{name}.weight"] = np.ascontiguousarray(weights.read("weight").T)
        tensors[f"heads.{name}.bias"] = weights.read("bias")
        columns[name] = out
    return ReadHeads(Heads("sparse" in columns, columns.get("multi")), tensors, files)
