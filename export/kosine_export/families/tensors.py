"""A checkpoint's tensors, spelled as its family does, turned into those of `kosine.spec`.

Query, key and value fused, linear layers turned to (in, out).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint
from kosine.spec import EncoderSpec
from kosine_export.families.registry import FAMILIES
from kosine_export.files.weights import Float32, Weights

__all__ = ["canonical_tensors", "encoder_prefix", "layer_of", "layers_held"]

WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"
# Constants that older transformers stored beside the parameters.
BUFFERS = frozenset({"embeddings.position_ids", "embeddings.token_type_ids"})
LAYER = re.compile(r"\.layer\.([0-9]{1,5})\.")
ENCODER_PARTS = ("embeddings.", "embeddings_project.", "encoder.", "transformer.")


def encoder_prefix(names: Mapping[str, object], family: str) -> str:
    """What stands in front of the encoder's tensor names: "", "roberta.", "0.auto_model.", ...

    Raises:
        CorruptCheckpoint: No word embeddings, or several encoders in the file.
    """
    found = [name.removesuffix(WORD_EMBEDDINGS) for name in names if name.endswith(WORD_EMBEDDINGS)]
    found = [prefix for prefix in found if prefix == "" or prefix.endswith(".")]
    if len(found) == 1:
        return found[0]
    # A pre-training checkpoint may hold a second encoder: the one named after the family is
    # the one that transformers loads.
    for preferred in (f"{family}.", ""):
        if preferred in found:
            return preferred
    if not found:
        raise CorruptCheckpoint(
            f"tensor {WORD_EMBEDDINGS} is missing",
            limit=f"the weights must be those of a {family} encoder",
            remedy="check that config.json and the weights belong together",
        )
    raise CorruptCheckpoint(f"{len(found)} encoders in one file: {', '.join(sorted(found))}")


def layer_of(name: str) -> int | None:
    """The number of the layer in a tensor's or module's name, or None where it is in none."""
    found = LAYER.search(name)
    return None if found is None else int(found[1])


def layers_held(names: Mapping[str, object], family: str) -> int:
    """How many layers there are weights for: config.json may ask for fewer."""
    prefix = encoder_prefix(names, family)
    parts = tuple(prefix + part for part in ENCODER_PARTS)
    numbers = (layer_of(name) for name in names if name.startswith(parts))
    return 1 + max((number for number in numbers if number is not None), default=-1)


class Reader:
    """Reads tensors by their checkpoint names, checks shapes, and remembers what was used."""

    def __init__(
        self, weights: Weights, prefix: str, patch: Callable[[str, Float32], Float32] | None
    ):
        self._weights = weights
        self._shapes = weights.shapes()
        self._prefix = prefix
        self._patch = patch
        self.used: set[str] = set()

    def read(self, name: str, shape: tuple[int, ...]) -> Float32:
        full = self._prefix + name
        if full not in self._shapes:
            # TensorFlow's names for LayerNorm parameters, in the oldest conversions.
            old = full.removesuffix("LayerNorm.weight") + "LayerNorm.gamma"
            if full.endswith("LayerNorm.bias"):
                old = full.removesuffix("LayerNorm.bias") + "LayerNorm.beta"
            if "LayerNorm." not in full or old not in self._shapes:
                raise CorruptCheckpoint(
                    f"tensor {full} is missing",
                    limit="config.json asks for it",
                    remedy="check that config.json and the weights belong together",
                )
            full = old
        if self._shapes[full] != shape:
            raise CorruptCheckpoint(
                f"tensor {full} has shape {self._shapes[full]}",
                limit=f"config.json asks for {shape}",
                remedy="check that config.json and the weights belong together",
            )
        self.used.add(full)
        tensor = self._weights.read(full)
        return tensor if self._patch is None else self._patch(name, tensor)

    def linear(self, name: str, inputs: int, outputs: int) -> tuple[Float32, Float32]:
        """(in, out) weight and (out,) bias."""
        weight = self.read(f"{name}.weight", (outputs, inputs))
        return np.ascontiguousarray(weight.T), self.read(f"{name}.bias", (outputs,))

    def norm(self, name: str, size: int) -> tuple[Float32, Float32]:
        return self.read(f"{name}.weight", (size,)), self.read(f"{name}.bias", (size,))

    def refuse_leftovers(self, spec: EncoderSpec) -> None:
        """A tensor of the encoder that nothing used means a variant that is not understood.

        Whole layers after the last that config.json asks for are none: transformers, too, takes
        the first ones of a deeper model.
        """
        for full in sorted(set(self._shapes) - self.used):
            name = full.removeprefix(self._prefix)
            if not full.startswith(self._prefix) or not name.startswith(ENCODER_PARTS):
                continue
            if name in BUFFERS:
                continue
            if (layer_of(name) or 0) >= len(spec.layers):
                continue
            if "distance_embedding" in name:
                raise UnsupportedCheckpoint(
                    f"tensor {full}: relative position embeddings",
                    limit="absolute position embeddings are supported",
                    remedy="use a checkpoint trained with absolute positions",
                )
            raise CorruptCheckpoint(
                f"tensor {full} has no place in the architecture that config.json states",
                remedy="check that config.json and the weights belong together",
            )


def canonical_tensors(
    spec: EncoderSpec,
    weights: Weights,
    *,
    patch: Callable[[str, Float32], Float32] | None = None,
) -> dict[str, Float32]:
    """The encoder's tensors under the names and in the layouts of `kosine.spec`.

    Args:
        patch: Called with each tensor's name in its family's spelling (no prefix) and its
            values in the checkpoint's layout; returns what to use instead. Adapters merge here.

    Raises:
        CorruptCheckpoint: A tensor is missing, surplus, of the wrong shape, or not finite.
    """
    reader = Reader(weights, encoder_prefix(weights.shapes(), spec.family), patch)
    tensors = dict(embeddings(spec, reader))
    for layer in range(len(spec.layers)):
        tensors.update(block(spec, reader, layer))
    reader.refuse_leftovers(spec)
    return tensors


def embeddings(spec: EncoderSpec, reader: Reader) -> Iterator[tuple[str, Float32]]:
    sizes = spec.embeddings
    width = sizes.size
    yield "embeddings.word.weight", reader.read(WORD_EMBEDDINGS, (sizes.vocab_size, width))
    yield (
        "embeddings.position.weight",
        reader.read("embeddings.position_embeddings.weight", (sizes.positions.rows, width)),
    )
    if sizes.token_types:
        yield (
            "embeddings.token_type.weight",
            reader.read("embeddings.token_type_embeddings.weight", (sizes.token_types, width)),
        )
    yield from named("embeddings.norm", reader.norm("embeddings.LayerNorm", width))
    if width != spec.hidden_size:
        projection = reader.linear("embeddings_project", width, spec.hidden_size)
        yield from named("embeddings.project", projection)


def block(spec: EncoderSpec, reader: Reader, layer: int) -> Iterator[tuple[str, Float32]]:
    names = FAMILIES[spec.family].block
    source, target = names.layer.format(layer), f"layers.{layer}"
    hidden, sizes = spec.hidden_size, spec.layers[layer]
    heads, intermediate = sizes.attention.width, sizes.feed_forward.intermediate_size
    query, key, value = (
        reader.linear(source + name, hidden, heads)
        for name in (names.query, names.key, names.value)
    )
    fused = (
        np.concatenate([query[0], key[0], value[0]], axis=1),
        np.concatenate([query[1], key[1], value[1]]),
    )
    yield from named(f"{target}.attention.qkv", fused)
    output = reader.linear(source + names.attention_output, heads, hidden)
    yield from named(f"{target}.attention.output", output)
    norm = reader.norm(source + names.attention_norm, hidden)
    yield from named(f"{target}.attention.norm", norm)
    yield from named(f"{target}.ffn.up", reader.linear(source + names.up, hidden, intermediate))
    yield from named(f"{target}.ffn.down", reader.linear(source + names.down, intermediate, hidden))
    yield from named(f"{target}.ffn.norm", reader.norm(source + names.ffn_norm, hidden))


def named(name: str, pair: tuple[Float32, Float32]) -> Iterator[tuple[str, Float32]]:
    yield f"{name}.weight", pair[0]
    yield f"{name}.bias", pair[1]
