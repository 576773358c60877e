"""A checkpoint's weights by name, widened to float32 one tensor at a time.

safetensors files, sharded or not, are mapped and read in place. A `pytorch_model.bin` is a
pickle: it is opened only on request, by `torch.load(weights_only=True)`, which builds
tensors and refuses everything else.
"""

from __future__ import annotations

import importlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from kosine.errors import CorruptCheckpoint, MissingExtra, UnsupportedCheckpoint
from kosine_export.files.folder import read_object, sha256_of

__all__ = ["PICKLES", "SINGLE_FILES", "Float32", "Weights", "only_a_pickle", "open_weights"]

Float32 = NDArray[np.float32]

# BF16 has no numpy dtype: its bits are read as integers and widened by hand.
FLOATS: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
POINTER = b"version https://git-lfs"
SINGLE_FILES = {"model": "model.safetensors", "adapter_model": "adapter_model.safetensors"}
PICKLES = {"model": "pytorch_model.bin", "adapter_model": "adapter_model.bin"}


class Weights(Protocol):
    """Named tensors. `files` maps each file read to its hex sha256."""

    files: Mapping[str, str]
    pickled: bool

    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, name: str) -> Float32:
        """The tensor as finite float32, C-contiguous, freshly allocated.

        Raises:
            CorruptCheckpoint: It holds NaN, infinity, or a number beyond float32.
            UnsupportedCheckpoint: Its dtype is not a plain float.
        """
        ...


def open_weights(folder: Path, *, stem: str = "model", allow_pickle: bool = False) -> Weights:
    """The weights in `folder`: `model.safetensors`, its shards, or a pickle if allowed.

    Args:
        stem: "model", or "adapter_model" for a LoRA adapter.

    Raises:
        CorruptCheckpoint: No weights at all, or a damaged file.
        UnsupportedCheckpoint: Only a pickle, and `allow_pickle` is False.
        MissingExtra: A pickle is to be read and PyTorch is not installed.
    """
    single = folder / SINGLE_FILES[stem]
    if single.is_file():
        return SafetensorsWeights([single])
    index = folder / f"{single.name}.index.json"
    if index.is_file():
        return SafetensorsWeights(shards(index))
    pickle = folder / PICKLES[stem]
    pickle_index = folder / f"{pickle.name}.index.json"
    if not pickle.is_file() and not pickle_index.is_file():
        raise CorruptCheckpoint(
            f"no weights in {folder.name or folder}",
            limit=f"{single.name}, its sharded form, or {pickle.name} is needed",
            remedy="check that the download is complete"
            + ("" if allow_pickle else "; a pickle on a hub is fetched with --allow-pickle alone"),
        )
    if not allow_pickle:
        raise only_a_pickle(str(folder.name or folder), stem)
    if pickle.is_file():
        return PickledWeights([pickle])
    return PickledWeights(shards(pickle_index))


def only_a_pickle(where: str, stem: str) -> UnsupportedCheckpoint:
    """The refusal of weights that only a pickle holds, while pickles are not allowed."""
    return UnsupportedCheckpoint(
        f"{where} holds its weights in {PICKLES[stem]} only, a pickle",
        limit=f"{SINGLE_FILES[stem]} is read; pickles are not, unless asked for",
        remedy="save it as safetensors, or pass --allow-pickle to read the pickle with "
        "torch.load(weights_only=True)",
    )


def shards(index: Path) -> list[Path]:
    """The shard files that an index lists, each a plain name beside it."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptCheckpoint(f"{index.name} has no weight_map")
    files = sorted({str(name) for name in weight_map.values()})
    for name in files:
        if Path(name).name != name or "\\" in name or name in {"", ".", ".."}:
            raise CorruptCheckpoint(
                f"{index.name} names the shard {name!r}", limit="shards lie beside the index"
            )
        if not (index.parent / name).is_file():
            raise CorruptCheckpoint(
                f"shard {name} of {index.name} is missing",
                remedy="check that the download is complete",
            )
    return [index.parent / name for name in files]


def finite(name: str, tensor: NDArray[Any], file: str) -> Float32:
    with np.errstate(over="ignore"):
        wide = np.array(tensor, np.float32, order="C", copy=True)
    if not np.isfinite(wide).all():
        raise CorruptCheckpoint(
            f"tensor {name} in {file} holds {int(np.count_nonzero(~np.isfinite(wide)))} values "
            "that are not finite in float32",
            remedy="check the training run that wrote it",
        )
    return wide


class SafetensorsWeights:
    """Tensors of one or more safetensors files."""

    pickled = False

    def __init__(self, files: list[Path]) -> None:
        self.files: Mapping[str, str] = {file.name: sha256_of(file) for file in files}
        self._entries: dict[str, tuple[Path, str, tuple[int, ...], int]] = {}
        for file in files:
            for name, (dtype, shape, offset) in header_of(file).items():
                if name in self._entries:
                    raise CorruptCheckpoint(f"tensor {name} is in two shards, {file.name} is one")
                self._entries[name] = (file, dtype, shape, offset)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: entry[2] for name, entry in self._entries.items()}

    def read(self, name: str) -> Float32:
        file, dtype, shape, offset = self._entries[name]
        if dtype not in FLOATS:
            raise UnsupportedCheckpoint(
                f"tensor {name} in {file.name} is {dtype}",
                limit=f"weights are read from {', '.join(FLOATS)}",
                remedy="export from the checkpoint before it was quantised",
            )
        count = int(np.prod(shape, dtype=np.int64))
        raw = np.fromfile(file, np.dtype(FLOATS[dtype]), count=count, offset=offset).reshape(shape)
        if dtype == "BF16":
            raw = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return finite(name, raw, file.name)


def header_of(file: Path) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """name -> (dtype, shape, absolute byte offset), from a validated header."""
    try:
        # The package's own validation: header size, coverage, overlaps, shapes against bytes.
        with safe_open(file, framework="np"):
            pass
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        with file.open("rb") as opened:
            is_pointer = opened.read(len(POINTER)) == POINTER
        problem = "is a Git LFS pointer, not the file" if is_pointer else "is damaged"
        raise CorruptCheckpoint(
            f"{file.name} {problem}",
            limit="a complete safetensors file is needed",
            remedy="run git lfs pull" if is_pointer else "download or save it again",
        ) from error
    return {
        name: (entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }


class PickledWeights:
    """Tensors of `pytorch_model.bin`, read with `weights_only=True`."""

    pickled = True

    def __init__(self, files: list[Path]) -> None:
        try:
            torch: Any = importlib.import_module("torch")
        except ImportError as error:
            raise MissingExtra(
                f"{files[0].name} is a pickle, and PyTorch is not installed",
                limit="pickles are read by torch.load(weights_only=True)",
                remedy="pip install 'kosine[torch]', or save the checkpoint as safetensors",
            ) from error
        self.files: Mapping[str, str] = {file.name: sha256_of(file) for file in files}
        self._tensors: dict[str, tuple[str, Any]] = {}
        for file in files:
            try:
                state = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:
                raise CorruptCheckpoint(
                    f"{file.name} could not be read with weights_only=True",
                    limit="it must hold tensors and nothing else",
                    remedy="do not load it any other way unless you trust who made it",
                ) from error
            if not isinstance(state, dict):
                raise CorruptCheckpoint(
                    f"{file.name} holds a {type(state).__name__}",
                    limit="a state dict of tensors is needed",
                )
            for name, tensor in state.items():
                if isinstance(name, str) and torch.is_tensor(tensor):
                    self._tensors[name] = (file.name, tensor)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, (_, tensor) in self._tensors.items()}

    def read(self, name: str) -> Float32:
        file, tensor = self._tensors[name]
        if not tensor.is_floating_point():
            raise UnsupportedCheckpoint(
                f"tensor {name} in {file} is {tensor.dtype}",
                limit="weights are floating point",
                remedy="export from the checkpoint before it was quantised",
            )
        return finite(name, tensor.float().numpy(), file)
