"""DistilBERT: BERT's block under other names, without token types."""

from __future__ import annotations

from kosine_export.families.bert import BERT_DEFAULTS
from kosine_export.families.family import BlockNames, Family

__all__ = ["DISTILBERT"]

DISTILBERT = Family(
    name="distilbert",
    model_class="DistilBertModel",
    class_prefixes={"DistilBert": "distilbert"},
    defaults={"distilbert": {**BERT_DEFAULTS, "num_hidden_layers": 6}},
    block=BlockNames(
        layer="transformer.layer.{}.",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_output="attention.out_lin",
        attention_norm="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        ffn_norm="output_layer_norm",
    ),
    keys={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    },
    layer_norm_eps=1e-12,
    has_token_types=False,
)
