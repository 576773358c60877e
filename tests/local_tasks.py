"""Tasks of mteb on data of one's own; only `library_trials.py` imports this."""

from __future__ import annotations

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClassification, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

from recipes import LABELS, TEXTS

__all__ = ["local_tasks"]

SCORES = [float(i * 7 % 11) / 2 for i in range(len(TEXTS))]


def metadata(name, kind, score):
    return TaskMetadata(
        dataset={"path": "local", "revision": "1"},
        name=name,
        description=name,
        type=kind,
        category="t2t",
        eval_splits=["test"],
        eval_langs=["kor-Hang"],
        main_score=score,
    )


class LocalSTS(AbsTaskSTS):
    metadata = metadata("LocalSTS", "STS", "cosine_spearman")
    min_score, max_score = 0, 5

    def load_data(self, *_args, **_options):
        others = [*TEXTS[3:], *TEXTS[:3]]
        rows = {"sentence1": TEXTS, "sentence2": others, "score": SCORES}
        self.dataset = DatasetDict({"test": Dataset.from_dict(rows)})
        self.data_loaded = True


class LocalClassification(AbsTaskClassification):
    metadata = metadata("LocalClassification", "Classification", "accuracy")
    n_experiments, samples_per_label = 2, 4

    def load_data(self, *_args, **_options):
        rows = Dataset.from_dict({"text": TEXTS, "label": LABELS})
        self.dataset = DatasetDict({"train": rows, "test": rows})
        self.data_loaded = True


def local_tasks():
    return [LocalSTS(), LocalClassification()]
