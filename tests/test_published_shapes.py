"""The encoders that people serve, by the shapes in their published configs: no weights needed."""

from __future__ import annotations

import numpy as np
import pytest

from kosine.backends.lowering import require_supported
from kosine.bundle.graphscan import MAX_GRAPH_BYTES, scan_graph
from kosine.bundle.tensorfile import TensorEntry
from kosine.spec import EncoderSpec
from kosine_export.families.config import read_config
from kosine_export.graph.packed import packed_graph
from kosine_export.graph.padded import model_graph

QWEN3_600M = {
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 32768,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 151669,
}
QWEN3_4B = {
    **QWEN3_600M,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "max_position_embeddings": 40960,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "vocab_size": 151665,
}
GEMMA_300M = {
    "model_type": "gemma3_text",
    "attn_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 768,
    "intermediate_size": 1152,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 4,
    "max_position_embeddings": 2048,
    "num_attention_heads": 3,
    "num_hidden_layers": 24,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "use_bidirectional_attention": True,
    "vocab_size": 262144,
}
GTE_BASE = {
    "model_type": "new",
    "auto_map": {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"},
    "hidden_act": "gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 8192,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pack_qkv": True,
    "pad_token_id": 1,
    "position_embedding_type": "rope",
    "rope_scaling": {"factor": 8.0, "type": "ntk"},
    "rope_theta": 20000,
    "type_vocab_size": 1,
    "vocab_size": 250048,
}
MODERNBERT_BASE = {
    "model_type": "modernbert",
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "classifier_activation": "gelu",
    "classifier_pooling": "mean",
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_cutoff_factor": 2.0,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "reference_compile": False,
    "repad_logits_with_grad": False,
    "sparse_prediction": False,
    "vocab_size": 50368,
}
MODERNBERT_LARGE = {
    **MODERNBERT_BASE,
    "hidden_size": 1024,
    "intermediate_size": 2624,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
}
# A.X-Encoder reads 16,384 tokens.
MODERNBERT_16K = {**MODERNBERT_BASE, "max_position_embeddings": 16384}
# granite-embedding-multilingual-r2, as its cards describe it: they round the vocabulary.
GRANITE_311M = {**MODERNBERT_BASE, "vocab_size": 262_144, "max_position_embeddings": 32768}
GRANITE_97M = {
    **GRANITE_311M,
    "hidden_activation": "silu",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "vocab_size": 180_000,
}
# Numbers in their weights, without heads and modules after the pooling.
PUBLISHED = {
    "qwen3-0.6b": (QWEN3_600M, 595_776_512),
    "qwen3-4b": (QWEN3_4B, 4_021_774_336),
    "embeddinggemma-300m": (GEMMA_300M, 302_863_104),
    "gte-multilingual-base": (GTE_BASE, 305_368_320),
    "modernbert-base": (MODERNBERT_BASE, 149_014_272),
    "modernbert-large": (MODERNBERT_LARGE, 394_781_696),
    "modernbert of 16,384 tokens": (MODERNBERT_16K, 149_014_272),
    "granite-embedding-311m-multilingual-r2": (GRANITE_311M, 311_658_240),
    "granite-embedding-97m-multilingual-r2": (GRANITE_97M, 97_441_152),
}


class Entries(dict[str, TensorEntry]):
    """Any tensor, at any place."""

    def __missing__(self, name: str) -> TensorEntry:
        return TensorEntry(name, np.dtype(np.float32), (1,), 0, 4)


def numbers(spec: EncoderSpec) -> int:
    """How many the checkpoint holds, by the sizes of the spec."""
    hidden, embeddings = spec.hidden_size, spec.embeddings
    total = (embeddings.vocab_size + embeddings.token_types) * embeddings.size
    for norm in (embeddings.norm, spec.final_norm):
        total += 0 if norm is None else (1 + norm.bias) * hidden
    for block in spec.layers:
        attention, forward = block.attention, block.feed_forward
        columns = attention.width + 2 * attention.shared_width
        total += hidden * (columns + attention.width) + 3 * hidden * forward.intermediate_size
        if attention.bias:
            total += columns + hidden
        total += hidden if forward.bias else 0
        norms = (4 if block.norm_placement == "sandwich" else 2) - (not block.attention_norm)
        total += norms * (1 + block.norm.bias) * hidden
        total += 2 * attention.head_size if attention.query_key_norm else 0
    return total


def of_a_layer(spec: EncoderSpec) -> set[str]:
    """The last layer's tensors, as `kosine.spec` lists them."""
    block, at = spec.layers[-1], f"layers.{len(spec.layers) - 1}"
    linear = {"attention.qkv", "attention.output"} if block.attention.bias else set()
    linear |= {"ffn.up", "ffn.gate", "ffn.down"} if block.feed_forward.bias else set()
    norms = {"attention.norm", "ffn.norm"}
    if block.norm_placement == "sandwich":
        norms |= {"attention.output.norm", "ffn.down.norm"}
    biased = linear | (norms if block.norm.bias else set())
    if block.attention.query_key_norm is not None:
        norms |= {"attention.query.norm", "attention.key.norm"}
    weights = norms | {"attention.qkv", "attention.output", "ffn.up", "ffn.gate", "ffn.down"}
    return {f"{at}.{name}.weight" for name in weights} | {f"{at}.{name}.bias" for name in biased}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_lowered_whole(name):
    config, expected = PUBLISHED[name]
    spec = read_config(config)
    assert numbers(spec) == expected
    require_supported(spec, name)
    for graph in (
        packed_graph(spec, Entries(), max_tokens=spec.embeddings.positions.rows)[0],
        model_graph(spec, Entries()),
    ):
        data = graph.SerializeToString()
        assert len(data) < MAX_GRAPH_BYTES
        named = {tensor.name for tensor in scan_graph(data, "graph")}
        last = f"layers.{len(spec.layers) - 1}."
        assert {name for name in named if name.startswith(last)} == of_a_layer(spec)
