"""BERT, whose sizes and names the other families vary."""

from __future__ import annotations

from collections.abc import Mapping

from kosine_export.families.family import BlockNames, Family

__all__ = ["BERT", "BERT_BLOCK", "BERT_DEFAULTS"]

BERT_DEFAULTS: Mapping[str, int] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
BERT_BLOCK = BlockNames(
    layer="encoder.layer.{}.",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    ffn_norm="output.LayerNorm",
)
BERT = Family(
    name="bert",
    model_class="BertModel",
    class_prefixes={"Bert": "bert"},
    defaults={"bert": BERT_DEFAULTS},
    block=BERT_BLOCK,
)
