"""Trials with the real libraries: `make test-libraries` runs this in environments of their own.

    python tests/library_trials.py BUNDLE CHECKPOINT OUT.json [--only NAME,...]

Each trial is tried where its library is installed, and OUT.json keeps, beside what it held before,
whether it passed and with which versions. The exit status is 1 where one failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["ANONYMIZED_TELEMETRY"] = "False"
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np

import kosine
from recipes import CHECKS, DISTRIBUTIONS, LABELS, PAGE, TEXTS, recipes

NODE_MODULES = Path(__file__).resolve().parent.parent / ".venvs" / "node" / "node_modules"
OF_NPM = ("@huggingface/transformers", "pyright")
PRINT = "console.log(JSON.stringify(vectors.tolist()));\n"
BESIDE = ("numpy", "torch", "transformers", "tokenizers", "sentence-transformers", "onnxruntime")


def embed(batch: Any, encoder: kosine.Encoder, cut: int | None) -> Any:
    return {"vector": encoder.encode(batch["text"], truncate_dim=cut)}


class Trials:
    """What is tried; a method each, its distributions in its docstring's first line."""

    def __init__(self, bundle: Path, checkpoint: Path, folder: Path) -> None:
        self.bundle, self.checkpoint, self.folder = bundle, checkpoint, folder

    def ours(self) -> kosine.Encoder:
        return kosine.load(self.bundle, backend="onnx", normalize_embeddings=False)

    def theirs(self) -> Any:
        import torch
        from sentence_transformers import SentenceTransformer

        options = {"dtype": torch.float32}
        return SentenceTransformer(str(self.checkpoint), device="cpu", model_kwargs=options)

    def recipe(self, name: str) -> None:
        encoder = kosine.load(self.bundle, backend="onnx")
        workers = 2 if name in ("LlamaIndex", "datasets") else None
        CHECKS[name](recipes()[name].run(self.folder, self.bundle, encoder, workers), encoder)

    def datasets_cache(self) -> None:
        """datasets"""
        from datasets import Dataset, load_from_disk

        Dataset.from_dict({"text": TEXTS}).save_to_disk(self.folder / "texts")
        calls = []
        for cut in (None, None, 32):
            encoder = kosine.load(self.bundle, backend="onnx")

            dataset = load_from_disk(self.folder / "texts")
            given = {"encoder": encoder, "cut": cut}
            mapped = dataset.map(embed, fn_kwargs=given, batched=True, num_proc=2)
            calls.append((mapped._fingerprint, encoder.counts()["texts"]))
            np.testing.assert_allclose(
                mapped["vector"], encoder.encode(TEXTS, truncate_dim=cut), atol=1e-6
            )
        assert calls[0][0] == calls[1][0] != calls[2][0], "the cache's key is not what computes"

    def sentence_transformers_evaluators(self) -> None:
        """sentence-transformers"""
        from sentence_transformers import evaluation

        from evaluators import evaluators

        theirs, ours = self.theirs(), self.ours()
        for name, make in evaluators(evaluation, theirs).items():
            expected, found = make()(theirs), make()(ours)
            assert found.keys() == expected.keys(), name
            for key, value in expected.items():
                assert abs(found[key] - value) <= 2e-5 + 1e-4 * abs(value), (name, key)

    def sentence_transformers_mining(self) -> None:
        """sentence-transformers datasets"""
        from datasets import Dataset
        from sentence_transformers import util

        theirs, ours = self.theirs(), self.ours()
        pairs = Dataset.from_dict({"query": TEXTS, "answer": [*TEXTS[1:], TEXTS[0]]})
        mined = []
        for model in (theirs, ours):
            cache = str(self.folder / f"cache{len(mined)}")
            mined.append(
                util.mine_hard_negatives(
                    pairs, model, num_negatives=2, verbose=False, cache_folder=cache
                ).to_dict()
            )
        assert mined[0] == mined[1]
        paraphrases = [util.paraphrase_mining(model, TEXTS) for model in (theirs, ours)]
        np.testing.assert_allclose(*([pair[0] for pair in each] for each in paraphrases), atol=1e-5)

    def setfit(self) -> None:
        """setfit sentence-transformers"""
        from setfit import SetFitModel
        from sklearn.linear_model import LogisticRegression

        found = []
        for body in (self.theirs(), self.ours()):
            model = SetFitModel(model_body=body, model_head=LogisticRegression())
            model.fit(TEXTS, LABELS, num_epochs=1)
            found.append((model.predict(TEXTS), model.predict_proba(TEXTS)))
        np.testing.assert_array_equal(*(np.asarray(each[0]) for each in found))
        np.testing.assert_allclose(*(np.asarray(each[1]) for each in found), atol=1e-4)

    def transformers_js(self) -> None:
        """@huggingface/transformers"""
        code = PAGE.read_text("utf-8").split("```js\n")[1].split("```")[0]
        (self.folder / "ko.kosine").symlink_to(self.bundle)
        (self.folder / "node_modules").symlink_to(NODE_MODULES)
        program = self.folder / "program.mjs"
        given = f"const texts = {json.dumps(TEXTS)};\n"
        program.write_text(given + code + PRINT, "utf-8")
        done = subprocess.run(
            ["node", program.name], cwd=self.folder, capture_output=True, check=True, timeout=300
        )
        found = np.array(json.loads(done.stdout))
        expected = self.ours().encode(TEXTS, normalize_embeddings=True)
        np.testing.assert_allclose(found, expected, atol=2e-5)

    def pyright(self) -> None:
        """pyright"""
        root = NODE_MODULES.parent.parent.parent
        config = {
            "typeCheckingMode": "strict",
            "extraPaths": [str(root / name) for name in ("runtime", "kernels")],
        }
        (self.folder / "pyrightconfig.json").write_text(json.dumps(config), "utf-8")
        (self.folder / "user.py").write_text((root / "tests/typed_user.py").read_text("utf-8"))
        command = [NODE_MODULES / ".bin/pyright", "--project", self.folder, self.folder / "user.py"]
        done = subprocess.run(
            [*command, "--pythonpath", sys.executable],
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout

    def mteb(self) -> None:
        """mteb sentence-transformers"""
        import mteb
        from mteb.models import SentenceTransformerEncoderWrapper

        from local_tasks import local_tasks

        scores = []
        for model in (self.theirs(), SentenceTransformerEncoderWrapper(self.ours())):
            result = mteb.evaluate(model, local_tasks(), cache=None)
            scores.append({each.task_name: each.get_score() for each in result.task_results})
        assert len(scores[0]) == len(local_tasks())
        assert scores[0].keys() == scores[1].keys()
        for name, score in scores[0].items():
            assert abs(scores[1][name] - score) <= 1e-4, (name, scores)


def trials_of(trials: Trials) -> dict[str, tuple[list[str], Callable[[], None]]]:
    found: dict[str, tuple[list[str], Callable[[], None]]] = {
        f"recipe: {name}": ([DISTRIBUTIONS[name]], lambda name=name: trials.recipe(name))
        for name in recipes()
    }
    for name in (
        *("datasets_cache", "sentence_transformers_evaluators", "sentence_transformers_mining"),
        *("setfit", "mteb", "transformers_js", "pyright"),
    ):
        method = getattr(trials, name)
        found[name.replace("_", " ")] = (method.__doc__.split(), method)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="names of trials, with commas between")
    args = parser.parse_args()
    report = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
    report |= {"date": date.today().isoformat(), "python": platform.python_version()}
    results = report.setdefault("trials", {})
    only = {name for name in args.only.split(",") if name}
    failed = []
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        os.environ["HF_HOME"] = folder
        trials = Trials(args.bundle.absolute(), args.checkpoint.absolute(), Path(folder))
        for name, (needs, trial) in trials_of(trials).items():
            if only and name not in only:
                continue
            try:
                versions = {each: version_of(each) for each in needs}
            except PackageNotFoundError:
                continue  # another environment has it
            try:
                trial()
                outcome = "passed"
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome
                traceback.print_exc()
                outcome = f"failed: {type(error).__name__}"
                failed.append(name)
            results[name] = {
                "outcome": outcome,
                "versions": versions | installed(BESIDE),
            }
            print(f"{outcome:8} {name} {versions}", flush=True)
    report["trials"] = dict(sorted(results.items()))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return 1 if failed else 0


def version_of(name: str) -> str:
    """Of a distribution, or of a package of npm."""
    if name not in OF_NPM:
        return version(name)
    try:
        return str(json.loads((NODE_MODULES / name / "package.json").read_text("utf-8"))["version"])
    except OSError:
        raise PackageNotFoundError(name) from None


def installed(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version_of(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    raise SystemExit(main())
