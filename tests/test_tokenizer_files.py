"""Tokenizer files of every kind, against transformers' own classes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import factories
from kosine.errors import CorruptCheckpoint, UnsupportedCheckpoint
from kosine_export.tokenizer.reader import read_tokenizer

TOKENIZERS = Path(__file__).parent.parent.parent / "shared" / "tokenizers"
TEXTS = [*factories.TRICKY_TEXTS, "The QUICK Brown 문장 안녕 Réact ÀÉÎ", "ss ß İ ﬁ"]


def write(folder, kind="wordpiece", specials=factories.BERT_SPECIALS, family="bert", **options):
    """Tokenizer files beside the config.json that transformers picks the class by."""
    if kind in ("wordpiece", "vocab.txt"):
        size = factories.write_wordpiece(
            folder, specials, vocab_only=kind == "vocab.txt", **options
        )
    elif kind in ("byte-level", "vocab.json"):
        size = factories.write_byte_level(folder, vocab_only=kind == "vocab.json", **options)
    else:
        size = factories.write_unigram(folder, **options)
    config = factories.transformers_config(family, size)
    factories.write_json(folder / "config.json", config)
    return config


def read(folder, family="bert", **options):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return read_tokenizer(
        folder, family="roberta" if family == "xlm-roberta" else family, config=config, **options
    )


def ids(files, texts=TEXTS):
    tokenizer = Tokenizer.from_str(files.json)
    return [tokenizer.encode(text).ids for text in texts]


def transformers_ids(folder, texts=TEXTS):
    pytest.importorskip("transformers", reason="the referee, kosine[torch], is absent")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return [tokenizer(text)["input_ids"] for text in texts]


LOWER = {"do_lower_case": True}
SAME_AS_TRANSFORMERS = {
    "bert": {},
    "bert, KLUE order": {"specials": factories.KLUE_SPECIALS},
    "bert, vocab.txt": {"kind": "vocab.txt"},
    "bert, lower case": {"lowercase": True},
    "bert, vocab.txt, lower case": {"kind": "vocab.txt", "lowercase": True},
    "bert, the config lower-cases, the file does not": {"settings": LOWER},
    "bert, the file lower-cases, the config does not": {
        "lowercase": True,
        "settings": {"do_lower_case": False},
    },
    "bert, lower case, accents kept": {"settings": {**LOWER, "strip_accents": False}},
    "bert, accents stripped, case kept": {"settings": {"strip_accents": True}},
    "bert, no spaces around Chinese": {"settings": {"tokenize_chinese_chars": False}},
    "bert, fast class": {"settings": {"tokenizer_class": "BertTokenizerFast"}},
    "bert, class unstated": {"settings": {"tokenizer_class": None}},
    "bert, generic class": {"settings": {"tokenizer_class": "PreTrainedTokenizerFast"}},
    "bert, generic class ignores do_lower_case": {
        "settings": {**LOWER, "tokenizer_class": "PreTrainedTokenizerFast"}
    },
    "bert, extra special token": {"settings": {"additional_special_tokens": ["가", "한국"]}},
    "distilbert": {"family": "distilbert", "settings": {"tokenizer_class": "DistilBertTokenizer"}},
    "electra": {"family": "electra", "settings": {"tokenizer_class": "ElectraTokenizer"}},
    "roberta, WordPiece": {"family": "roberta", "specials": factories.KLUE_SPECIALS},
    "roberta": {"family": "roberta", "kind": "byte-level"},
    "roberta, vocab.json": {"family": "roberta", "kind": "vocab.json"},
    "bert, no added tokens in the config": {"settings": {"added_tokens_decoder": {}}},
    "generic, flags of an added token in the config": {
        "settings": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "added_tokens_decoder": {
                "4": {**factories.added_token(0, "[MASK]"), "lstrip": True, "id": None}
            },
        }
    },
    "roberta, prefix space": {
        "family": "roberta",
        "kind": "byte-level",
        "settings": {"add_prefix_space": True},
    },
    "xlm-roberta": {"family": "xlm-roberta", "kind": "unigram"},
}


@pytest.mark.parametrize("case", SAME_AS_TRANSFORMERS)
def test_ids_equal_those_of_the_transformers_class(case, tmp_path):
    options = dict(SAME_AS_TRANSFORMERS[case])
    config = write(tmp_path, **options)
    files = read(tmp_path, config["model_type"])
    assert ids(files) == transformers_ids(tmp_path)


@pytest.mark.parametrize("kind", ["wordpiece", "vocab.txt", "byte-level", "vocab.json", "unigram"])
def test_nothing_truncates_or_pads_and_cls_and_sep_are_added(kind, tmp_path):
    family = {"byte-level": "roberta", "vocab.json": "roberta", "unigram": "xlm-roberta"}.get(kind)
    config = write(tmp_path, kind, family=family or "bert")
    files = read(tmp_path, config["model_type"])
    data = json.loads(files.json)
    assert data["truncation"] is None
    assert data["padding"] is None
    short, long = ids(files, ["", "문장 " * 300])
    assert short == [files.special_ids["cls"], files.special_ids["sep"]]
    assert len(long) > 300
    assert long[0] == short[0]
    assert long[-1] == short[1]
    assert files.size == config["vocab_size"]


def test_special_ids_follow_the_vocabulary_s_order(tmp_path):
    write(tmp_path / "klue", specials=factories.KLUE_SPECIALS)
    write(tmp_path / "krsbert", "vocab.txt")
    expected = {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 4}
    assert read(tmp_path / "klue").special_ids == expected
    expected = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert read(tmp_path / "krsbert").special_ids == expected


@pytest.mark.parametrize("kind", ["wordpiece", "vocab.txt"])
def test_a_missing_do_lower_case_never_loses_hangul_in_silence(kind, tmp_path):
    write(tmp_path / "stated", kind)
    write(tmp_path / "missing", kind, settings={"do_lower_case": None})
    files = read(tmp_path / "missing")
    assert ids(files) == ids(read(tmp_path / "stated"))
    assert any("do_lower_case is not stated: false" in note for note in files.notes)
    korean = TEXTS.index("한국어 문장 임베딩")
    # The class's own default is what this protects from.
    assert files.special_ids["unk"] in transformers_ids(tmp_path / "missing")[korean]


def test_a_missing_do_lower_case_is_the_class_s_true_where_no_hangul_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(factories, "sample_pieces", lambda: [*"abcdefghij", "##a", "##b"])
    for kind in ("wordpiece", "vocab.txt"):
        write(tmp_path / kind, kind, settings={"do_lower_case": None})
        files = read(tmp_path / kind)
        assert ids(files, ["AB a É"]) == transformers_ids(tmp_path / kind, ["AB a É"])
        assert ids(files, ["AB"]) == ids(files, ["ab"])


def test_a_vocabulary_that_spells_jamo_may_be_lower_cased(tmp_path, monkeypatch):
    jamo = [chr(code) for code in (*range(0x1100, 0x1113), *range(0x1161, 0x11C3))]
    pieces = ["가", *jamo, *(f"##{character}" for character in jamo)]
    monkeypatch.setattr(factories, "sample_pieces", lambda: pieces)
    write(tmp_path, settings={"do_lower_case": None})
    files = read(tmp_path)
    assert ids(files, ["한국"]) == transformers_ids(tmp_path, ["한국"])
    assert files.special_ids["unk"] not in ids(files, ["한국"])[0]


def test_a_stated_do_lower_case_that_loses_hangul_is_followed_and_noted(tmp_path):
    write(tmp_path, lowercase=True)
    assert any("decomposes Hangul" in note for note in read(tmp_path).notes)


@pytest.mark.parametrize("kind", ["wordpiece", "vocab.txt"])
def test_roberta_with_a_wordpiece_vocabulary_needs_no_stated_class(kind, tmp_path):
    klue = {"specials": factories.KLUE_SPECIALS, "family": "roberta"}
    write(tmp_path / "stated", kind, settings={"tokenizer_class": "BertTokenizer"}, **klue)
    write(tmp_path / "silent", kind, settings={"tokenizer_class": None}, **klue)
    files = read(tmp_path / "silent", "roberta")
    assert ids(files) == ids(read(tmp_path / "stated", "roberta"))
    assert ids(files) == transformers_ids(tmp_path / "stated")
    assert any("wordpiece" in note for note in files.notes)
    # Left to itself, transformers takes a byte-level class here and loses every word.
    assert ids(files) != transformers_ids(tmp_path / "silent")


def test_the_class_may_be_stated_in_config_json(tmp_path):
    klue = {"specials": factories.KLUE_SPECIALS, "family": "roberta"}
    config = write(tmp_path, settings={"tokenizer_class": None}, **klue)
    factories.write_json(tmp_path / "config.json", {**config, "tokenizer_class": "BertTokenizer"})
    files = read(tmp_path, "roberta")
    assert ids(files) == transformers_ids(tmp_path)
    assert files.notes == ()


@pytest.mark.parametrize("kind", ["wordpiece", "vocab.txt"])
def test_lower_text_comes_before_everything_else(kind, tmp_path):
    write(tmp_path, kind)
    lowered, plain = read(tmp_path, lower_text=True), read(tmp_path)
    assert (lowered.lowers, plain.lowers) == (True, False)
    # Special tokens are cut out before any normalizer, so those are not lower-cased.
    texts = [text for text in TEXTS if "[CLS]" not in text]
    assert ids(lowered, texts) == ids(plain, [text.lower() for text in texts])
    assert ids(lowered, ["REACT"]) != ids(plain, ["REACT"])


def test_a_lowercase_step_in_the_file_is_kept_where_the_file_is_followed(tmp_path):
    write(tmp_path / "plain")
    lowered = read(tmp_path / "plain", lower_text=True)
    for name in ("BertTokenizer", "PreTrainedTokenizerFast"):
        folder = tmp_path / name
        write(folder, settings={"tokenizer_class": name})
        (folder / "tokenizer.json").write_text(lowered.json, encoding="utf-8")
        files = read(folder)
        assert ids(files) == transformers_ids(folder)
        assert files.lowers == (name == "PreTrainedTokenizerFast")
        again = read(folder, lower_text=True)
        assert ids(again) == ids(lowered)
    assert json.loads(again.json)["normalizer"] == json.loads(files.json)["normalizer"]


def test_added_tokens_json_of_old_checkpoints_is_read(tmp_path):
    config = write(tmp_path, "vocab.txt")
    (tmp_path / "added_tokens.json").write_text(
        json.dumps({"<new>": config["vocab_size"]}), encoding="utf-8"
    )
    files = read(tmp_path)
    assert files.size == config["vocab_size"] + 1
    assert ids(files, ["문장 <new>"]) == transformers_ids(tmp_path, ["문장 <new>"])
    assert config["vocab_size"] in ids(files, ["문장 <new>"])[0]


def test_the_stated_length_is_read(tmp_path):
    write(tmp_path / "a", settings={"model_max_length": 77})
    assert read(tmp_path / "a").model_max_length == 77
    write(tmp_path / "b", settings={"model_max_length": int(1e30)})
    assert read(tmp_path / "b").model_max_length is None
    write(tmp_path / "c", settings={"max_len": 99})
    assert read(tmp_path / "c").model_max_length == 99


def edit_json(path, edit):
    data = json.loads(path.read_text(encoding="utf-8"))
    edit(data)
    path.write_text(json.dumps(data), encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "BertJapaneseTokenizer"),
        ({"tokenizer_class": "KoBertTokenizer"}, "KoBertTokenizer"),
        ({"tokenizer_class": "T5Tokenizer"}, "T5Tokenizer"),
        ({"auto_map": {"AutoTokenizer": ["custom.Tokenizer", None]}}, "auto_map"),
        ({"truncation_side": "left"}, "truncation_side"),
        ({"split_special_tokens": True}, "split_special_tokens"),
    ],
)
def test_other_classes_and_rules_are_refused_by_name(settings, named, tmp_path):
    write(tmp_path, settings=settings)
    with pytest.raises(UnsupportedCheckpoint, match=named):
        read(tmp_path)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda d: d["model"].update(type="WordLevel"), "WordLevel"),
        (lambda d: d.update(normalizer={"type": "Evil"}), "Evil"),
        (lambda d: d.update(pre_tokenizer={"type": "Delimiter", "delimiter": "x"}), "Delimiter"),
        (
            lambda d: d.update(
                pre_tokenizer={
                    "type": "Sequence",
                    "pretokenizers": [{"type": "Split", "pattern": {"Regex": "(a+)+$"}}],
                }
            ),
            "Split",
        ),
        (
            lambda d: d.update(
                normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}
            ),
            "regular expression",
        ),
        (lambda d: d.update(post_processor={"type": "Custom"}), "Custom"),
        (lambda d: d.update(decoder={"type": "CTC"}), "CTC"),
    ],
    ids=["model", "normalizer", "pre-tokenizer", "inner", "expression", "post", "decoder"],
)
def test_unknown_components_are_refused_by_name(edit, named, tmp_path):
    write(tmp_path)
    edit_json(tmp_path / "tokenizer.json", edit)
    with pytest.raises(UnsupportedCheckpoint, match=named):
        read(tmp_path)


def nested(depth):
    part = {"type": "Lowercase"}
    for _ in range(depth):
        part = {"type": "Sequence", "normalizers": [part]}
    return part


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda d: d.pop("model"), "no model"),
        (lambda d: d["model"].update(vocab={}), "no model"),
        (lambda d: d.update(normalizer=[]), "normalizer"),
        (lambda d: d.update(normalizer=nested(9)), "normalizer"),
        (lambda d: d.update(normalizer={"type": "Sequence"}), "Sequence"),
        (lambda d: d["model"].update(vocab={"[CLS]": -1}), "tokenizer.json"),
        (lambda d: d["model"]["vocab"].pop("[SEP]") and d.update(added_tokens=[]), "SEP"),
        (lambda d: d.update(normalizer={"type": "BertNormalizer", "lowercase": "no"}), "tokenizer"),
    ],
    ids=["none", "empty", "list", "deep", "no members", "negative id", "no SEP", "wrong type"],
)
def test_damaged_tokenizer_json_is_refused(edit, named, tmp_path):
    write(tmp_path)
    edit_json(tmp_path / "tokenizer.json", edit)
    with pytest.raises(CorruptCheckpoint, match=named):
        read(tmp_path)


def test_a_panic_inside_the_tokenizers_package_is_a_typed_error(tmp_path):
    write(tmp_path)
    edit_json(
        tmp_path / "tokenizer.json",
        lambda d: d.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    )
    with pytest.raises(CorruptCheckpoint, match=r"tokenizer\.json"):
        read(tmp_path)


def test_an_oversized_file_is_not_read(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr("kosine_export.tokenizer.reader.MAX_TOKENIZER_BYTES", 1000)
    with pytest.raises(CorruptCheckpoint, match="at most 1000 bytes"):
        read(tmp_path)


def test_a_vocabulary_that_is_not_utf_8_is_named(tmp_path):
    write(tmp_path, "vocab.txt")
    (tmp_path / "vocab.txt").write_bytes("[PAD]\n한국".encode("cp949"))
    with pytest.raises(CorruptCheckpoint, match=r"vocab\.txt is not UTF-8"):
        read(tmp_path)


def test_a_vocabulary_without_its_special_tokens_is_refused(tmp_path):
    write(tmp_path, "vocab.txt")
    (tmp_path / "vocab.txt").write_text("가\n나\n", encoding="utf-8")
    with pytest.raises(CorruptCheckpoint, match=r"cls_token '\[CLS\]'"):
        read(tmp_path)
    (tmp_path / "vocab.txt").write_text("[CLS]\n[SEP]\n가\n", encoding="utf-8")
    with pytest.raises(CorruptCheckpoint, match=r"unk_token '\[UNK\]'"):
        read(tmp_path)


def test_added_tokens_must_have_their_stated_ids(tmp_path):
    write(tmp_path)
    edit_json(
        tmp_path / "tokenizer_config.json",
        lambda d: d["added_tokens_decoder"].update({"9": d["added_tokens_decoder"].pop("0")}),
    )
    with pytest.raises(CorruptCheckpoint, match="states 9"):
        read(tmp_path)


def test_a_post_processor_that_adds_nothing_is_refused(tmp_path):
    write(tmp_path, settings={"tokenizer_class": "PreTrainedTokenizerFast"})
    edit_json(tmp_path / "tokenizer.json", lambda d: d.update(post_processor=None))
    with pytest.raises(UnsupportedCheckpoint, match="empty text"):
        read(tmp_path)


def test_sentencepiece_alone_is_refused_with_the_remedy(tmp_path):
    config = write(tmp_path, "unigram", family="xlm-roberta")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"\n\x0b")
    with pytest.raises(UnsupportedCheckpoint, match=r"sentencepiece\.bpe\.model") as caught:
        read(tmp_path, config["model_type"])
    assert "save_pretrained" in caught.value.remedy


def test_no_tokenizer_at_all_is_refused(tmp_path):
    config = write(tmp_path)
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(CorruptCheckpoint, match="no tokenizer"):
        read(tmp_path, config["model_type"])


def fixtures(name):
    """(text, ids) pairs; very long ids are recorded as their head, "..." and their count."""
    file = TOKENIZERS / name / "token_fixtures.json"
    if not file.is_file():
        pytest.skip(f"the real tokenizers are not at {TOKENIZERS}")
    pairs = []

    def collect(value):
        if isinstance(value, dict) and isinstance(value.get("text"), str):
            if value.get("ids") is not None:
                pairs.append((value["text"], value["ids"]))
        elif isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                collect(item)

    collect(json.loads(file.read_text(encoding="utf-8")))
    assert len(pairs) > 40
    return pairs


def require_ids(files, pairs):
    for (text, expected), found in zip(pairs, ids(files, [text for text, _ in pairs]), strict=True):
        if "..." in expected:
            head, count = expected[: expected.index("...")], expected[-1]
            assert (found[: len(head)], len(found)) == (head, count), text
        else:
            assert found == expected, text


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.txt"])
def test_the_real_klue_tokenizer_gives_the_recorded_ids(files, tmp_path):
    pairs = fixtures("klue")
    config = {"model_type": "roberta", "tokenizer_class": "BertTokenizer"}
    for name in ("tokenizer_config.json", "special_tokens_map.json", files):
        (tmp_path / name).write_bytes((TOKENIZERS / "klue" / name).read_bytes())
    found = read_tokenizer(tmp_path, family="roberta", config=config)
    assert found.special_ids == {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 4}
    assert found.size == 32000
    require_ids(found, pairs)


def test_the_real_kr_sbert_vocabulary_gives_the_recorded_ids():
    pairs = fixtures("krsbert")
    folder = TOKENIZERS / "krsbert"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = read_tokenizer(folder, family="bert", config=config)
    assert found.special_ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert found.size == 40000
    require_ids(found, pairs)
