"""Bad input on the command line: exit code 2, one line on stderr, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import SAMPLE
from hostile import edit_manifest, small_bundle
from kosine import cli
from rehash import rehash

LATIN1 = "안녕\n한국어\n".encode("euc-kr")
SECRET = "주민등록번호구백구십구"


@pytest.fixture
def refused(capfd):
    """Run in this process; check that it is refused as it should be; return the line."""

    def call(*words) -> str:
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as stop:  # argparse
            code = stop.code
        out, err = capfd.readouterr()
        assert code == 2, (code, out, err)
        assert out == ""
        assert err.startswith("kosine")
        assert err.endswith("\n")
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        assert SECRET not in err
        return err

    return call


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "texts.txt").write_text("가\n나\n", encoding="utf-8")
    return tmp_path / "texts.txt"


# Usage


ABSENT = [verb for verb in ("serve", "bench", "train", "Export", "") if verb not in cli.VERBS]


@pytest.mark.parametrize("words", [(), *((verb,) for verb in ABSENT), ("--nonsense",)])
def test_no_such_command(refused, words):
    assert "--help" in refused(*words)


def test_every_verb_of_the_table_can_be_imported():
    for module, text in cli.VERBS.values():
        assert __import__(module, fromlist=["run"]).run
        assert text


USAGE = {
    "info": [(), ("a", "b"), ("a", "--nonsense"), ("a", "two\nlines")],
    "verify": [(), ("b", "--dtype"), ("b", "--threads", "two"), ("b", "--base", "x"),
               ("b", "--texts", "x"), ("b", "--revision", "x"), ("b", "--allow-pickle")],
    "embed": [("b",), ("b", "t"), ("b", "t", "-o"), ("b", "t", "-o", "v", "--truncate-dim", "x"),
              ("b", "t", "-o", "v", "--prompt", "a", "--prompt-name", "b"),
              ("b", "t", "-o", "v", "--on-error", "skip"), ("b", "t", "-o", "-", "--json"),
              ("b", "t", "-o", "-", "--resume"), ("b", "-", "-o", "v.npy", "--resume")],
    "score": [(), ("b",), ("b", "t", "--threads", "1.5")],
    "eval": [(), ("b",)],
    "compare": [(), ("a",), ("a", "b"), ("a", "b", "--texts"), ("a", "b", "--texts", "none"),
                ("a", "b", "--texts", "-"), ("a", "b", "--texts", "t", "--min-cosine", "x"),
                ("a", "b", "--texts", "t", "--min-cosine", "nan"),
                ("a", "b", "--texts", "t", "--min-overlap", "90")],
    "search": [(), ("b",), ("b", "c"), ("b", "c", "q", "-k", "0"), ("b", "none", "q")],
    "completion": [(), ("csh",)],
    "export": [(), ("c",), ("c", "b", "--max-tokens", "x"), ("c", "b", "--target")],
}  # fmt: skip


@pytest.mark.parametrize(("verb", "words"), [(v, w) for v, all_ in USAGE.items() for w in all_])
def test_wrong_usage(refused, verb, words):
    refused(verb, *words)


# Engines and options


@pytest.mark.parametrize("verb", ["verify", "embed", "score", "eval", "compare", "search"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--backend", "tensorflow"), "unknown backend 'tensorflow'; known: auto"),
        (("--dtype", "float64"), "unknown dtype 'float64'; known: auto"),
        (("--backend", "onnx", "--dtype", "bfloat16"), "backend 'onnx' has no dtype 'bfloat16'"),
        (("--backend", "onnx", "--dtype", "int8"), "backend 'onnx' has no dtype 'int8'"),
        (("--backend", "onnx", "--device", "tpu:9"), "cannot run on device 'tpu:9'"),
        (("--backend", "onnx", "--threads", "0"), "threads is 0"),
    ],
)
def test_engines_that_do_not_exist(refused, sample_bundle, texts, tmp_path, verb, words, message):
    more = {
        "embed": (texts, "-o", tmp_path / "v.npy"), "score": ("가",), "verify": (),
        "compare": (sample_bundle, "--texts", texts), "search": (texts, "가"),
    }  # fmt: skip
    (tmp_path / "p.tsv").write_text("가\t나\t1\n가\t다\t2\n", encoding="utf-8")
    given = more.get(verb, (tmp_path / "p.tsv", "--columns", "1,2,3"))
    assert message in refused(verb, sample_bundle, *given, *words)
    assert not (tmp_path / "v.npy").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prompt-name", "querry"), "unknown prompt name 'querry'; the bundle has: "),
        (("--truncate-dim", "0"), "truncate_dim is 0; 1 to 256"),
        (("--truncate-dim", "999"), "truncate_dim is 999"),
        (("--precision", "int4"), "unknown precision 'int4'; known: float32"),
        (("--batch-tokens", "0"), "max_batch_tokens is 0"),
        (("--text-field", "text"), "--text-field and --id-field go with records"),
        (("--id-field", "id"), "--id-field"),
        (("--precision", "int8", "--on-error", "null"), "has no null for --on-error null"),
        (("-o", "{tmp}/v.txt"), "unknown ending '.txt'"),
        (("-o", "{tmp}/none/v.npy"), "is no folder"),
        (("-o", "{tmp}"), "is no regular file"),
        (("-o", "{tmp}/pipe"), "is no regular file"),
    ],
)
def test_options_of_embed(refused, sample_bundle, texts, tmp_path, words, message):
    os.mkfifo(tmp_path / "pipe")
    before = tree(tmp_path)
    filled = [word.format(tmp=tmp_path) for word in words]
    more = () if "-o" in words else ("-o", tmp_path / "v.npy")
    assert message in refused("embed", sample_bundle, texts, *more, *filled)
    assert tree(tmp_path) == before
    assert (tmp_path / "pipe").is_fifo()


# Bundles


def test_no_bundle(refused, tmp_path):
    for verb, more in (("info", ()), ("verify", ()), ("score", ("가",))):
        assert "no bundle at" in refused(verb, tmp_path / "none.kosine", *more)
    assert "no bundle at" in refused("info", SAMPLE)  # a checkpoint is none either


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "packed.onnx", "tokenizer.json", "canary.safetensors"]
)
def test_truncated_bundles(refused, sample_bundle, tmp_path, name):
    bundle = tmp_path / "b.kosine"
    shutil.copytree(sample_bundle, bundle)
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[: len(data) // 2])
    for verb, more in (("info", ()), ("verify", ()), ("score", ("가",))):
        assert f"{name} is " in refused(verb, bundle, *more)
    # Hashed anew, it is damaged all the same.
    if name != "tokenizer.json":
        rehash(bundle)
        assert name in refused("verify", bundle)
    (bundle / name).unlink()
    assert f"{name} is missing" in refused("verify", bundle)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[]", b'{"schema": 99}', b"[" * 10_000])
def test_damaged_manifests(refused, tmp_path, text):
    bundle = small_bundle(tmp_path / "b.kosine")
    (bundle / "manifest.json").write_bytes(text)
    for verb, more in (("info", ()), ("verify", ()), ("score", ("가",))):
        refused(verb, bundle, *more)


def test_hostile_names_do_not_reach_the_terminal(refused, tmp_path):
    bundle = small_bundle(tmp_path / "b.kosine")
    edit_manifest(bundle, lambda value: value.update({"\x1b]0;owned\x07\n": 1}))
    assert "\x1b" not in refused("info", bundle)
    bundle = small_bundle(tmp_path / "c.kosine")
    text = (bundle / "manifest.json").read_text(encoding="utf-8")
    text = text.replace('"packed.onnx"', r'"\u001b[2J\nname"')
    (bundle / "manifest.json").write_text(text, encoding="utf-8")
    assert "\x1b" not in refused("info", bundle)


# Texts


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LATIN1, "line 1 of '{file}' is not UTF-8 (byte 0xbe at column 1)"),
        ("가\n나".encode() + b"\xff\n", "line 2 of '{file}' is not UTF-8 (byte 0xff at column 4)"),
        ("가".encode("utf-16"), "line 1 of '{file}' is not UTF-8"),
        (b"a\nb\0c\n", "line 2 of '{file}' has a NUL character at 1"),
        (b"a\n" * 4099 + b"\0", "line 4100 of '{file}' has a NUL character at 0"),
        (
            f"가\n{SECRET * 8000}\n".encode(),
            "line 2 of '{file}' has 88000 characters, and no word of its first",
        ),
        (b"a\n" * 3000 + b"\xed\xa0\x80", "line 3001 of '{file}' is not UTF-8"),
    ],
)
@pytest.mark.parametrize("old", [None, b"an older file"])
def test_files_of_texts(refused, sample_bundle, tmp_path, data, message, old):
    file, out = tmp_path / "t.txt", tmp_path / "v.npy"
    file.write_bytes(data)
    if old is not None:
        out.write_bytes(old)
    before = tree(tmp_path)
    assert message.format(file=file) in refused("embed", sample_bundle, file, "-o", out)
    assert tree(tmp_path) == before


def test_files_that_are_none(refused, sample_bundle, tmp_path):
    out = tmp_path / "v.npy"
    assert "no file" in refused("embed", sample_bundle, tmp_path / "none", "-o", out)
    assert "is a folder" in refused("embed", sample_bundle, tmp_path, "-o", out)
    assert "none" in refused("eval", sample_bundle, tmp_path / "none")
    assert "is a folder" in refused("eval", sample_bundle, tmp_path)
    assert not out.exists()


def test_arguments_that_are_no_texts(refused, sample_bundle):
    assert "text 1 has a lone surrogate" in refused("score", sample_bundle, "가", "\udcff")
    long = SECRET * 8000
    assert "text 0 has 88000 characters" in refused("score", sample_bundle, long)


def test_an_interrupted_write_leaves_the_old_file(
    refused, sample_bundle, texts, tmp_path, monkeypatch
):
    out = tmp_path / "v.npy"
    out.write_bytes(b"an older file")
    before = tree(tmp_path)

    def failing(_file):
        raise OSError(28, "No space left on device", str(out))

    monkeypatch.setattr(os, "fsync", failing)
    assert "No space left" in refused("embed", sample_bundle, texts, "-o", out)
    assert tree(tmp_path) == before


# Pairs


@pytest.mark.parametrize(
    ("name", "text", "columns", "message"),
    [
        ("p.tsv", "", None, "has no columns sentence1,sentence2,score"),
        ("p.tsv", f"{SECRET}\t{SECRET}\t1\n", None, "has no columns sentence1,sentence2,score"),
        ("p.tsv", "a\tb\tc\n", "a,b", "names 2 columns"),
        ("p.tsv", "a\tb\tc\n", "a,b,d", "has no columns a,b,d"),
        ("p.tsv", "a\tb\tc\n", "0,1,2", "has no columns 0,1,2"),
        ("p.tsv", "가\t나\t1\n가\t나\n", "1,2,3", "line 2 of"),
        ("p.tsv", "가\t나\t1\n가\t나\tx\n", "1,2,3", "line 2 of"),
        ("p.tsv", "가\t나\t1\n가\t나\tnan\n", "1,2,3", "line 2 of"),
        ("p.tsv", "가\t나\t1\n가\t나\tinf\n", "1,2,3", "line 2 of"),
        ("p.tsv", "가\t나\t1\n", "1,2,3", "holds 1 pairs"),
        ("p.tsv", "가\t나\t1\n다\t라\t1\n", "1,2,3", "holds 2 pairs with 1 different scores"),
        ("p.csv", '가,나,1\n"가' + "나" * 200_000 + '",다,2\n', "1,2,3", ""),
        ("p.csv", "가,나,1\n가\0,나,2\n", "1,2,3", ""),
        ("p.csv", '가,나,1\n"가\n가",나\n', "1,2,3", "line 3 of"),
        ("p.csv", b"\xb0\xa1,b,1\n", "1,2,3", "line 1 of"),
        ("p.csv", b"\xef\xbb\xbfa,b,1\na,\xff,2\n", "1,2,3", "line 2 of"),
        ("p.tsv", b"a\tb\t1\na\t\xff\t2\n", "1,2,3", "line 2 of"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_pairs(refused, sample_bundle, tmp_path, name, text, columns, message, more):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    words = () if columns is None else ("--columns", columns)
    assert message in refused("eval", sample_bundle, tmp_path / name, *words, *more)


# Export


@pytest.fixture
def checkpoint(tmp_path):
    return Path(shutil.copytree(SAMPLE, tmp_path / "checkpoint"))


def config(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def cut(name):
    def change(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return change


BAD_CHECKPOINTS = {
    "unknown architecture": (config(model_type="t5", architectures=["T5Model"]), "t5"),
    "unknown activation": (config(hidden_act="swish"), "swish"),
    "relative positions": (config(position_embedding_type="relative_key"), "relative_key"),
    "another width": (config(hidden_size=512), ""),
    "another depth": (config(num_hidden_layers=5), ""),
    "no numbers": (config(hidden_size="wide"), ""),
    "truncated weights": (cut("model.safetensors"), "model.safetensors"),
    "truncated config": (cut("config.json"), "config.json"),
    "truncated modules": (cut("modules.json"), "modules.json"),
    "truncated tokenizer": (cut("tokenizer.json"), "tokenizer.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ""),
    "no config": (lambda folder: (folder / "config.json").unlink(), ""),
}


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_checkpoints_that_cannot_be_exported(refused, checkpoint, tmp_path, name):
    spoil, message = BAD_CHECKPOINTS[name]
    spoil(checkpoint)
    before = tree(tmp_path)
    assert message in refused("export", checkpoint, tmp_path / "out" / "x.kosine")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("{tmp}/none", "{tmp}/x"), "none"),
        (("{sample}", "{tmp}/x", "--target", "coreml"), "unknown target 'coreml'; known: onnx"),
        (("{sample}", "{tmp}/x", "--unicode", "NFKC"), "unknown Unicode form 'NFKC'"),
        (("{sample}", "{tmp}/x", "--prompt", "query"), "--prompt 'query' has no name"),
        (("{sample}", "{tmp}/x", "--prompt", "=x"), "has no name"),
        (("{sample}", "{tmp}/x", "--max-tokens", "2"), "2"),
        (("{sample}", "{tmp}/x", "--max-tokens", "100000"), "100000"),
        (("{sample}", "{tmp}"), "exists"),
        (("{sample}", "{tmp}", "--force"), "exists and is not a bundle"),
        (("{sample}", "{tmp}/file/x"), "cannot write"),
    ],
)
def test_exports_that_are_refused(refused, tmp_path, words, message):
    (tmp_path / "file").write_text("precious")
    before = tree(tmp_path)
    filled = [word.format(tmp=tmp_path, sample=SAMPLE) for word in words]
    assert message in refused("export", *filled)
    assert tree(tmp_path) == before


def test_what_the_system_refuses_has_a_remedy(refused, sample_bundle, texts, tmp_path):
    message = refused("eval", sample_bundle, tmp_path / "none.tsv")
    assert message.endswith("none.tsv: No such file or directory; name one that is there\n")
    message = refused("compare", sample_bundle, tmp_path / "none.npy", "--texts", texts)
    assert message.endswith("none.npy'; name a file of vectors, or a bundle\n")
    message = refused("embed", sample_bundle, texts, "-o", tmp_path / f"{'n' * 300}.npy")
    assert message.endswith("; name another file or folder\n")


# In a process of its own: what no handler caught would show as a traceback


@pytest.mark.parametrize(
    ("words", "stdin"),
    [
        (("info", "/nonexistent"), None),
        (("embed", "{bundle}", "-", "-o", "{tmp}/v.npy"), LATIN1),
        (("embed", "{bundle}", "-o", "{tmp}/v.npy"), b"a\0"),
        (("score", "{bundle}", "--backend", "none", "가"), None),
        (("bench-mark",), None),
    ],
)
def test_in_a_process(kosine_command, sample_bundle, tmp_path, words, stdin):
    done = kosine_command(
        *(word.format(bundle=sample_bundle, tmp=tmp_path) for word in words), stdin=stdin
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"kosine[^\n]*\n", done.stderr), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(refused, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot write" in refused("export", SAMPLE, tmp_path / "locked" / "x")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize(
    "words", [("info", "{bundle}"), ("info", "{bundle}", "--json"), ("--help",)]
)
def test_an_output_that_takes_nothing(sample_bundle, words):
    """One line, and none of the interpreter's about what it could not write either."""
    filled = [word.format(bundle=sample_bundle) for word in words]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kosine.cli", *filled],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    if words == ("--help",):
        assert done.stderr == ""
    else:
        assert done.returncode == 2
        assert re.fullmatch("kosine: [^\n]*No space left on device; make room[^\n]*\n", done.stderr)
