"""The families that can be exported, by name and by `model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kosine_export.families.bert import BERT
from kosine_export.families.distilbert import DISTILBERT
from kosine_export.families.electra import ELECTRA
from kosine_export.families.family import Family
from kosine_export.families.gemma3 import GEMMA3
from kosine_export.families.gte import GTE
from kosine_export.families.modernbert import MODERNBERT
from kosine_export.families.mpnet import MPNET
from kosine_export.families.qwen3 import QWEN3
from kosine_export.families.roberta import ROBERTA

__all__ = ["FAMILIES", "MODEL_TYPES"]

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.name: family
        for family in (
            *(BERT, ROBERTA, DISTILBERT, ELECTRA, MPNET),
            *(MODERNBERT, GTE, QWEN3, GEMMA3),
        )
    }
)
MODEL_TYPES: Mapping[str, Family] = MappingProxyType(
    {model_type: family for family in FAMILIES.values() for model_type in family.defaults}
)
