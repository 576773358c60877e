"""A LoRA adapter folder, merged into the base model's weights.

An adapter holds low-rank pairs A (r, in) and B (out, r) for some linear layers of a base
model; the merged layer is `W + (alpha / r) * B @ A`. What cannot be merged that way is
refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint
from kosine_export.families.tensors import layer_of
from kosine_export.files.folder import read_object, without_nulls
from kosine_export.files.weights import Float32, Weights, open_weights

__all__ = ["ADAPTER_CONFIG", "Adapter", "read_adapter"]

ADAPTER_CONFIG = "adapter_config.json"
SUPPORTED = "LoRA on linear layers, W + (alpha / r) * B @ A, is supported"
REMEDY = "merge it with peft (merge_and_unload), save the result and export that"
# Settings that change the arithmetic or add weights, with the name users know them by.
REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA",
    "use_rslora": "rsLoRA",
    "use_qalora": "QALoRA",
    "lora_bias": "a bias on the LoRA matrices (lora_bias)",
    "modules_to_save": "modules_to_save",
    "layer_replication": "layer_replication",
    "trainable_token_indices": "trainable_token_indices",
    "target_parameters": "target_parameters",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "arrow_config": "Arrow",
    "ensure_weight_tying": "ensure_weight_tying",
}
# Other initialisations change the base weights, which the adapter folder does not hold.
PLAIN_INITS = (True, False, "gaussian", "orthogonal")
PAIR = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(?:\.default)?\.weight")
ENCODER_MODULE = re.compile(
    r"(?:^|\.)((?:embeddings\.|encoder\.|transformer\.|layers\.\d|embeddings_project$).*)"
)
PLAIN_NAME = re.compile(r"\^?[\w.]+")


@dataclass(frozen=True, slots=True)
class Pair:
    a: str
    b: str
    rank: int
    scale: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """LoRA pairs by the linear layer they belong to (the family's spelling, no prefix)."""

    base: str
    weights: Weights
    pairs: Mapping[str, Pair]
    fan_in_fan_out: bool
    config: Mapping[str, Any]

    def require_base(
        self, shapes: Mapping[str, tuple[int, ...]], prefix: str, num_layers: int
    ) -> None:
        """Check that base and adapter belong together, in both directions.

        Args:
            shapes: The base's tensors, under the names its file has.
            prefix: What stands in front of the encoder's names there.
            num_layers: Layers of the base that are used; its file may hold more.

        Raises:
            CorruptCheckpoint: A pair for a layer that the base lacks or of other sizes, or a
                targeted layer without a pair.
        """
        lora = self.weights.shapes()
        shapes = {name: shapes[name] for name in shapes if (layer_of(name) or 0) < num_layers}
        for module, pair in self.pairs.items():
            base = shapes.get(f"{prefix}{module}.weight")
            if base is None or len(base) != 2:
                raise CorruptCheckpoint(
                    f"the adapter changes {module}, and the base has no such linear layer",
                    limit=f"it was made for {self.base}",
                    remedy="give that base with --base",
                )
            outputs, inputs = base[::-1] if self.fan_in_fan_out else base
            if lora[pair.a] != (pair.rank, inputs) or lora[pair.b] != (outputs, pair.rank):
                raise CorruptCheckpoint(
                    f"LoRA pair of {module} has shapes {lora[pair.a]} and {lora[pair.b]}",
                    limit=f"rank {pair.rank} on ({outputs}, {inputs}) needs "
                    f"({pair.rank}, {inputs}) and ({outputs}, {pair.rank})",
                    remedy="check that adapter_config.json, its weights and --base belong together",
                )
        encoder = [
            name.removeprefix(prefix).removesuffix(".weight")
            for name, shape in shapes.items()
            if name.startswith(prefix)
            and name.endswith(".weight")
            and len(shape) == 2
            and ENCODER_MODULE.match(name.removeprefix(prefix).removesuffix(".weight"))
        ]
        missing = [name for name in encoder if self.targets(name) and name not in self.pairs]
        if missing:
            raise CorruptCheckpoint(
                f"the adapter targets {missing[0]} and holds no LoRA pair for it",
                limit="each targeted layer has one",
                remedy="check that the adapter's download is complete",
            )

    def targets(self, module: str) -> bool:
        """Whether the config's lists name this module; a pattern counts as "do not know"."""
        names, excluded = self.config.get("target_modules"), self.config.get("exclude_modules")
        if not isinstance(names, list) or isinstance(excluded, str):
            return False
        if not any(module == name or module.endswith(f".{name}") for name in names):
            return False
        if any(module == name or module.endswith(f".{name}") for name in excluded or ()):
            return False
        layers = self.config.get("layers_to_transform")
        if layers is None:
            return True
        number = layer_of(module)
        wanted = layers if isinstance(layers, list) else [layers]
        return number is not None and number in wanted

    def merge(self, name: str, weight: Float32) -> Float32:
        """`weight` with its LoRA pair added, or as it is where it has none.

        Args:
            name: The tensor's name in its family's spelling, no prefix.
            weight: In the base file's layout.
        """
        pair = self.pairs.get(name.removesuffix(".weight"))
        if pair is None or not name.endswith(".weight"):
            return weight
        a = self.weights.read(pair.a).astype(np.float64)
        b = self.weights.read(pair.b).astype(np.float64)
        delta = pair.scale * (b @ a)
        merged = weight + (delta.T if self.fan_in_fan_out else delta)
        return np.ascontiguousarray(merged, np.float32)


def read_adapter(folder: Path, *, allow_pickle: bool = False) -> Adapter:
    """Read an adapter folder's config and weights.

    Raises:
        UnsupportedCheckpoint: Another PEFT method, or a LoRA variant that is not a plain sum.
        CorruptCheckpoint: Damaged files, or pairs with a half missing.
    """
    config = without_nulls(read_object(folder / ADAPTER_CONFIG))
    refuse_variants(config)
    base = config.get("base_model_name_or_path")
    rank, alpha = number(config, "r"), number(config, "lora_alpha")
    ranks, alphas = pattern(config, "rank_pattern"), pattern(config, "alpha_pattern")
    weights = open_weights(folder, stem="adapter_model", allow_pickle=allow_pickle)
    halves: dict[str, dict[str, str]] = {}
    for name in weights.shapes():
        found = PAIR.fullmatch(name)
        if found is None:
            raise UnsupportedCheckpoint(f"adapter tensor {name}", limit=SUPPORTED, remedy=REMEDY)
        module = found["module"].removeprefix("base_model.model.")
        halves.setdefault(module, {})[found["half"]] = name
    modules = strip_prefixes(halves)
    pairs = {}
    for module, half in modules.items():
        if set(half) != {"A", "B"}:
            raise CorruptCheckpoint(
                f"the adapter holds lora_{next(iter(half))} of {module} alone",
                limit="A and B come in pairs",
                remedy="check that the adapter's download is complete",
            )
        r = override(ranks, module, rank)
        if r < 1 or r != int(r):
            raise CorruptCheckpoint(f"{ADAPTER_CONFIG}: rank {r} for {module}")
        pairs[module] = Pair(half["A"], half["B"], int(r), override(alphas, module, alpha) / r)
    if not pairs:
        raise CorruptCheckpoint("the adapter holds no LoRA pair")
    return Adapter(
        base=str(base) if base is not None else "an unnamed base",
        weights=weights,
        pairs=pairs,
        fan_in_fan_out=bool(config.get("fan_in_fan_out", False)),
        config=config,
    )


def refuse_variants(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedCheckpoint(f"PEFT type {kind!r}", limit=SUPPORTED, remedy=REMEDY)
    for key, name in REFUSED.items():
        if config.get(key):
            raise UnsupportedCheckpoint(f"adapter with {name}", limit=SUPPORTED, remedy=REMEDY)
    if config.get("bias", "none") != "none":
        raise UnsupportedCheckpoint(
            f"adapter with bias {config['bias']!r}", limit=SUPPORTED, remedy=REMEDY
        )
    init = config.get("init_lora_weights", True)
    if init not in PLAIN_INITS:
        raise UnsupportedCheckpoint(
            f"adapter with init_lora_weights {init!r}, which changes the base weights",
            limit=SUPPORTED,
            remedy=REMEDY,
        )


def strip_prefixes(halves: Mapping[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Module names from the encoder's own root: adapters are saved from wrappers too."""
    stripped: dict[str, dict[str, str]] = {}
    for module, half in halves.items():
        if module.endswith("pooler.dense"):  # no part of a sentence vector
            continue
        found = ENCODER_MODULE.search(module)
        if found is None:
            raise UnsupportedCheckpoint(
                f"adapter on {module}, outside the encoder", limit=SUPPORTED, remedy=REMEDY
            )
        name = found[1]
        if stripped.setdefault(name, half) is not half:
            raise CorruptCheckpoint(f"the adapter holds two LoRA pairs for {name}")
    return stripped


def number(config: Mapping[str, Any], key: str) -> float:
    value = config.get(key, 8)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise CorruptCheckpoint(f"{ADAPTER_CONFIG}: {key} is {value!r}")
    return float(value)


def pattern(config: Mapping[str, Any], key: str) -> dict[str, float]:
    """rank_pattern or alpha_pattern, where its keys are names and not regular expressions."""
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise CorruptCheckpoint(f"{ADAPTER_CONFIG}: {key} is a {type(value).__name__}")
    for name in value:
        if PLAIN_NAME.fullmatch(name) is None:
            raise UnsupportedCheckpoint(
                f"{key} with the expression {name!r}",
                limit="module names are supported there",
                remedy=REMEDY,
            )
    return {name: number(value, name) for name in value}


def override(stated: Mapping[str, float], module: str, default: float) -> float:
    """The first entry that names `module` or its tail, as peft picks it."""
    for name, value in stated.items():
        exact = name.removeprefix("^")
        if module == exact or (not name.startswith("^") and module.endswith(f".{exact}")):
            return value
    return default
