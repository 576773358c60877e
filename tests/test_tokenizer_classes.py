"""A tokenizer's class and its files: which is followed, with PyTorch and without."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import factories
import kosine
import kosine_export.export as export_module
from kosine.bundle.canary import compare
from kosine.errors import CorruptCheckpoint, ParityError, TextError, UnsupportedCheckpoint
from kosine_export.export import Exported, export
from kosine_export.parity import token_ids
from kosine_export.parity.referee import TOKENIZER_TYPES, Referee
from kosine_export.parity.token_ids import kind_of
from kosine_export.texts import canary_texts, tokenizer_texts
from kosine_export.tokenizer.reader import TokenizerFiles, read_tokenizer
from test_tokenizer_files import edit_json

# Drawn from what tokenizers treat in a way of its own: blanks, forms, scripts, markup.
ODD = [
    *"가나한국어 abcÄéÌßİǅ .,!?'\"[]<>#▁_0129漢字カ゛がﾊＸ①½ﬁ🐶𠮷กสวัمرحбЁ",
    *"\u00a0\u3000\u2028\u0085\t\n\r\ufeff\u200b\u200d\u00ad\u0301\u3099\u1112\u1161\u11ab\x07",
    *("[SEP]", "[MASK]", "[CLS]", "<s>", "</s>", "<mask>", "<pad>", "<unk>", "  ", " ", "한국어"),
]


def odd_texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    drawn = ["".join(rng.choices(ODD, k=rng.randint(1, 30))) for _ in range(count)]
    return [*canary_texts(), *tokenizer_texts(), *drawn]


def write(folder: Path, kind: str, model_type: str, name: str | None) -> dict[str, Any]:
    """Tokenizer files beside a config.json; "metaspace" is Unigram without WhitespaceSplit."""
    settings = {"tokenizer_class": name}
    if kind == "wordpiece":
        size = factories.write_wordpiece(folder, factories.BERT_SPECIALS, settings=settings)
    elif kind == "byte-level":
        size = factories.write_byte_level(folder, settings=settings)
    else:
        size = factories.write_unigram(folder, settings=settings)
    if kind == "metaspace":
        edit_json(folder / "tokenizer.json", metaspace_alone)
    config = factories.transformers_config(model_type, size)
    factories.write_json(folder / "config.json", config)
    return config


def metaspace_alone(value: dict[str, Any]) -> None:
    value["pre_tokenizer"] = value["pre_tokenizer"]["pretokenizers"][1]


def read(folder: Path, config: dict[str, Any]) -> TokenizerFiles:
    family = config["model_type"]
    return read_tokenizer(
        folder, family="roberta" if "roberta" in family else family, config=config
    )


FITS = {
    "wordpiece": ("BertTokenizer",),
    "byte-level": ("RobertaTokenizerFast",),
    "unigram": ("XLMRobertaTokenizer", "CamembertTokenizer"),
    "metaspace": ("XLMRobertaTokenizerFast", "CamembertTokenizer"),
}
GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("kind", FITS)
def test_ids_of_odd_texts_are_those_of_transformers(
    kind: str, model_type: str, tmp_path: Path
) -> None:
    """By itself where the class fits its files; told the class that fits where it does not."""
    transformers = pytest.importorskip("transformers", reason="the referee is absent")
    texts = odd_texts(300, seed=len(kind) + len(model_type))
    names = (None, "BertTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer")
    for name in dict.fromkeys((*names, *FITS[kind], *GENERIC)):
        folder = tmp_path / str(name)
        config = write(folder, kind, model_type, name)
        files = read(folder, config)
        found = files.source
        assert found["stated"] == (name is not None)
        assumed = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}
        wanted = (name or f"{assumed[model_type]}Tokenizer").removesuffix("Fast")
        fits = any(wanted == each.removesuffix("Fast") for each in (*FITS[kind], *GENERIC))
        told = {}
        if not fits:
            assert found["read_as"] == "PreTrainedTokenizerFast"
            assert any("does not fit" in note for note in files.notes)
            told["tokenizer_type"] = TOKENIZER_TYPES[found["read_as"]]
        else:
            assert found["read_as"] == found["class"]
        theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, **told)
        mine = Tokenizer.from_str(files.json)
        assert [mine.encode(t).ids for t in texts] == [theirs(t)["input_ids"] for t in texts], name


def test_the_manifest_says_that_transformers_4_gives_other_ids(tmp_path: Path) -> None:
    for kind in ("unigram", "metaspace"):
        files = read(tmp_path / kind, write(tmp_path / kind, kind, "bert", "XLMRobertaTokenizer"))
        other = files.source["other_ids_in_4"]
        assert (other > 0) == (kind == "metaspace")
        assert (f"gives other ids to {other} of" in " ".join(files.notes)) == (other > 0)
        assert files.source["transformers"] == "5"


@pytest.mark.parametrize("name", ["AlbertTokenizer", "T5Tokenizer", "BartTokenizer", "KoBert"])
def test_other_classes_are_refused_by_name(name: str, tmp_path: Path) -> None:
    config = write(tmp_path, "unigram", "bert", name)
    with pytest.raises(UnsupportedCheckpoint, match=f"'{name}'.*state PreTrainedTokenizerFast"):
        read(tmp_path, config)


# Whole exports, with PyTorch and without


def both_ways(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Exported, Exported]:
    """Exports with the referee and without, which must read the same tokenizer."""
    with_torch = export(checkpoint, folder / "with.kosine")
    monkeypatch.setattr(export_module, "missing_packages", lambda **_: ("torch",))
    without = export(checkpoint, folder / "without.kosine")
    for name in ("tokenizer.json", "weights.safetensors", "packed.onnx"):
        assert with_torch.manifest.files()[name] == without.manifest.files()[name]
    assert with_torch.manifest.special_ids == without.manifest.special_ids
    assert with_torch.notes == without.notes
    parity = with_torch.manifest.parity
    assert parity is not None
    assert parity["passed"]
    assert parity["ids_equal"] == parity["texts"]
    assert without.manifest.parity is None
    return with_torch, without


@pytest.mark.parametrize(
    ("family", "tokenizer", "name"),
    [
        ("bert", "metaspace", "XLMRobertaTokenizer"),
        ("xlm-roberta", "metaspace", None),
        ("bert", "unigram", None),
        ("bert", "metaspace", "BertTokenizer"),
        ("roberta", "unigram", None),
        ("roberta", "unigram", "RobertaTokenizer"),
        ("roberta", "wordpiece", None),
    ],
)
def test_the_same_bundle_with_pytorch_and_without(
    family: str,
    tokenizer: str,
    name: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = factories.build(
        tmp_path / "checkpoint",
        family=family,
        tokenizer="unigram" if tokenizer == "metaspace" else tokenizer,
        tokenizer_settings={"tokenizer_class": name},
        sizes={"pad_token_id": 1},
        generation="bare",
    )
    if tokenizer == "metaspace":
        edit_json(checkpoint / "tokenizer.json", metaspace_alone)
    found = both_ways(checkpoint, tmp_path, monkeypatch)[0].manifest.source["tokenizer"]
    assert found["same_ids"]["texts"] > 80
    assert "transformers" in found["same_ids"]["referee"]


def test_a_missing_do_lower_case_is_settled_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = factories.build(
        tmp_path / "checkpoint", tokenizer_settings={"do_lower_case": None}
    )
    done, _ = both_ways(checkpoint, tmp_path, monkeypatch)
    assert done.manifest.source["tokenizer"]["do_lower_case"] is False


def test_a_generic_class_needs_to_name_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cls and sep are the post-processor's; no unk; no pad, for which the model's own stands."""
    checkpoint = factories.build(tmp_path / "checkpoint", family="roberta", generation="bare")
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (checkpoint / name).unlink()
    factories.write_json(
        checkpoint / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}
    )
    done, _ = both_ways(checkpoint, tmp_path, monkeypatch)
    assert done.manifest.special_ids == {"cls": 0, "sep": 2, "pad": 1}
    encoder = kosine.load(done.path, backend="onnx")
    prepared = encoder.prepare(["가나 <unk> \u0d0b"])
    assert prepared.unknown == 0
    texts = ["가나 abc", "", "끝 "]
    assert compare(encoder.encode(texts), Referee(checkpoint).encode(texts)).min_cosine > 0.999999


def test_merges_with_windows_line_ends_are_read(tmp_path: Path) -> None:
    config = write(tmp_path, "byte-level", "roberta", "RobertaTokenizer")
    (tmp_path / "tokenizer.json").unlink()
    before = read(tmp_path, config)
    for name in ("merges.txt", "vocab.json"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data.replace(b"\n", b"\r\n"))
    assert read(tmp_path, config).json == before.json
    transformers = pytest.importorskip("transformers", reason="the referee is absent")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    mine = Tokenizer.from_str(before.json)
    for text in odd_texts(50, seed=0):
        assert mine.encode(text).ids == theirs(text)["input_ids"]
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n", encoding="utf-8")
    with pytest.raises(CorruptCheckpoint, match="not two pieces"):
        read(tmp_path, config)


def test_ids_beyond_the_embeddings_are_exported_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = factories.build(tmp_path / "checkpoint", generation="bare")
    size = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    unused = {**factories.added_token(size, "<unused>"), "special": False}
    edit_json(checkpoint / "tokenizer.json", lambda d: d["added_tokens"].append(unused))
    del (unused := dict(unused))["id"]
    edit_json(
        checkpoint / "tokenizer_config.json",
        lambda d: d["added_tokens_decoder"].update({str(size): unused}),
    )
    done, _ = both_ways(checkpoint, tmp_path, monkeypatch)
    assert any(f"ids up to {size} and the model {size} word" in note for note in done.notes)
    encoder = kosine.load(done.path, backend="onnx")
    assert len(encoder.encode(["한국어"])) == 1
    with pytest.raises(TextError, match=f"text 1 has the token id {size}"):
        encoder.encode(["한국어", "한국어 <unused>"])


def test_a_mask_without_an_embedding_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers gives it an id that the model has no row for; here it stays plain text."""
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    checkpoint = factories.build(tmp_path / "checkpoint", specials=specials, generation="bare")
    done, _ = both_ways(checkpoint, tmp_path, monkeypatch)
    assert "mask" not in done.manifest.special_ids
    assert len(kosine.load(done.path, backend="onnx").encode(["한국어 [MASK]"])) == 1


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    checkpoint = factories.build(tmp_path / "checkpoint", generation="bare")
    edit_json(
        checkpoint / "tokenizer.json",
        lambda d: d["model"].update(
            vocab={token: i if i < 5 else i + 100_000 for token, i in d["model"]["vocab"].items()}
        ),
    )
    with pytest.raises(CorruptCheckpoint, match=r"probe texts have token ids beyond the \d+ word"):
        export(checkpoint, tmp_path / "out.kosine")
    assert not (tmp_path / "out.kosine").exists()


# Ids first


def test_other_ids_are_said_before_any_vector_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the tokenizer of transformers 4, against the referee's."""
    checkpoint = factories.build(tmp_path / "checkpoint", family="xlm-roberta", generation="bare")
    edit_json(checkpoint / "tokenizer.json", metaspace_alone)
    own = export_module.read_checkpoint

    def by_file(*args: object, **options: object) -> object:
        found = own(*args, **options)
        text = (checkpoint / "tokenizer.json").read_text(encoding="utf-8")
        return dataclasses.replace(found, tokenizer_json=text)

    monkeypatch.setattr(export_module, "read_checkpoint", by_file)
    monkeypatch.setattr(Referee, "encode", None)
    with pytest.raises(ParityError) as caught:
        export(checkpoint, tmp_path / "out.kosine")
    message = str(caught.value)
    assert "token ids are not PyTorch's in" in message
    assert "(blank)" in message
    assert "class XLMRobertaTokenizer (stated)" in message
    assert "XLMRobertaTokenizer in sentence_transformers" in message
    assert "no bundle was written; report" in message
    assert "kosine verify" not in message
    assert not any(text in message for text in canary_texts() if len(text) > 3)
    assert not (tmp_path / "out.kosine").exists()

    monkeypatch.setattr(token_ids, "version", lambda _name: "4.57.6")
    with pytest.raises(ParityError, match="the rules are those of transformers 5: install that"):
        export(checkpoint, tmp_path / "out.kosine")


def test_a_canary_that_fails_at_export_names_no_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = factories.build(tmp_path / "checkpoint")

    def fails(*_args: object) -> None:
        raise ParityError("fails the canary", remedy="run `kosine verify` on the bundle")

    monkeypatch.setattr("kosine_export.assembly.check_canary", fails)
    with pytest.raises(ParityError, match="no bundle was written") as caught:
        export(checkpoint, tmp_path / "out.kosine")
    assert "kosine verify" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "blank"),
        (" \n\u3000", "blank"),
        ("끝 ", "blank at an end"),
        ("a [SEP] b", "special tokens"),
        ("a <mask>", "special tokens"),
        ("a\nb", "line break or tab"),
        ("a  b", "several blanks"),
        ("e\u0301", "decomposed letters"),
        ("a\u200bb", "control or format characters"),
        ("ＡＢ", "wide or compatible forms"),
        ("🙂", "beyond U+FFFF"),
        ("가" * 1001, "long"),
        ("평범한 문장", "plain"),
    ],
)
def test_texts_are_named_by_kind(text: str, kind: str) -> None:
    assert kind_of(text) == kind
