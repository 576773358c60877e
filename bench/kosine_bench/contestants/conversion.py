"""Checkpoint to what each rival reads. Done once per checkpoint, in the rivals' environment.

Each conversion writes into a folder of its own and is the route that the runtime's own
documentation gives for an encoder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from kosine_bench.contestants.contestant import Absent, Checkpoint, installed_version

__all__ = ["CONVERSIONS", "STAMP", "convert", "made_by"]

STAMP = "made-by.json"


def convert(name: str, checkpoint: Checkpoint, calibration: Sequence[Sequence[int]]) -> Path:
    """The folder of conversion `name`, made unless one by the same versions is there."""
    function, needs, _ = CONVERSIONS[name]
    folder = checkpoint.converted / name
    versions = made_by(name)
    stamp = folder / STAMP
    if stamp.is_file() and json.loads(stamp.read_text("utf-8")) == versions:
        return folder
    for need in needs:
        convert(need, checkpoint, calibration)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    function(checkpoint, folder, calibration)
    stamp.write_text(json.dumps(versions), "utf-8")
    return folder


def made_by(name: str) -> dict[str, str]:
    """What conversion `name` depends on here, for its stamp: versions, and kosine's source."""
    versions = {package: installed_version(package) for package in CONVERSIONS[name][2]}
    if "kosine" in versions:
        versions["source"] = _exporter_digest()
    return versions


def _transformer(checkpoint: Checkpoint, *, finite_masks: bool = False) -> Any:
    """The checkpoint's encoder as a torch module (input_ids, attention_mask) -> hidden state.

    `finite_masks`: no token is left without any that it sees, which some runtimes make NaN.
    """
    import torch
    from transformers import AutoModel

    windowed = finite_masks and checkpoint.config["model_type"] == "modernbert"

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(checkpoint.folder, dtype=torch.float32)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            mask = self.masks(attention_mask) if windowed else attention_mask
            return self.model(input_ids=input_ids, attention_mask=mask).last_hidden_state

        def masks(self, attention_mask: Any) -> Any:
            """ModernBERT's own, by kind of layer, with a large number for infinity."""
            places = torch.arange(attention_mask.shape[1])
            far = (places[:, None] - places).abs() > self.model.config.local_attention // 2
            hidden = (attention_mask == 0)[:, None, None, :] | torch.zeros_like(far)
            return {
                "full_attention": hidden * -1e30,
                "sliding_attention": (hidden | far) * -1e30,
            }

    return Encoder().eval()


def _example() -> tuple[Any, Any]:
    import torch

    ids = torch.tensor([[0, 10, 11, 12, 2], [0, 9, 2, 1, 1]])
    return ids, (ids != 1).long()


def _onnx(checkpoint: Checkpoint, folder: Path, _: Sequence[Sequence[int]]) -> None:
    """The graph as the ONNX backend of sentence-transformers exports it: the encoder alone."""
    import torch

    names = ["input_ids", "attention_mask"]
    axes = {name: {0: "batch", 1: "tokens"} for name in [*names, "last_hidden_state"]}
    with torch.no_grad():
        torch.onnx.export(
            _transformer(checkpoint),
            _example(),
            str(folder / "model.onnx"),
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )


def _onnx_int8(checkpoint: Checkpoint, folder: Path, _: Sequence[Sequence[int]]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        checkpoint.converted / "onnx" / "model.onnx",
        folder / "model.onnx",
        weight_type=QuantType.QInt8,
        per_channel=True,
    )


def _openvino(checkpoint: Checkpoint, folder: Path, _: Sequence[Sequence[int]]) -> None:
    import openvino
    import torch

    with torch.no_grad():
        encoder = _transformer(checkpoint, finite_masks=True)
        model = openvino.convert_model(encoder, example_input=_example())
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)


def _openvino_int8(
    checkpoint: Checkpoint, folder: Path, calibration: Sequence[Sequence[int]]
) -> None:
    import nncf
    import openvino

    def feed(row: Sequence[int]) -> dict[str, Any]:
        ids = np.array([row], np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    model = openvino.Core().read_model(checkpoint.converted / "openvino" / "model.xml")
    quantised = nncf.quantize(
        model,
        nncf.Dataset(list(calibration), feed),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(calibration),
    )
    openvino.save_model(quantised, folder / "model.xml", compress_to_fp16=False)


def _ctranslate2(checkpoint: Checkpoint, folder: Path, _: Sequence[Sequence[int]]) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(checkpoint.folder)).convert(
        str(folder / "model"), quantization="int8"
    )


def _fastembed(checkpoint: Checkpoint, folder: Path, _: Sequence[Sequence[int]]) -> None:
    """A folder as fastembed downloads them: the graph beside the tokenizer's files."""
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    for name in names:
        if (checkpoint.folder / name).is_file():  # Newer ones have no special_tokens_map.json.
            shutil.copy(checkpoint.folder / name, folder / name)
    (folder / "model.onnx").symlink_to(checkpoint.converted / "onnx" / "model.onnx")


def _kosine(checkpoint: Checkpoint, folder: Path, _: Sequence[Sequence[int]]) -> None:
    from kosine_export.export import export

    export(checkpoint.folder, folder / "encoder.kosine")


def _kosine_int8(checkpoint: Checkpoint, folder: Path, _: Sequence[Sequence[int]]) -> None:
    from kosine.bundle.canary import GATES
    from kosine.errors import BackendUnavailable, ParityError
    from kosine_export.export import export

    # Vectors of random weights differ by little more than rounding once their mean is taken off:
    # there the gates of trained encoders that do so mean nothing. All other gates stay.
    plain = {
        dtype: replace(GATES[dtype], centred_min_cosine=-1.0, centred_mean_cosine=-1.0)
        for dtype in ("w8a16", "int8")
    }
    try:
        with patch.dict(GATES, {} if checkpoint.trained else plain):
            export(checkpoint.folder, folder / "encoder.kosine", targets=["native-int8"])
    except (BackendUnavailable, ParityError) as error:
        raise Absent(str(error)) from error


def _kosine_cuda(checkpoint: Checkpoint, folder: Path, _: Sequence[Sequence[int]]) -> None:
    from kosine_export.export import export

    export(checkpoint.folder, folder / "encoder.kosine", targets=["onnx-fp16"])


def _kosine_tensorrt(checkpoint: Checkpoint, folder: Path, _: Sequence[Sequence[int]]) -> None:
    from kosine_export.export import export

    if not any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_rtx")):
        raise Absent("neither tensorrt nor tensorrt-rtx is installed: pip install tensorrt")
    export(checkpoint.folder, folder / "encoder.kosine", targets=["tensorrt-fp16"])


def _exporter_digest() -> str:
    """Changes with the exporter's source, whose version alone says little in a checkout."""
    import kosine_export

    digest = hashlib.sha256()
    for path in sorted(Path(str(kosine_export.__file__)).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


Conversion = Callable[[Checkpoint, Path, Sequence[Sequence[int]]], None]

# name: (function, conversions it starts from, distributions whose versions it depends on)
CONVERSIONS: dict[str, tuple[Conversion, tuple[str, ...], tuple[str, ...]]] = {
    "onnx": (_onnx, (), ("torch", "transformers", "onnx")),
    "onnx-int8": (_onnx_int8, ("onnx",), ("torch", "transformers", "onnxruntime")),
    "openvino": (_openvino, (), ("torch", "transformers", "openvino")),
    "openvino-int8": (_openvino_int8, ("openvino",), ("torch", "openvino", "nncf")),
    "ctranslate2": (_ctranslate2, (), ("torch", "transformers", "ctranslate2")),
    "kosine": (_kosine, (), ("kosine",)),
    "kosine-int8": (_kosine_int8, (), ("kosine",)),
    "kosine-cuda": (_kosine_cuda, (), ("kosine",)),
    "kosine-tensorrt": (_kosine_tensorrt, (), ("kosine",)),
    "fastembed": (_fastembed, ("onnx",), ("torch", "transformers", "onnx", "fastembed")),
}
