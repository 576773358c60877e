"""ELECTRA: BERT's block, with embeddings that may be narrower and are then projected."""

from __future__ import annotations

from kosine_export.families.bert import BERT_BLOCK, BERT_DEFAULTS
from kosine_export.families.family import Family

__all__ = ["ELECTRA"]

ELECTRA = Family(
    name="electra",
    model_class="ElectraModel",
    class_prefixes={"Electra": "electra"},
    defaults={
        "electra": {
            **BERT_DEFAULTS,
            "hidden_size": 256,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
        },
    },
    block=BERT_BLOCK,
    embedding_size=128,
)
