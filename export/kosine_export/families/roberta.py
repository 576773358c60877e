"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT's block, with positions counted from pad + 1."""

from __future__ import annotations

from kosine_export.families.bert import BERT_BLOCK, BERT_DEFAULTS
from kosine_export.families.family import Family

__all__ = ["ROBERTA"]

ROBERTA = Family(
    name="roberta",
    model_class="RobertaModel",
    class_prefixes={
        "XLMRoberta": "xlm-roberta",
        "Roberta": "roberta",
        "Camembert": "camembert",
    },
    defaults={
        "roberta": {**BERT_DEFAULTS, "vocab_size": 50265, "pad_token_id": 1},
        "xlm-roberta": {**BERT_DEFAULTS, "pad_token_id": 1},
        "camembert": {**BERT_DEFAULTS, "pad_token_id": 1},
    },
    block=BERT_BLOCK,
    tokenizer_class="RobertaTokenizer",
    tokenizer_classes={
        "xlm-roberta": "XLMRobertaTokenizer",
        "camembert": "CamembertTokenizer",
    },
    position_rule="roberta",
)
