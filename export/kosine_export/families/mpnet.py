"""MPNet: BERT's block with a table of distances that all layers add to their scores.

It has no token types, and counts positions as RoBERTa does, from 2 on, whatever pad id its config
states.
"""

from __future__ import annotations

from dataclasses import replace

from kosine.spec import Buckets
from kosine_export.families.bert import BERT_BLOCK, BERT_DEFAULTS
from kosine_export.families.family import Family

__all__ = ["MPNET"]

MPNET = Family(
    name="mpnet",
    model_class="MPNetModel",
    class_prefixes={"MPNet": "mpnet"},
    defaults={"mpnet": {**BERT_DEFAULTS, "vocab_size": 30527, "pad_token_id": 1}},
    block=replace(
        BERT_BLOCK,
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        attention_output="attention.attn.o",
        attention_norm="attention.LayerNorm",
    ),
    tokenizer_class="MPNetTokenizer",
    has_token_types=False,
    position_rule="roberta",
    pad_id=1,
    buckets=Buckets(32, 128),
)
