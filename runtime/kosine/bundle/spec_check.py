"""Whether a manifest's spec can be: its sizes, and what its fields ask of one another."""

from __future__ import annotations

from math import nextafter

from kosine.bundle.typed_json import bad, shown
from kosine.spec import EncoderSpec
from kosine.spec_fields import leaves

__all__ = ["MAX_DIMENSION", "check_spec"]

MAX_DIMENSION = 1 << 20
MAX_THETA = 1e12
# Numbers that do not lie between 0 and 1: what they must be above, and below.
RANGES = {
    "layers.attention.rope_theta": (1.0, MAX_THETA),
    "layers.attention.rope_divisor": (nextafter(1.0, 0.0), MAX_THETA),
}
# Sizes that may be 0.
FROM_ZERO = ("embeddings.token_types", "embeddings.positions.pad_id", "layers.attention.window")


def check_spec(spec: EncoderSpec) -> None:
    """Whether sizes can be, and agree with one another.

    Raises:
        ManifestError: They do not; it names the path to the bad value.
    """
    if not spec.layers:
        raise bad("$.spec.layers", "empty", "at least one layer")
    for where, path, value, _ in leaves(spec):
        if type(value) is int:
            least = 0 if path in FROM_ZERO else 1
            if not least <= value <= MAX_DIMENSION:
                raise bad(f"$.spec.{where}", shown(value), f"{least} to {MAX_DIMENSION}")
        if type(value) is float:
            above, below = RANGES.get(path, (0.0, 1.0))
            if not above < value < below:
                raise bad(f"$.spec.{where}", str(value), f"between {above:g} and {below:g}")
    for i, layer in enumerate(spec.layers):
        heads, shared = layer.attention.num_heads, layer.attention.num_key_value_heads
        if heads % shared:
            at = f"$.spec.layers[{i}].attention.num_key_value_heads"
            raise bad(at, str(shared), f"a divisor of {heads}")
        attention, at = layer.attention, f"$.spec.layers[{i}].attention"
        if (attention.positions == "rope") != (attention.rope_theta is not None):
            raise bad(f"{at}.rope_theta", str(attention.rope_theta), "a number with 'rope' alone")
        buckets = attention.buckets
        if (attention.positions == "buckets") != (buckets is not None):
            raise bad(f"{at}.buckets", str(buckets)[:40], "an object with 'buckets' alone")
        if buckets is not None and not 4 <= buckets.count < 2 * buckets.max_distance:
            raise bad(f"{at}.buckets.count", str(buckets.count), "from 4 to twice max_distance")
        if attention.positions == "rope" and attention.head_size % 2:
            raise bad(f"{at}.head_size", str(attention.head_size), "an even number with 'rope'")
        if not layer.attention_norm and layer.norm_placement != "pre":
            raise bad(f"$.spec.layers[{i}].attention_norm", "false", "true but with norms 'pre'")
    if spec.embeddings.norm is None and spec.layers[0].norm_placement == "post":
        raise bad("$.spec.embeddings.norm", "null", "a norm before a layer of norms 'post'")
    positions = spec.embeddings.positions
    if positions.pad_id >= spec.embeddings.vocab_size:
        raise bad("$.spec.embeddings.positions.pad_id", str(positions.pad_id), "a vocabulary id")
    if not spec.pooling.modes:
        raise bad("$.spec.pooling.modes", "empty", "at least one")
    if spec.heads is not None and not spec.heads.sparse and spec.heads.multi is None:
        raise bad("$.spec.heads", "an object with neither head", "null without heads")
    dim = spec.pooled_size
    if dim > MAX_DIMENSION:
        modes = f"{len(spec.pooling.modes)} of them"
        raise bad("$.spec.pooling.modes", modes, f"{MAX_DIMENSION} dimensions at most")
    for i, dense in enumerate(spec.dense):
        if dense.in_features != dim:
            raise bad(f"$.spec.dense[{i}].in_features", shown(dense.in_features), f"{dim}")
        dim = dense.out_features
