"""The recipes of docs/libraries.md as they stand there, and what each must come to."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import kosine

PAGE = Path(__file__).resolve().parent.parent / "docs" / "libraries.md"
TEXTS = [
    f"{who} {what}"
    for who in ("한 남자가", "비행기가", "고양이가", "주가가", "한 여자가", "강아지가")
    for what in ("집에 있다.", "어제 밤에 사라졌다.", "다시 돌아왔다.", "조용히 기다린다.")
]
LABELS = [i // 4 % 2 for i in range(len(TEXTS))]


@dataclass(frozen=True)
class Recipe:
    """A section of the page: what goes into a module of its own, and how it is used."""

    name: str
    adapter: str
    use: str

    @property
    def slug(self) -> str:
        return re.sub(r"\W", "_", self.name.lower())

    def run(self, folder: Path, bundle: Path, encoder: kosine.Encoder, workers: int | None) -> Any:
        """The names that are there in the end. The adapter is a module in `folder`, so that
        other processes can import it."""
        given = {"kosine": kosine, "encoder": encoder, "bundle": str(bundle), "texts": TEXTS}
        names: dict[str, Any] = {**given, "labels": LABELS, "workers": workers}
        if self.adapter:
            module = f"recipe_{self.slug}"
            (folder / f"{module}.py").write_text(self.adapter, "utf-8")
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
            importlib.invalidate_caches()
            names |= {
                name: value
                for name, value in vars(importlib.import_module(module)).items()
                if not name.startswith("__")
            }
        exec(compile(self.use, f"{PAGE.name}: {self.name}", "exec"), names)
        return names


def recipes() -> dict[str, Recipe]:
    found = {}
    for section in re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.M)[1:]:
        parts = dict(
            re.findall(r"<!-- (adapter|use) -->\n```python\n(.*?)^```", section, re.M | re.S)
        )
        if parts:
            name = section.partition("\n")[0]
            found[name] = Recipe(name, parts.get("adapter", ""), parts["use"])
    return found


# What must come out, by the names that the recipes leave behind.


def _keywords(names: Any, encoder: kosine.Encoder) -> None:
    words = [word for word, _ in names["keywords"]]
    assert len(words) == 3
    expected = kosine.cosine(encoder.encode([TEXTS[0]]), encoder.encode(words))[0]
    np.testing.assert_allclose([score for _, score in names["keywords"]], expected, atol=1e-3)


def _topics(names: Any, encoder: kosine.Encoder) -> None:
    assert len(names["topics"]) == len(TEXTS)
    assert len(set(names["topics"])) == 3
    assert encoder.counts()["texts"] >= len(TEXTS)


def _best(names: Any, encoder: kosine.Encoder) -> None:
    del encoder
    assert names["best"] == TEXTS[1]


def _nodes(names: Any, encoder: kosine.Encoder) -> None:
    assert [node.text for node in names["nodes"]] == TEXTS
    found = [node.embedding for node in names["nodes"]]
    np.testing.assert_allclose(found, encoder.encode_document(TEXTS), atol=1e-6)


def _grid(names: Any, encoder: kosine.Encoder) -> None:
    import pickle

    del encoder
    search = names["search"]
    assert len(search.cv_results_["params"]) == 4
    assert not np.isnan(search.cv_results_["mean_test_score"]).any()
    assert search.score(TEXTS, LABELS) == 1
    stored = pickle.dumps(search.best_estimator_)
    assert len(stored) < 50_000, "the weights came along"
    again = pickle.loads(stored)
    np.testing.assert_array_equal(again.predict(TEXTS), search.predict(TEXTS))


def _dataset(names: Any, encoder: kosine.Encoder) -> None:
    np.testing.assert_allclose(names["dataset"]["vector"], encoder.encode(TEXTS), atol=1e-6)


def _ids(names: Any, encoder: kosine.Encoder) -> None:
    del encoder
    assert names["best"] == [1, 1]


CHECKS = {
    "KeyBERT": _keywords,
    "BERTopic": _topics,
    "LangChain": _best,
    "LlamaIndex": _nodes,
    "Haystack": _best,
    "Chroma": _best,
    "scikit-learn": _grid,
    "datasets": _dataset,
    "qdrant": _ids,
    "usearch": _ids,
}
DISTRIBUTIONS = {
    "KeyBERT": "keybert",
    "BERTopic": "bertopic",
    "LangChain": "langchain-core",
    "LlamaIndex": "llama-index-core",
    "Haystack": "haystack-ai",
    "Chroma": "chromadb",
    "scikit-learn": "scikit-learn",
    "datasets": "datasets",
    "qdrant": "qdrant-client",
    "usearch": "usearch",
}
