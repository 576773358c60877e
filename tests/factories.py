"""Small checkpoints in the full formats that sentence encoders come in.

Each builder writes the files that one generation of sentence-transformers writes, around a
randomly initialised transformer of a few narrow layers: the right class, tokenizer kind,
special-token order, config keys and module paths. LayerNorm gains and every bias are random
too, so that a swapped or dropped tensor shows. `referee` loads one in PyTorch.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

SAMPLE = Path(__file__).parent.parent / "export" / "sample"

KLUE_SPECIALS = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
CAMEMBERT_SPECIALS = (
    "<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>",
)  # fmt: skip

OLD = "sentence_transformers.models."
MODULE_PATHS = {
    "1.x": {kind: OLD + kind for kind in ("Transformer", "Pooling", "Dense", "Normalize")},
    "2.x": {kind: OLD + kind for kind in ("Transformer", "Pooling", "Dense", "Normalize")},
    "5.4": {
        "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
        "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        "Dense": "sentence_transformers.base.modules.dense.Dense",
        "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    },
}
NORMALIZE_PATHS = (
    "sentence_transformers.models.Normalize",
    "sentence_transformers.sentence_transformer.modules.normalize.Normalize",
    "sentence_transformers.base.modules.normalize.Normalize",
)
VERSIONS = {"1.x": ("1.1.0", "4.5.1"), "2.x": ("3.4.0", "4.47.1"), "5.4": ("6.2.0", "5.23.0")}

# What a tokenizer can trip over. Written with escapes where the eye could not tell.
TRICKY_TEXTS = (
    "",
    "   ",
    "한국어 문장 임베딩",
    "\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165 NFD",
    "한국\u00a0어\u3000문장",
    "한\u200b국\u200d어\ufeff",
    "강아지 🐶 👩\u200d👩\u200d👧 좋아요👍",
    "[CLS] 안녕 [SEP] [UNK] [MASK] [PAD]",
    "<s> 안녕 </s> <mask>",
    "가" * 100,
    "나" * 101,
    "React REACT äôs café ＡＢＣ１２３",
    "입양(入養) 𠮷野家 カタカナ",
    "3,000만원 ① 제1항 「동산」 표시·광고",
    "줄\n바꿈\t탭\r\n\u0007제어\u0000문자\ufffd",
    "ㅋㅋㅋ ㅠㅠ 유치권\u119e질권 \ue000",
    "  앞뒤 공백  ",
)


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2), encoding="utf-8")


def sample_pieces() -> list[str]:
    """Pieces of the sample's vocabulary: each single character, and some longer ones."""
    data = json.loads((SAMPLE / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
    pieces = [piece for piece in vocab if piece not in KLUE_SPECIALS]
    short = [piece for piece in pieces if len(piece.removeprefix("##")) == 1]
    longer = [piece for piece in pieces if len(piece.removeprefix("##")) > 1]
    return short + longer[:600]


def bert_tokenizer_json(tokens: list[str], specials: tuple[str, ...], lowercase: bool) -> dict:
    cls, sep = tokens.index("[CLS]"), tokens.index("[SEP]")
    return {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": 64,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": {
            "strategy": "BatchLongest",
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": tokens.index("[PAD]"),
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": [
            added_token(tokens.index(token), token) for token in sorted(specials, key=tokens.index)
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
            ],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [cls], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [sep], "tokens": ["[SEP]"]},
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: index for index, token in enumerate(tokens)},
        },
    }


def added_token(index: int, content: str) -> dict:
    return {
        "id": index,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def write_wordpiece(
    folder: Path,
    specials: tuple[str, ...],
    *,
    vocab_only: bool = False,
    lowercase: bool = False,
    settings: dict | None = None,
) -> int:
    """A BERT tokenizer; returns the vocabulary's size. `settings` None values drop a key."""
    tokens = [*specials, *sample_pieces()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    named = {
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    config = {
        "do_lower_case": lowercase,
        **named,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
        "do_basic_tokenize": True,
        "never_split": None,
    }
    if not vocab_only:
        write_json(folder / "tokenizer.json", bert_tokenizer_json(tokens, specials, lowercase))
        config["tokenizer_class"] = "BertTokenizer"
        config["clean_up_tokenization_spaces"] = True
        config["added_tokens_decoder"] = {
            str(tokens.index(token)): {
                key: value for key, value in added_token(0, token).items() if key != "id"
            }
            for token in sorted(specials, key=tokens.index)
        }
    for key, value in (settings or {}).items():
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", named)
    return len(tokens)


def write_byte_level(
    folder: Path, *, vocab_only: bool = False, settings: dict | None = None
) -> int:
    """RoBERTa's byte-level BPE, with a few hundred merges; returns the vocabulary's size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate((*ROBERTA_SPECIALS, *alphabet))}
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    merges: list[tuple[str, str]] = []
    for piece in ("the", " 문장", " 한국어", "안녕", " Re", "act", " ①", "가", "나", " sentence"):
        spelled = "".join(word for word, _ in splitter.pre_tokenize_str(piece))
        left = spelled[0]
        for right in spelled[1:]:
            if left + right not in vocab:
                vocab[left + right] = len(vocab)
                merges.append((left, right))
            left += right
    vocab["<mask>"] = len(vocab)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", vocab)
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8"
    )
    named = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "cls_token": "<s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": {**added_token(0, "<mask>"), "lstrip": True},
    }
    del named["mask_token"]["id"], named["mask_token"]["special"]
    if not vocab_only:
        tokenizer = Tokenizer(
            models.BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix="")
        )
        tokenizer.pre_tokenizer = splitter
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.RobertaProcessing(
            ("</s>", vocab["</s>"]),
            ("<s>", vocab["<s>"]),
            trim_offsets=True,
            add_prefix_space=False,
        )
        data = json.loads(tokenizer.to_str())
        data["added_tokens"] = [
            added_token(vocab[token], token) | {"lstrip": token == "<mask>"}
            for token in sorted((*ROBERTA_SPECIALS, "<mask>"), key=vocab.get)
        ]
        write_json(folder / "tokenizer.json", data)
    config = {
        **{name: token for name, token in named.items() if name != "mask_token"},
        "mask_token": "<mask>",
        "add_prefix_space": False,
        "trim_offsets": True,
        "tokenizer_class": "RobertaTokenizer",
        **(settings or {}),
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", named)
    return len(vocab)


def write_generic(folder: Path, *, settings: dict | None = None) -> int:
    """ModernBERT's: byte-level BPE framed by BERT's tokens, which tokenizer.json alone states."""
    size = write_byte_level(folder)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    renamed = {"<s>": "[CLS]", "</s>": "[SEP]", "<pad>": "[PAD]", "<unk>": "[UNK]"}
    for old, new in {**renamed, "<mask>": "[MASK]"}.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    data = json.loads(text)
    cls, sep = (data["model"]["vocab"][token] for token in ("[CLS]", "[SEP]"))
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            "[CLS]": {"id": "[CLS]", "ids": [cls], "tokens": ["[CLS]"]},
            "[SEP]": {"id": "[SEP]", "ids": [sep], "tokens": ["[SEP]"]},
        },
    }
    write_json(folder / "tokenizer.json", data)
    names = ("cls", "sep", "pad", "unk", "mask")
    config = {f"{name}_token": f"[{name.upper()}]" for name in names}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", **(settings or {})}
    write_json(folder / "tokenizer_config.json", config)
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (folder / name).unlink()
    return size


def bpe_pieces(words: tuple[str, ...], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Merges that build each word up from its first character; new pieces go into `vocab`."""
    merges: list[tuple[str, str]] = []
    for word in words:
        left = word[0]
        for right in word[1:]:
            if left + right not in vocab:
                vocab[left + right] = len(vocab)
                merges.append((left, right))
            left += right
    return merges


def ends_with(vocab: dict[str, int], last: str, first: str | None = None) -> dict:
    """A post-processor that puts `last` behind a text, and `first` before it."""
    template = [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": last, "type_id": 0}},
    ]
    if first is not None:
        template.insert(0, {"SpecialToken": {"id": first, "type_id": 0}})
    return {
        "type": "TemplateProcessing",
        "single": template,
        "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            token: {"id": token, "ids": [vocab[token]], "tokens": [token]}
            for token in {last, first} - {None}
        },
    }


QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_qwen(folder: Path, *, settings: dict | None = None) -> int:
    """Qwen's: byte-level BPE of NFC with a split of its own, and <|endoftext|> behind each text."""
    from tokenizers import pre_tokenizers

    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    vocab = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    words = ("the", " 문장", " 한국어", "안녕", "가", "나", " sentence", "12")
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelled = ["".join(part for part, _ in splitter.pre_tokenize_str(word)) for word in words]
    merges = bpe_pieces(tuple(spelled), vocab)
    model_vocab = dict(vocab)
    for token in specials:
        vocab[token] = len(vocab)
    byte_level = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False,
    }  # fmt: skip
    split = {"pattern": {"Regex": QWEN_SPLIT}, "behavior": "Isolated", "invert": False}
    processors = [byte_level, ends_with(vocab, "<|endoftext|>")]
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(vocab[token], token) for token in specials],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence", "pretokenizers": [{"type": "Split", **split}, byte_level],
        },
        "post_processor": {"type": "Sequence", "processors": processors},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": model_vocab,
            "merges": [list(pair) for pair in merges],
        },
    }  # fmt: skip
    write_json(folder / "tokenizer.json", data)
    config = {
        "added_tokens_decoder": {
            str(vocab[token]): {k: v for k, v in added_token(0, token).items() if k != "id"}
            for token in specials
        },
        "additional_special_tokens": list(specials[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
        **(settings or {}),
    }
    write_json(folder / "tokenizer_config.json", config)
    return len(vocab)


def write_gemma(folder: Path, *, settings: dict | None = None) -> int:
    """Gemma's: BPE of characters with bytes for what it cannot spell, framed by <bos> and <eos>."""
    specials = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    vocab = {token: index for index, token in enumerate(specials)}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for piece in ("▁", *sample_pieces()):
        bare = piece.removeprefix("##")
        if len(bare) == 1:
            vocab.setdefault(bare, len(vocab))
    words = ("▁문장", "▁한국어", "안녕", "the", "▁the", "▁▁")
    merges = bpe_pieces(tuple(word for word in words if set(word) <= set(vocab)), vocab)
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(vocab[token], token) for token in specials],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": ends_with(vocab, "<eos>", "<bos>"),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(pair) for pair in merges],
        },
    }
    write_json(folder / "tokenizer.json", data)
    config = {
        "add_bos_token": True,
        "add_eos_token": True,
        "bos_token": "<bos>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>",
        "mask_token": "<mask>",
        "pad_token": "<pad>",
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
        **(settings or {}),
    }
    write_json(folder / "tokenizer_config.json", config)
    return len(vocab)


def write_mpnet(folder: Path, *, settings: dict | None = None) -> int:
    """MPNet's: WordPiece framed by RoBERTa's tokens, with BERT's [UNK]."""
    tokens = ["[CLS]", "[PAD]", "[SEP]", "<unk>", "[UNK]", *sample_pieces(), "[MASK]"]
    names = {"[CLS]": "<s>", "[PAD]": "<pad>", "[SEP]": "</s>", "[MASK]": "<mask>"}
    data = bert_tokenizer_json(tokens, ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"), False)
    text = json.dumps(data)
    for old, new in names.items():
        text = text.replace(json.dumps(old), json.dumps(new))
    data = json.loads(text)
    for token in data["added_tokens"]:
        token["lstrip"] = token["content"] == "<mask>"
    write_json(folder / "tokenizer.json", data)
    listed = [names.get(token, token) for token in tokens]
    (folder / "vocab.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
    config = {
        "bos_token": "<s>",
        "cls_token": "<s>",
        "do_lower_case": False,
        "eos_token": "</s>",
        "mask_token": "<mask>",
        "pad_token": "<pad>",
        "sep_token": "</s>",
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "MPNetTokenizer",
        "unk_token": "[UNK]",
        **(settings or {}),
    }
    write_json(folder / "tokenizer_config.json", config)
    return len(tokens)


def write_unigram(
    folder: Path, *, specials: tuple[str, ...] = ROBERTA_SPECIALS, settings: dict | None = None
) -> int:
    """XLM-RoBERTa's SentencePiece Unigram as a tokenizer.json; returns the vocabulary's size."""
    pieces: dict[str, float] = {}
    for piece in sample_pieces():
        word = piece.removeprefix("##") if piece.startswith("##") else f"▁{piece}"
        pieces.setdefault(word, -4.0 - 0.001 * len(pieces) - (4.0 if len(word) == 1 else 0.0))
    pieces.setdefault("▁", -3.0)
    vocab = [[token, 0.0] for token in specials]
    vocab += [[piece, score] for piece, score in pieces.items()]
    vocab.append(["<mask>", 0.0])
    ids = {token: index for index, (token, _) in enumerate(vocab)}
    template = [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
    ]
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(ids[token], token) | {"lstrip": token == "<mask>"}
            for token in (*specials, "<mask>")
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "WhitespaceSplit"},
                {
                    "type": "Metaspace",
                    "replacement": "▁",
                    "prepend_scheme": "always",
                    "split": True,
                },
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": [
                *template,
                {"SpecialToken": {"id": "</s>", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}},
            ],
            "special_tokens": {
                token: {"id": token, "ids": [ids[token]], "tokens": [token]}
                for token in ("<s>", "</s>")
            },
        },
        "decoder": {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "always",
            "split": True,
        },
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": False},
    }
    write_json(folder / "tokenizer.json", data)
    config = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "cls_token": "<s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
        "tokenizer_class": "XLMRobertaTokenizer",
        **(settings or {}),
    }
    write_json(folder / "tokenizer_config.json", config)
    return len(vocab)


def transformers_config(family: str, vocab_size: int, **sizes: int | float | str | None) -> dict:
    """A `config.json` with that family's own keys; None values drop a key."""
    hidden = sizes.pop("hidden_size", 64)
    layers, ffn = sizes.pop("num_hidden_layers", 2), sizes.pop("intermediate_size", 160)
    if family == "distilbert":
        config = {
            "architectures": ["DistilBertModel"],
            "activation": "gelu",
            "attention_dropout": 0.1,
            "dim": hidden,
            "dropout": 0.1,
            "hidden_dim": ffn,
            "initializer_range": 0.02,
            "max_position_embeddings": 512,
            "model_type": "distilbert",
            "n_heads": hidden // 32,
            "n_layers": layers,
            "pad_token_id": 0,
            "sinusoidal_pos_embds": False,
        }
    elif family == "modernbert":
        config = {
            "architectures": ["ModernBertModel"],
            "attention_bias": False,
            "cls_token_id": 0,
            "global_attn_every_n_layers": 3,
            "global_rope_theta": 160000.0,
            "hidden_activation": "gelu",
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "local_attention": 16,
            "local_rope_theta": 10000.0,
            "max_position_embeddings": 512,
            "mlp_bias": False,
            "model_type": "modernbert",
            "norm_bias": False,
            "norm_eps": 1e-05,
            "num_attention_heads": hidden // 32,
            "num_hidden_layers": layers,
            "pad_token_id": 1,
            "sep_token_id": 2,
        }
    elif family in ("new", "gte"):
        config = {
            "attention_probs_dropout_prob": 0.0,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "hidden_size": hidden,
            "initializer_range": 0.02,
            "intermediate_size": ffn,
            "layer_norm_eps": 1e-12,
            "layer_norm_type": "layer_norm",
            "logn_attention_clip1": False,
            "logn_attention_scale": False,
            "max_position_embeddings": 512,
            "model_type": family,
            "num_attention_heads": hidden // 32,
            "num_hidden_layers": layers,
            "pack_qkv": True,
            "pad_token_id": 1,
            "position_embedding_type": "rope",
            "type_vocab_size": 1,
            "unpad_inputs": False,
            "use_memory_efficient_attention": False,
        }
        config |= GTE_OF_ITS_OWN[family]
    elif family == "qwen3":
        config = {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "head_dim": 48,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "initializer_range": 0.02,
            "intermediate_size": ffn,
            "max_position_embeddings": 512,
            "max_window_layers": layers,
            "model_type": "qwen3",
            "num_attention_heads": 4,
            "num_hidden_layers": layers,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
        }
    elif family == "gemma3_text":
        config = {
            "architectures": ["Gemma3TextModel"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "head_dim": 32,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": hidden,
            "initializer_range": 0.02,
            "intermediate_size": ffn,
            "layer_types": [
                "full_attention" if i % 3 == 2 else "sliding_attention" for i in range(layers)
            ],
            "max_position_embeddings": 512,
            "model_type": "gemma3_text",
            "num_attention_heads": 4,
            "num_hidden_layers": layers,
            "num_key_value_heads": 1,
            "pad_token_id": 0,
            "query_pre_attn_scalar": 32,
            "rms_norm_eps": 1e-06,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": None,
            "rope_theta": 1000000.0,
            "sliding_window": 16,
            "use_bidirectional_attention": True,
        }
    else:
        roberta = family in ("roberta", "xlm-roberta", "camembert", "mpnet")
        classes = {
            "mpnet": "MPNetModel",
            "bert": "BertModel",
            "roberta": "RobertaModel",
            "xlm-roberta": "XLMRobertaModel",
            "camembert": "CamembertModel",
            "electra": "ElectraModel",
        }
        config = {
            "architectures": [classes[family]],
            "attention_probs_dropout_prob": 0.1,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "hidden_size": hidden,
            "initializer_range": 0.02,
            "intermediate_size": ffn,
            "layer_norm_eps": 1e-05 if roberta else 1e-12,
            "max_position_embeddings": 514 if roberta else 512,
            "model_type": family,
            "num_attention_heads": hidden // 32,
            "num_hidden_layers": layers,
            "pad_token_id": 1 if roberta else 0,
            "position_embedding_type": "absolute",
            "type_vocab_size": 1 if roberta else 2,
            "use_cache": True,
        }
        if roberta:
            config |= {"bos_token_id": 0, "eos_token_id": 2}
        if family == "mpnet":
            del config["type_vocab_size"], config["position_embedding_type"]
            config["relative_attention_num_buckets"] = 32
        if family == "electra":
            config["embedding_size"] = hidden
    config["vocab_size"] = vocab_size
    config |= sizes
    return {key: value for key, value in config.items() if value is not None}


GTE_OF_ITS_OWN = {
    "new": {
        "architectures": ["NewModel", "NewForTokenClassification"],
        "auto_map": {
            "AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig",
            "AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel",
        },
        "rope_scaling": {"factor": 8.0, "type": "ntk"},
        "rope_theta": 20000,
    },
    "gte": {
        "architectures": ["GteModel"],
        "auto_map": {
            "AutoConfig": "configuration_hf_alibaba_nlp_gte.GteConfig",
            "AutoModel": "modeling_hf_alibaba_nlp_gte.GteModel",
        },
        "rope_scaling": None,
        "rope_theta": 160000,
    },
}


def as_new_model(state: dict, *, packed: bool = True) -> dict:
    """Tensors of transformers' GteModel under the names and in the layout of NewModel."""
    import torch

    state = dict(state)
    out = {name: value for name, value in state.items() if name.startswith("embeddings.")}
    names = {
        "self_attn.o_proj": "attention.o_proj",
        "mlp.down_proj": "mlp.down_proj",
        "post_attention_layernorm": "attn_ln",
        "post_mlp_layernorm": "mlp_ln",
    }
    for number in {name.split(".")[1] for name in state if name.startswith("layers.")}:
        old, new = f"layers.{number}", f"encoder.layer.{number}"
        for part in ("weight", "bias"):
            three = [state[f"{old}.self_attn.{x}_proj.{part}"] for x in "qkv"]
            if packed:
                out[f"{new}.attention.qkv_proj.{part}"] = torch.cat(three)
            else:
                for x, value in zip("qkv", three, strict=True):
                    out[f"{new}.attention.{x}_proj.{part}"] = value
            for theirs, ours in names.items():
                out[f"{new}.{ours}.{part}"] = state[f"{old}.{theirs}.{part}"]
        out[f"{new}.mlp.up_gate_proj.weight"] = torch.cat(
            [state[f"{old}.mlp.{x}_proj.weight"] for x in ("up", "gate")]
        )
    return out


def random_model(config: dict, seed: int):
    """A transformers model in eval mode, every parameter random."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModel

    other = ("position_embedding_type", "auto_map", "rope_scaling")
    known = {key: value for key, value in config.items() if key not in other}
    if known["model_type"] == "new":
        known["model_type"] = "gte"
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(CONFIG_MAPPING[known.pop("model_type")](**known)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.1 * noise)
            elif "embeddings." in name or "embed_tokens" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise * 1.2 / parameter.shape[-1] ** 0.5)
    return model


def write_weights(
    folder: Path,
    state: dict,
    *,
    kind: str = "safetensors",
    dtype: str = "float32",
    prefix: str = "",
) -> None:
    """`kind`: safetensors, sharded, or bin (a pickle)."""
    import torch
    from safetensors.torch import save_file

    tensors = {
        prefix + name: tensor.detach().to(getattr(torch, dtype)).contiguous()
        for name, tensor in state.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    if kind == "safetensors":
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    weight_map = {}
    for number, half in enumerate(halves, 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in half}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(half, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def write_pooling(
    folder: Path, mode: str | tuple[str, ...], width: int, generation: str, include_prompt: bool
) -> None:
    if generation == "5.4":
        config = {
            "embedding_dimension": width,
            "pooling_mode": mode if isinstance(mode, str) else list(mode),
            "include_prompt": include_prompt,
        }
    else:
        modes = (mode,) if isinstance(mode, str) else mode
        flags = {
            "cls": "cls_token",
            "mean": "mean_tokens",
            "max": "max_tokens",
            "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
        }
        newer = {"weightedmean": "weightedmean_tokens", "lasttoken": "lasttoken"}
        config = {"word_embedding_dimension": width}
        if generation != "1.x":
            flags |= newer
            config["include_prompt"] = include_prompt
        config |= {f"pooling_mode_{flag}": name in modes for name, flag in flags.items()}
    write_json(folder / "config.json", config)


def write_dense(
    folder: Path,
    inputs: int,
    outputs: int,
    *,
    activation: str = "torch.nn.modules.activation.Tanh",
    bias: bool = True,
    use_residual: bool = False,
    kind: str = "safetensors",
    seed: int = 0,
) -> None:
    import torch

    config = {
        "in_features": inputs,
        "out_features": outputs,
        "bias": bias,
        "activation_function": activation,
    }
    if use_residual:
        config["use_residual"] = True
    write_json(folder / "config.json", config)
    generator = torch.Generator().manual_seed(seed)
    state = {"linear.weight": torch.randn((outputs, inputs), generator=generator) / inputs**0.5}
    if bias:
        state["linear.bias"] = 0.1 * torch.randn((outputs,), generator=generator)
    write_weights(folder, state, kind=kind)


def write_heads(
    folder: Path, width: int, *, multi: int | None = None, dtype: str = "float16", seed: int = 0
) -> None:
    """BGE-M3's two linear layers, as FlagEmbedding saves them: a state dict each."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for file, columns in (("sparse_linear.pt", 1), ("colbert_linear.pt", multi or width)):
        state = {
            "weight": torch.randn((columns, width), generator=generator) / width**0.5,
            "bias": 0.1 * torch.randn((columns,), generator=generator),
        }
        state = {name: value.to(getattr(torch, dtype)) for name, value in state.items()}
        torch.save(state, folder / file)


def write_root(
    path: Path,
    generation: str,
    modules: list[tuple[str, str]],
    *,
    versions: tuple[str, str],
    prompts: dict[str, str],
    default_prompt_name: str | None,
    similarity: str | None,
) -> None:
    """modules.json and the version, prompts and similarity file. `modules`: (path, type)."""
    write_json(
        path / "modules.json",
        [
            {"idx": index, "name": str(index), "path": folder, "type": dotted}
            for index, (folder, dotted) in enumerate(modules)
        ],
    )
    if generation == "1.x":
        write_json(path / "config.json", {"__version__": versions[0]})
        return
    config = {
        "__version__": {
            "sentence_transformers": versions[0],
            "transformers": versions[1],
            "pytorch": "2.5.1+cu121",
        },
        "prompts": prompts,
        "default_prompt_name": default_prompt_name,
        "similarity_fn_name": similarity,
    }
    if generation == "5.4":
        config["model_type"] = "SentenceTransformer"
    write_json(path / "config_sentence_transformers.json", config)


def build(
    path: Path,
    *,
    family: str = "bert",
    tokenizer: str | None = None,
    specials: tuple[str, ...] | None = None,
    tokenizer_settings: dict | None = None,
    lowercase: bool = False,
    pooling: str | tuple[str, ...] = "mean",
    include_prompt: bool = True,
    normalize: bool | str = False,
    dense: list[dict] | None = None,
    generation: str = "2.x",
    versions: tuple[str, str] | None = None,
    max_length: int | None = 128,
    do_lower_case: bool = False,
    prompts: dict[str, str] | None = None,
    default_prompt_name: str | None = None,
    similarity: str | None = "cosine",
    weights: str = "safetensors",
    dtype: str = "float32",
    prefix: str = "",
    seed: int = 0,
    sizes: dict | None = None,
    layout: str = "packed",
) -> Path:
    """Write a checkpoint folder and return it.

    `tokenizer`: wordpiece, vocab.txt, byte-level, vocab.json, unigram, generic, mpnet, qwen or
    gemma; the family's own if None. `layout`: of GTE's tensors, packed, apart or transformers.
    `generation`: 1.x, 2.x (to 5.3), 5.4, or bare (transformers files alone).
    `normalize` may be the module's dotted path. `dense`: keyword arguments of `write_dense`
    with `outputs` instead of both sizes. `sizes`: entries for config.json, None to drop one.
    """
    transformer = path / "0_Transformer" if generation == "1.x" else path
    own = {
        "roberta": "byte-level",
        "xlm-roberta": "unigram",
        "camembert": "unigram",
        "modernbert": "generic",
        "mpnet": "mpnet",
        "new": "unigram",
        "gte": "unigram",
        "qwen3": "qwen",
        "gemma3_text": "gemma",
    }.get(family, "wordpiece")
    kind = tokenizer or own
    settings = dict(tokenizer_settings or {})
    if max_length is not None and generation in ("5.4", "bare"):
        settings.setdefault("model_max_length", max_length)
    if kind in ("wordpiece", "vocab.txt"):
        order = specials or (KLUE_SPECIALS if family == "roberta" else BERT_SPECIALS)
        vocab_size = write_wordpiece(
            transformer,
            order,
            vocab_only=kind == "vocab.txt",
            lowercase=lowercase,
            settings=settings,
        )
    elif kind in ("byte-level", "vocab.json"):
        vocab_size = write_byte_level(
            transformer, vocab_only=kind == "vocab.json", settings=settings
        )
    elif kind == "mpnet":
        vocab_size = write_mpnet(transformer, settings=settings)
    elif kind == "qwen":
        vocab_size = write_qwen(transformer, settings=settings)
    elif kind == "gemma":
        vocab_size = write_gemma(transformer, settings=settings)
    elif kind == "generic":
        vocab_size = write_generic(transformer, settings=settings)
    else:
        camembert = family == "camembert"
        if camembert:
            settings.setdefault("tokenizer_class", "CamembertTokenizer")
        vocab_size = write_unigram(
            transformer,
            specials=CAMEMBERT_SPECIALS if camembert else ROBERTA_SPECIALS,
            settings=settings,
        )
    config = transformers_config(family, **{"vocab_size": vocab_size, **(sizes or {})})
    model = random_model(config, seed)
    stored = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}[dtype]
    config["torch_dtype" if generation != "5.4" else "dtype"] = stored
    config["transformers_version"] = (versions or VERSIONS.get(generation, ("", "4.41.2")))[1]
    write_json(transformer / "config.json", config)
    state = model.state_dict()
    if family in ("new", "gte") and layout != "transformers":
        state = as_new_model(state, packed=layout == "packed")
    write_weights(transformer, state, kind=weights, dtype=dtype, prefix=prefix)
    if generation == "bare":
        return path
    write_limits(transformer, generation, max_length, do_lower_case)
    width = config.get("dim", config.get("hidden_size"))
    paths = MODULE_PATHS[generation]
    modules = [(transformer.name if generation == "1.x" else "", paths["Transformer"])]
    write_pooling(path / "1_Pooling", pooling, width, generation, include_prompt)
    modules.append(("1_Pooling", paths["Pooling"]))
    width *= 1 if isinstance(pooling, str) else len(pooling)
    for options in dense or []:
        folder = f"{len(modules)}_Dense"
        chosen = dict(options)
        outputs = chosen.pop("outputs")
        write_dense(path / folder, width, outputs, **{"seed": seed + len(modules), **chosen})
        modules.append((folder, paths["Dense"]))
        width = outputs
    if normalize:
        folder = f"{len(modules)}_Normalize"
        (path / folder).mkdir()
        modules.append((folder, normalize if isinstance(normalize, str) else paths["Normalize"]))
    write_root(
        path,
        generation,
        modules,
        versions=versions or VERSIONS[generation],
        prompts=prompts if prompts is not None else {},
        default_prompt_name=default_prompt_name,
        similarity=similarity,
    )
    return path


def write_limits(folder: Path, generation: str, max_length: int | None, lower: bool) -> None:
    if generation == "5.4":
        config: dict = {
            "transformer_task": "feature-extraction",
            "modality_config": {
                "text": {"method": "forward", "method_output_name": "last_hidden_state"}
            },
            "module_output_name": "token_embeddings",
        }
        if lower:
            config["do_lower_case"] = True
    else:
        config = {"max_seq_length": max_length, "do_lower_case": lower}
    write_json(folder / "sentence_bert_config.json", config)


def build_korsts(path: Path) -> Path:
    """KorSTS: KLUE RoBERTa with its WordPiece tokenizer, written by 3.4.0.dev0 / 4.47.1."""
    return build(
        path,
        family="roberta",
        tokenizer="wordpiece",
        tokenizer_settings=KLUE_SETTINGS,
        versions=("3.4.0.dev0", "4.47.1"),
        sizes={"tokenizer_class": "BertTokenizer", "num_hidden_layers": 3},
        seed=10,
    )


def build_matching(path: Path, *, weights: str = "safetensors") -> Path:
    """Developer and project: KR-SBERT, a BERT in the 1.x layout with vocab.txt alone."""
    return build(
        path,
        family="bert",
        tokenizer="vocab.txt",
        generation="1.x",
        tokenizer_settings={
            "special_tokens_map_file": "special_tokens_map.json",
            "name_or_path": "KR-SBERT-V40K-klueNLI/0_Transformer",
        },
        weights=weights,
        sizes={"num_hidden_layers": 3, "gradient_checkpointing": False},
        seed=11,
    )


def build_faq(path: Path) -> Path:
    """Dog FAQ: ko-sroberta fine-tuned, written by 5.1.0 / 4.55.1, with empty prompts."""
    return build(
        path,
        family="roberta",
        tokenizer="wordpiece",
        tokenizer_settings=KLUE_SETTINGS,
        versions=("5.1.0", "4.55.1"),
        prompts={"query": "", "document": ""},
        sizes={"tokenizer_class": "BertTokenizer"},
        seed=12,
    )


def build_klue_large(path: Path) -> Path:
    """KLUE-STS: RoBERTa large, 512 tokens, trained in fp16, written by 3.0.1 / 4.41.2."""
    return build(
        path,
        family="roberta",
        tokenizer="wordpiece",
        tokenizer_settings={**KLUE_SETTINGS, "model_max_length": 512},
        versions=("3.0.1", "4.41.2"),
        max_length=512,
        similarity=None,
        sizes={
            "tokenizer_class": "BertTokenizer",
            "hidden_size": 96,
            "num_hidden_layers": 3,
            "intermediate_size": 384,
        },
        seed=13,
    )


def build_legal_base(path: Path) -> Path:
    """The legal adapter's base: ko-sroberta-multitask as its hub repository has it."""
    return build(
        path,
        family="roberta",
        tokenizer="wordpiece",
        tokenizer_settings=KLUE_SETTINGS,
        versions=("2.0.0", "4.9.2"),
        sizes={"tokenizer_class": "BertTokenizer"},
        seed=14,
    )


def build_legal(path: Path) -> tuple[Path, Path]:
    """Legal search: a LoRA adapter on query and value, written by 3.1.1 / 4.43.4, and its base."""
    base = build_legal_base(path / "base")
    adapter = path / "adapter"
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        adapter.mkdir(parents=True, exist_ok=True)
        shutil.copy(base / name, adapter / name)
    write_adapter(adapter, base)
    write_limits(adapter, "2.x", 128, False)
    write_pooling(adapter / "1_Pooling", "mean", 64, "2.x", True)
    paths = MODULE_PATHS["2.x"]
    write_root(
        adapter,
        "2.x",
        [("", paths["Transformer"]), ("1_Pooling", paths["Pooling"])],
        versions=("3.1.1", "4.43.4"),
        prompts={},
        default_prompt_name=None,
        similarity=None,
    )
    return adapter, base


def write_adapter(
    folder: Path,
    base: Path,
    *,
    targets: tuple[str, ...] = ("value", "query"),
    rank: int = 8,
    alpha: int = 16,
    layers: int = 2,
    width: int = 64,
    ranks: dict[str, int] | None = None,
    seed: int = 0,
    **settings: object,
) -> None:
    """A LoRA adapter over `attention.self` layers of a base made by `build`."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(layers):
        for target in targets:
            r = (ranks or {}).get(f"layer.{layer}.attention.self.{target}", rank)
            name = f"base_model.model.encoder.layer.{layer}.attention.self.{target}"
            tensors[f"{name}.lora_A.weight"] = 0.2 * torch.randn((r, width), generator=generator)
            tensors[f"{name}.lora_B.weight"] = 0.2 * torch.randn((width, r), generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": str(base),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": alpha,
        "lora_dropout": 0.05,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": list(targets),
        "task_type": "FEATURE_EXTRACTION",
        "use_dora": False,
        "use_rslora": False,
        **settings,
    }
    write_json(folder / "adapter_config.json", config)


KLUE_SETTINGS = {
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "max_length": 128,
    "model_max_length": 128,
    "pad_to_multiple_of": None,
    "pad_token_type_id": 0,
    "padding_side": "right",
    "stride": 0,
    "truncation_side": "right",
    "truncation_strategy": "longest_first",
}


def five(path: Path) -> dict[str, tuple[Path, Path | None]]:
    """The five encoders under `path`: name -> (checkpoint, base or None)."""
    return {name: make(path / name) for name, make in FIVE.items()}


FIVE = {
    "korsts": lambda path: (build_korsts(path), None),
    "matching": lambda path: (build_matching(path), None),
    "faq": lambda path: (build_faq(path), None),
    "klue-large": lambda path: (build_klue_large(path), None),
    "legal": lambda path: build_legal(path),
}


def referee(path: Path, *, attention: str = "eager", dtype: str = "float32"):
    """The checkpoint in PyTorch, on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(
            str(path),
            device="cpu",
            local_files_only=True,
            model_kwargs={"attn_implementation": attention, "dtype": getattr(torch, dtype)},
        )


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Narrow models run many times slower on several threads than on one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def referee_vectors(model, texts: list[str], *, threads: int = 1, **options: object) -> np.ndarray:
    """(n, dim) float32 as the checkpoint itself gives them, each text alone."""
    with warnings.catch_warnings(), torch_threads(threads):
        warnings.simplefilter("ignore")
        return np.stack(
            [model.encode([text], show_progress_bar=False, **options)[0] for text in texts]
        )


def referee_ids(model, texts: list[str]) -> list[list[int]]:
    """Token ids, each text alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [model.preprocess([text])["input_ids"][0].tolist() for text in texts]
