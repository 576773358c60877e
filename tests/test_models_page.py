"""docs/models.md is what the registry says, and each family has its row."""

from __future__ import annotations

from conftest import ROOT
from kosine_export.families.listing import SETTINGS, page
from kosine_export.families.registry import MODEL_TYPES

PAGE = ROOT / "docs" / "models.md"


def test_the_page_is_the_registry_s():
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run python -m kosine_export.families.listing > docs/models.md"
    )


def test_every_model_type_has_a_row_and_every_setting_somebody_who_refuses_it():
    text = page()
    for model_type in MODEL_TYPES:
        assert f"\n| `{model_type}` |" in text
    for name in SETTINGS:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` ")]
        assert not row.endswith("|  |"), name
