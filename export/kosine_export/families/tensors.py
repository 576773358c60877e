"""A checkpoint's tensors, spelled as its family does, turned into those of `kosine.spec`.

Query, key and value fused, linear layers turned to (in, out).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint
from kosine.spec import EncoderSpec
from kosine_export.families.family import BlockNames
from kosine_export.families.reader import Reader, named
from kosine_export.families.registry import FAMILIES
from kosine_export.files.weights import Float32, Weights

__all__ = ["canonical_tensors", "encoder_prefix", "layer_of", "layers_held"]

# Constants that older transformers stored beside the parameters.
BUFFERS = frozenset({"embeddings.position_ids", "embeddings.token_type_ids"})
LAYER = re.compile(r"(?:^|\.)layers?\.([0-9]{1,5})\.")


def encoder_prefix(names: Mapping[str, object], family: str) -> str:
    """What stands in front of the encoder's tensor names: "", "roberta.", "0.auto_model.", ...

    Raises:
        CorruptCheckpoint: No word embeddings, or several encoders in the file.
    """
    words = FAMILIES[family].word_embeddings
    found = [name.removesuffix(words) for name in names if name.endswith(words)]
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
            f"tensor {words} is missing",
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
    parts = tuple(prefix + part for part in FAMILIES[family].parts)
    numbers = (layer_of(name) for name in names if name.startswith(parts))
    return 1 + max((number for number in numbers if number is not None), default=-1)


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
    family = FAMILIES[spec.family]
    if family.tensors is not None:
        tensors = dict(family.tensors(spec, reader))
    else:
        assert family.block is not None
        tensors = dict(embeddings(spec, reader))
        for layer in range(len(spec.layers)):
            tensors.update(block(spec, reader, layer, family.block))
    refuse_leftovers(reader, spec)
    return tensors


def embeddings(spec: EncoderSpec, reader: Reader) -> Iterator[tuple[str, Float32]]:
    sizes = spec.embeddings
    width = sizes.size
    words = FAMILIES[spec.family].word_embeddings
    yield "embeddings.word.weight", reader.read(words, (sizes.vocab_size, width))
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


def block(
    spec: EncoderSpec, reader: Reader, layer: int, names: BlockNames
) -> Iterator[tuple[str, Float32]]:
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


def refuse_leftovers(reader: Reader, spec: EncoderSpec) -> None:
    """A tensor of the encoder that nothing used means a variant that is not understood.

    Whole layers after the last that config.json asks for are none: transformers, too, takes
    the first ones of a deeper model.
    """
    parts = FAMILIES[spec.family].parts
    for full in sorted(set(reader.shapes) - reader.used):
        name = full.removeprefix(reader.prefix)
        if not full.startswith(reader.prefix) or not name.startswith(parts):
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
