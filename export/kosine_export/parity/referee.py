"""PyTorch as the referee: `SentenceTransformer.encode` itself, in float32.

Attention is transformers' eager one, the plainest; texts of more than 512 tokens take PyTorch's
scaled dot product, which holds no (heads, S, S) scores: 10 GB at 8,192 tokens in a base encoder.
Nothing of kosine's own reading of a checkpoint takes part, so no misreading of ours can sit on
both sides of a comparison. An adapter is applied by peft to the base model.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from kosine.errors import CheckpointError, MissingExtra
from kosine.packed import Float32
from kosine_export.checkpoint.location import locate
from kosine_export.families.registry import MODEL_TYPES
from kosine_export.files.folder import read_object

__all__ = ["Referee", "missing_packages"]

PACKAGES = ("sentence_transformers", "transformers", "torch")
EAGER_TOKENS = 512
WEIGHT_FILES = ("model.", "model-", "pytorch_model", "adapter_model")
# Classes that a tokenizer may have been read as instead of its own, and a model type that
# AutoTokenizer takes each for; ModernBERT has the generic class in transformers 4 and 5.
TOKENIZER_TYPES = {
    "BertTokenizer": "bert",
    "RobertaTokenizer": "roberta",
    "MPNetTokenizer": "mpnet",
    "PreTrainedTokenizerFast": "modernbert",
}


def missing_packages(*, adapter: bool = False, model_type: str | None = None) -> tuple[str, ...]:
    """What the referee needs and this machine lacks, by the names that pip knows.

    Args:
        adapter: Whether the checkpoint is an adapter, which peft applies to its base.
        model_type: The checkpoint's. Of one that brings its own Python, transformers must have
            the class.
    """
    needed = (*PACKAGES, "peft") if adapter else PACKAGES
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    family = MODEL_TYPES.get(model_type or "")
    if not absent and family and family.code_classes:
        absent = (
            [] if family.name in _known_types() else [f"transformers with {family.model_class}"]
        )
    return tuple(name.replace("_", "-") for name in absent)


class Referee:
    """The checkpoint as sentence-transformers runs it.

    Args:
        checkpoint: Local folder or hub id.
        base: The adapter's base model, where the checkpoint is an adapter.
        max_tokens: Overrides the checkpoint's own limit, where the export did.
        pooling: The mode, where the export was given one that the checkpoint does not state.
        allow_pickle: Whether `pytorch_model.bin` may be read (transformers loads it with
            `weights_only=True`).
        tokenizer: What the export found of the tokenizer, `source["tokenizer"]` of a manifest:
            where its class does not fit its files, transformers is told the one that does.

    Raises:
        MissingExtra: The `torch` extra is not installed.
        CheckpointError: sentence-transformers cannot load the checkpoint.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        base: str | Path | None = None,
        revision: str | None = None,
        max_tokens: int | None = None,
        pooling: str | None = None,
        allow_pickle: bool = False,
        tokenizer: Mapping[str, Any] | None = None,
    ) -> None:
        missing = missing_packages(adapter=base is not None)
        if missing:
            raise MissingExtra(
                f"parity is measured against sentence-transformers, and {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not installed",
                remedy="pip install 'kosine[torch]'",
            )
        # Without it tokenizers warns about forks that happen later, in other people's code.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self._model = _load(checkpoint, base, revision, allow_pickle, tokenizer or {})
                if pooling is not None:
                    _pool_by(self._model, pooling)
            except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as error:
                reason = (str(error).splitlines() or [""])[0][:160]
                raise CheckpointError(
                    f"sentence-transformers cannot load {str(checkpoint)!r}: "
                    f"{type(error).__name__}: {reason}",
                    remedy="check that SentenceTransformer(...) loads it in this environment",
                ) from error
        if self._model.tokenizer.pad_token is None:
            # Texts go one by one and nothing is padded; transformers wants a token all the same.
            self._model.tokenizer.pad_token = self._model.tokenizer.convert_ids_to_tokens(0)
        self._model.max_seq_length = max_tokens or _usable_length(self._model)
        self.max_tokens = int(self._model.max_seq_length)
        self._attention = "eager"
        self._transformer = next(
            (m for m in self._model.modules() if hasattr(m, "set_attn_implementation")), None
        )
        self._vectors: dict[tuple[str, str, bool], Float32] = {}
        self.versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)

    def encode(self, texts: Sequence[str], prompt: str = "", *, normalize: bool = True) -> Float32:
        """(n, dim) float32; every text by itself, so that no padding is involved.

        Vectors are kept: each dtype of an export is held against the same ones.
        """
        missing = [
            text for text in dict.fromkeys(texts) if (text, prompt, normalize) not in self._vectors
        ]
        if missing:
            lengths = [len(ids) for ids in self.ids(missing, prompt)]
            for text, length in zip(missing, lengths, strict=True):
                self._attend("eager" if length <= EAGER_TOKENS else "sdpa")
                (vector,) = self._model.encode(
                    [text],
                    prompt=prompt,
                    batch_size=1,
                    show_progress_bar=False,
                    normalize_embeddings=normalize,
                )
                self._vectors[text, prompt, normalize] = np.asarray(vector, np.float32)
        return np.stack([self._vectors[text, prompt, normalize] for text in texts])

    def ids(self, texts: Sequence[str], prompt: str = "") -> list[list[int]]:
        """Token ids as sentence-transformers feeds them, one text at a time."""
        tokenize = getattr(self._model, "preprocess", None) or self._model.tokenize
        return [tokenize([prompt + text])["input_ids"][0].tolist() for text in texts]

    def _attend(self, attention: str) -> None:
        """Choose the attention of the next call; a transformers without the choice stays eager."""
        if self._transformer is not None and attention != self._attention:
            self._transformer.set_attn_implementation(attention)
            self._attention = attention

    @property
    def tokenizer_class(self) -> str:
        """The class that transformers made of the tokenizer's files."""
        return type(self._model.tokenizer).__name__

    def prompt_of(self, name: str) -> str | None:
        """The checkpoint's own prompt of that name."""
        prompt = self._model.prompts.get(name)
        return None if prompt is None else str(prompt)


def _usable_length(model: Any) -> int:
    """The model's own limit, kept to the position rows that it really has.

    sentence-transformers takes RoBERTa's 514 rows for 514 tokens where the tokenizer states no
    limit, and then fails on a text of 513: two rows lie before the first token.
    """
    length = int(model.max_seq_length)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings"):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            length = min(length, module.num_embeddings - first)
    return length


def _pool_by(model: Any, mode: str) -> None:
    """Put a Pooling module of that mode in the place of the one that was assumed."""
    for name, module in list(model.named_children()):
        if type(module).__name__ == "Pooling":
            width = module.pooling_output_dimension
            chosen = type(module)(width, pooling_mode=mode, include_prompt=module.include_prompt)
            setattr(model, name, chosen)


def _load(
    checkpoint: str | Path,
    base: str | Path | None,
    revision: str | None,
    allow_pickle: bool,
    tokenizer: Mapping[str, Any],
) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    options: dict[str, Any] = {
        "device": "cpu",
        "trust_remote_code": False,
        "model_kwargs": {
            "torch_dtype": torch.float32,
            "attn_implementation": "eager",
            **({} if allow_pickle else {"use_safetensors": True}),
        },
    }
    read_as = tokenizer.get("read_as")
    told: dict[str, Any] = {}
    if read_as != tokenizer.get("class") and read_as in TOKENIZER_TYPES:
        told["tokenizer_type"] = TOKENIZER_TYPES[read_as]
    if isinstance(tokenizer.get("do_lower_case"), bool):
        told["do_lower_case"] = tokenizer["do_lower_case"]
    if told:
        options["tokenizer_kwargs"] = told
    if base is None:
        located = locate(checkpoint, revision=revision, allow_pickle=allow_pickle)
        with _as_transformers(located.folder) as folder:
            return SentenceTransformer(str(folder), **options).float().eval()
    with tempfile.TemporaryDirectory() as folder:
        adapter = locate(checkpoint, revision=revision, allow_pickle=allow_pickle)
        own = locate(base, allow_pickle=allow_pickle)
        _overlay(adapter.folder, own.folder, Path(folder))
        model = SentenceTransformer(folder, **options)
    return model.float().eval()


@contextmanager
def _as_transformers(folder: Path) -> Iterator[Path]:
    """The folder; or links to its files with config.json as transformers' own class spells it,
    where the checkpoint's would have its own Python run.
    """
    named = ("config.json", "0_Transformer/config.json")
    name = next((name for name in named if (folder / name).is_file()), None)
    config = {} if name is None else read_object(folder / name)
    family = MODEL_TYPES.get(str(config.get("model_type")))
    spell = family.as_transformers if family else None
    if name is None or spell is None or config["model_type"] in _known_types():
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / folder.name
        shutil.copytree(folder.absolute(), copy, copy_function=os.symlink)
        (copy / name).unlink()
        (copy / name).write_text(json.dumps(spell(config)), encoding="utf-8")
        yield copy


def _known_types() -> Container[str]:
    from transformers import CONFIG_MAPPING

    return set(CONFIG_MAPPING)


def _overlay(adapter: Path, base: Path, folder: Path) -> None:
    """An adapter folder as sentence-transformers loads it: with its base beside it on disk.

    The adapter's own files win; the tokenizer, modules and prompts that it leaves out are the
    base's. Which base it names by hub id is replaced by where that base lies here.
    """
    transformer = base / "0_Transformer" if (base / "0_Transformer").is_dir() else base
    for source in (base, transformer, adapter):
        for path in source.iterdir():
            target = folder / path.name
            if path.name == "config.json" or path.name.startswith(WEIGHT_FILES):
                continue
            if path.is_dir():
                if not path.name.endswith("Transformer"):
                    shutil.copytree(path, target, dirs_exist_ok=True)
            else:
                shutil.copyfile(path, target)
    for path in adapter.glob("adapter_model.*"):
        shutil.copyfile(path, folder / path.name)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(transformer)
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    modules = folder / "modules.json"
    if modules.is_file():
        entries = json.loads(modules.read_text(encoding="utf-8"))
        for entry in entries:
            if entry["path"].endswith("Transformer"):
                entry["path"] = ""
        modules.write_text(json.dumps(entries), encoding="utf-8")
