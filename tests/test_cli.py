"""The command line: the verbs of the design, their output and their exit codes."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import kosine
from conftest import SAMPLE
from factories import build
from kosine import cli
from kosine.commands import score
from rehash import perturb_weights

TEXTS = ["한 남자가 기타를 치고 있다.", "", "남자가 악기를 연주하고 있다."]


@pytest.fixture
def run(capfd):
    """The command line in this process: (exit code, stdout, stderr)."""

    def call(*words):
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as stop:  # argparse: help and usage
            code = stop.code
        out, err = capfd.readouterr()
        return code, out, err

    return call


def one_object(out: str) -> dict:
    """The only JSON object on stdout, and nothing else there."""
    assert out.endswith("\n")
    assert out.count("\n") == 1
    value = json.loads(out)
    assert isinstance(value, dict)
    return value


@pytest.fixture
def texts_file(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("\n".join(TEXTS).encode() + b"\n")
    return path


# The sample calls


def test_export_then_verify_against_its_checkpoint(run, tmp_path):
    checkpoint = build(tmp_path / "checkpoint", family="bert", max_length=32)
    bundle = tmp_path / "tiny.kosine"
    code, out, err = run(
        "export", checkpoint, bundle, "--target", "onnx", "--target", "onnx-fp16",
        "--prompt", "query=질문: ", "--max-tokens", 24, "--unicode", "NFC", "--json",
    )  # fmt: skip
    assert code == 0, err
    value = one_object(out)
    assert value["targets"] == ["onnx", "onnx-fp16"]
    assert value["max_tokens"] == 24
    assert value["parity"]["min_cosine"] >= 0.999999
    manifest = kosine.load(bundle).manifest
    assert manifest.prompts["query"] == "질문: "
    assert manifest.unicode == "NFC"
    code, out, err = run("verify", bundle, "--against", checkpoint, "--json")
    value = one_object(out)
    assert (code, value["check"], value["passed"]) == (0, "parity", True), err
    # Once more: refused, then replaced.
    before = (bundle / "manifest.json").read_bytes()
    code, out, err = run("export", checkpoint, bundle)
    assert (code, out) == (2, "")
    assert "exists" in err
    assert (bundle / "manifest.json").read_bytes() == before
    code, out, _ = run("export", checkpoint, bundle, "--force")
    assert code == 0
    assert "tiny.kosine: bert" in out
    assert (bundle / "manifest.json").read_bytes() != before


@pytest.mark.parametrize("dtype", ["auto", "float32", "float16"])
def test_verify_alone_replays_the_canary(run, sample_bundle, dtype):
    code, out, err = run("verify", sample_bundle, "--backend", "onnx", "--dtype", dtype, "--json")
    value = one_object(out)
    assert (code, err) == (0, "")
    assert value["passed"] is True
    assert (value["check"], value["texts"], value["ids_equal"]) == ("canary", 64, 64)
    assert value["min_cosine"] >= value["gate"]["min_cosine"]
    assert value["dtype"] == ("float32" if dtype == "auto" else dtype)
    code, out, _ = run("verify", sample_bundle, "--backend", "onnx", "--dtype", dtype)
    assert code == 0
    assert "PASSED" in out


def test_info(run, sample_bundle):
    code, out, _ = run("info", sample_bundle, "--json")
    value = one_object(out)
    assert code == 0
    assert value["dim"] == 256
    engines = {(e["backend"], e["dtype"]): e for e in value["engines"]}
    assert engines["onnx", "float32"]["runs"]
    assert (
        engines["onnx", "float32"]["fingerprint"]
        == kosine.load(sample_bundle, backend="onnx").fingerprint
    )
    code, out, _ = run("info", sample_bundle)
    assert code == 0
    assert "256 dimensions" in out
    assert engines["onnx", "float32"]["fingerprint"] in out


def test_embed_a_file(run, sample, sample_bundle, texts_file, tmp_path):
    code, out, err = run(
        "embed", sample_bundle, texts_file, "-o", tmp_path / "v.npy", "--backend", "onnx"
    )
    assert (code, err) == (0, "")
    assert "3 texts ->" in out
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), sample.encode(TEXTS))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["texts.txt", "v.npy"]


def test_embed_standard_input(kosine_command, sample, sample_bundle, tmp_path):
    for words in (("-",), ()):
        done = kosine_command(
            "embed", sample_bundle, *words, "-o", tmp_path / "v.npy", "--backend", "onnx",
            "--truncate-dim", 7, "--prompt", "질문: ", "--json", stdin="\n".join(TEXTS) + "\n",
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        value = one_object(done.stdout)
        assert value["shape"] == [3, 7]
        assert value["texts"] == 3
        assert value["fingerprint"] == sample.fingerprint
        expected = sample.encode(TEXTS, prompt="질문: ", truncate_dim=7)
        np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-6)
        (tmp_path / "v.npy").unlink()


def test_score(run, sample, sample_bundle):
    code, out, _ = run("score", sample_bundle, *TEXTS, "--backend", "onnx", "--json")
    value = one_object(out)
    assert code == 0
    assert value["texts"] == TEXTS
    vectors = sample.encode(TEXTS)
    np.testing.assert_allclose(value["scores"], vectors @ vectors.T, atol=1e-5)
    code, out, _ = run("score", sample_bundle, *TEXTS, "--prompt-name", "query")
    assert code == 0
    assert "3 texts on" in out
    assert out.count("1.0000") >= 3


PAIRS = [
    ("고양이가 잔다.", "고양이가 자고 있다.", 4.5),
    ("비가 온다.", "주가가 올랐다.", 0.5),
    ("아이가 웃는다.", "아이가 울고 있다.", 2.0),
]


def write_pairs(path, header, order=(0, 1, 2), separator="\t"):
    lines = [separator.join(str(pair[i]) for i in order) for pair in PAIRS]
    path.write_text("\n".join([*header, *lines]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("header", "order", "columns", "suffix"),
    [
        (["sentence1\tsentence2\tscore"], (0, 1, 2), None, ".tsv"),
        (["score\tsentence1\tsentence2"], (2, 0, 1), None, ".tsv"),
        (["a\tb\tc"], (0, 1, 2), "a,b,c", ".tsv"),
        (["a\tb\tc"], (0, 1, 2), "1,2,3", ".tsv"),
        ([], (0, 1, 2), "1,2,3", ".tsv"),
        ([], (1, 2, 0), "3,1,2", ".txt"),
        (["sentence1,sentence2,score"], (0, 1, 2), None, ".csv"),
    ],
)
def test_eval_gives_the_correlations(
    run, sample, sample_bundle, tmp_path, header, order, columns, suffix
):
    separator = "," if suffix == ".csv" else "\t"
    path = write_pairs(tmp_path / f"pairs{suffix}", header, order, separator)
    more = () if columns is None else ("--columns", columns)
    code, out, _ = run("eval", sample_bundle, path, *more, "--backend", "onnx", "--json")
    value = one_object(out)
    assert (code, value["pairs"]) == (0, 3)
    left, right = (sample.encode([p[i] for p in PAIRS]) for i in (0, 1))
    expected = np.corrcoef((left * right).sum(axis=1), [p[2] for p in PAIRS])[0, 1]
    assert value["cosine"]["pearson"] == pytest.approx(expected, abs=1e-5)
    assert set(value) >= {"cosine", "dot", "manhattan", "euclidean"}
    code, out, _ = run("eval", sample_bundle, path, *more)
    assert code == 0
    assert out.splitlines()[0].split() == ["Pearson", "Spearman"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("suffix", "end"),
    [(".csv", "\n"), (".CSV", "\r\n"), (".csv", "\r"), (".tsv", "\n"), (".tsv", "\r\n")],
)
def test_pairs_as_spreadsheets_write_them(tmp_path, suffix, end, mark):
    from kosine.commands.evaluate import read_pairs

    separator = "\t" if suffix == ".tsv" else ","
    lines = ["sentence1 sentence2 score", "가 나 1", "다 라 2"]
    text = mark + end.join(line.replace(" ", separator) for line in lines) + end
    path = tmp_path / f"pairs{suffix}"
    path.write_bytes(text.encode())
    left, right, human = read_pairs(str(path), "sentence1,sentence2,score")
    assert (left, right, human.tolist()) == (["가", "다"], ["나", "라"], [1.0, 2.0])


def test_a_cell_keeps_its_line_ends(tmp_path):
    from kosine.commands.evaluate import read_pairs

    cells = ["첫 줄\n둘째 줄", "하나\r\n둘", '"따옴표", 쉼표']
    path = tmp_path / "pairs.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        rows = [("sentence1", "sentence2", "score"), (*cells[:2], 1), (cells[2], cells[0], 2)]
        csv.writer(file).writerows(rows)
    left, right, _ = read_pairs(str(path), "sentence1,sentence2,score")
    assert left == [cells[0], cells[2]]
    assert right == [cells[1], cells[0]]


def test_eval_counts_ties_as_the_evaluators_do():
    from kosine.commands.evaluate import correlations

    scipy_stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    scores, human = rng.integers(0, 4, 60).astype(float), rng.integers(0, 6, 60).astype(float)
    found = correlations(scores, human)
    assert found["spearman"] == pytest.approx(scipy_stats.spearmanr(scores, human).statistic)
    assert found["pearson"] == pytest.approx(scipy_stats.pearsonr(scores, human).statistic)


@pytest.mark.parametrize("constant", [0, 1])
def test_no_correlation_with_what_does_not_vary(constant):
    from kosine.commands.evaluate import correlations

    sides = [np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 2.5])]
    sides[constant] = np.full(3, 1.0, np.float32)
    with pytest.raises(kosine.errors.InputError, match="scores are 1; correlations need"):
        correlations(*sides)


def test_eval_on_korsts(run, sample_bundle, shared):
    path = shared("data/korsts-dev.tsv")
    code, out, err = run("eval", sample_bundle, path, "--backend", "onnx", "--json")
    value = one_object(out)
    assert code == 0, err
    assert value["pairs"] == 1500
    assert value["cosine"]["spearman"] > 0.75


# A check that fails


def test_a_bundle_whose_weights_were_perturbed_fails(run, sample_bundle, tmp_path):
    bundle = tmp_path / "bad.kosine"
    shutil.copytree(sample_bundle, bundle)
    perturb_weights(bundle)
    code, out, err = run("verify", bundle, "--backend", "onnx", "--json")
    value = one_object(out)
    assert (code, err) == (1, "")
    assert value["passed"] is False
    assert value["ids_equal"] == 64
    code, out, _ = run("verify", bundle, "--backend", "onnx")
    assert code == 1
    assert "FAILED" in out
    code, out, err = run("score", bundle, "가", "나")  # auto replays the canary before it settles
    assert (code, out) == (1, "")
    assert "fails the canary" in err
    assert err.count("\n") == 1


# How a file of texts is read


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\n\n", ["a", ""]),
        (b"\n\na\n \n", ["", "", "a", " "]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\r\n\r\nb\r", ["a", "", "b"]),
        (b"a\r\r\n", ["a\r"]),
        (b"a\rb\x0bc\x0cd\x1ce\n", ["a\rb\x0bc\x0cd\x1ce"]),
        ("a\u2028b\u2029c\u0085d\ne".encode(), ["a\u2028b\u2029c\u0085d", "e"]),
        ("\ufeffa\n\ufeffb\n".encode(), ["a", "\ufeffb"]),
        ("\ufeff\na\n".encode(), ["", "a"]),
        ("\ufeff".encode(), []),
        ("가\t나\n".encode(), ["가\t나"]),
    ],
)
def test_lines_end_at_line_feeds_only(tmp_path, data, texts):
    from kosine.commands.options import read_texts

    (tmp_path / "t").write_bytes(data)
    assert list(read_texts(str(tmp_path / "t"))) == texts


@pytest.mark.parametrize(("data", "rows"), [(b"", 0), (b"\n", 1), (b"a\n\n\nb", 4)])
def test_embed_has_a_row_for_every_line(run, sample_bundle, tmp_path, data, rows):
    (tmp_path / "t").write_bytes(data)
    code, out, _ = run("embed", sample_bundle, tmp_path / "t", "-o", tmp_path / "v.npy", "--json")
    assert code == 0
    assert one_object(out)["shape"] == [rows, 256]
    assert np.load(tmp_path / "v.npy").shape == (rows, 256)


def test_a_spreadsheets_text_file_is_the_same_text(run, sample, sample_bundle, tmp_path):
    (tmp_path / "t").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(TEXTS).encode() + b"\r\n")
    code, _, err = run(
        "embed", sample_bundle, tmp_path / "t", "-o", tmp_path / "v.npy", "--backend", "onnx"
    )
    assert (code, err) == (0, "")
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), sample.encode(TEXTS))


BAD_LINES = {
    2: (b"a\0b", "has a NUL character at 1"),
    3: (b"\xbe\xc8", "is not UTF-8"),
    5: ("가".encode() * 90_000, "has 90000 characters, and no word of its first 262144 bytes"),
}
GOOD_LINES = {1: "고양이", 4: "", 6: "비행기가 이륙하고 있다. " * 9000, 7: "끝"}


@pytest.fixture
def mixed_file(tmp_path):
    lines = {line: data for line, (data, _) in BAD_LINES.items()}
    lines |= {line: text.encode() for line, text in GOOD_LINES.items()}
    path = tmp_path / "mixed.txt"
    path.write_bytes(b"".join(lines[line] + b"\n" for line in sorted(lines)))
    return path


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_bad_lines_may_become_null_rows(run, sample, sample_bundle, mixed_file, tmp_path, more):
    out_file = tmp_path / "v.npy"
    words = ("embed", sample_bundle, mixed_file, "-o", out_file, "--backend", "onnx", *more)
    assert run(*words)[0] == 2
    assert not out_file.exists()
    code, out, err = run(*words, "--on-error", "null")
    assert code == 0
    vectors = np.load(out_file)
    assert vectors.dtype == np.float32
    for line in range(1, 8):
        row = vectors[line - 1]
        if line in GOOD_LINES:
            np.testing.assert_allclose(row, sample.encode(GOOD_LINES[line]), atol=2e-6)
        else:
            assert np.isnan(row).all()
    if more:
        failed = {entry["line"]: entry["error"] for entry in one_object(out)["failed"]}
        assert err == ""
        assert one_object(out)["texts"] == len(GOOD_LINES)
    else:
        pattern = r"kosine: line (\d+) (.*); its row is NaN"
        failed = {int(n): what for n, what in re.findall(pattern, err)}
        assert err.count("\n") == len(BAD_LINES)
        assert "3 rows are NaN" in out
    assert set(failed) == set(BAD_LINES)
    assert all(failed[line].startswith(what) for line, (_, what) in BAD_LINES.items())


def test_null_rows_over_several_windows(run, sample_bundle, tmp_path):
    from kosine.encoder import WINDOW

    bad = {7, WINDOW, WINDOW + 1, 2 * WINDOW + 3}
    lines = [b"\0" if line in bad else b"a" for line in range(1, 2 * WINDOW + 9)]
    (tmp_path / "t").write_bytes(b"\n".join(lines))
    code, out, _ = run(
        "embed", sample_bundle, tmp_path / "t", "-o", tmp_path / "v.npy", "--backend", "onnx",
        "--on-error", "null", "--truncate-dim", 3, "--json",
    )  # fmt: skip
    assert code == 0
    assert {entry["line"] for entry in one_object(out)["failed"]} == bad
    rows = np.load(tmp_path / "v.npy")
    assert rows.shape == (len(lines), 3)
    assert {int(i) + 1 for i in np.flatnonzero(np.isnan(rows).any(axis=1))} == bad


def test_a_vector_that_is_not_finite_becomes_a_null_row(run, sample_bundle, tmp_path, monkeypatch):
    from kosine.backends.onnx.cpu import OnnxBackend

    marked = kosine.load(sample_bundle, backend="onnx").prepare("고양이").batch.ids.tolist()
    real = OnnxBackend.run

    def spoiled(self, batch):
        pooled = real(self, batch)
        for row in range(len(batch)):
            if batch.take([row]).ids.tolist() == marked:
                pooled.vectors[row] = np.nan
        return pooled

    monkeypatch.setattr(OnnxBackend, "run", spoiled)
    (tmp_path / "t").write_text("가\n고양이\n나\n", encoding="utf-8")
    words = ("embed", sample_bundle, tmp_path / "t", "-o", tmp_path / "v.npy", "--backend", "onnx")
    code, _, err = run(*words)
    named = f"kosine: line 2 of '{tmp_path / 't'}' gives a vector that is not finite;"
    assert (code, err.startswith(named)) == (2, True)
    code, _, err = run(*words, "--on-error", "null")
    assert (code, err) == (
        0, "kosine: line 2 gives a vector that is not finite; its row is NaN\n"
    )  # fmt: skip
    assert np.isnan(np.load(tmp_path / "v.npy")).all(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    "words", [("--prompt", "\0"), ("--prompt-name", "none"), ("--truncate-dim", "0")]
)
def test_null_rows_are_for_bad_texts_and_not_for_bad_options(
    run, sample_bundle, texts_file, tmp_path, words
):
    code, out, err = run(
        "embed", sample_bundle, texts_file, "-o", tmp_path / "v.npy", "--on-error", "null", *words
    )
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert not (tmp_path / "v.npy").exists()


# Terminals of other encodings


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp949", "utf-8"])
@pytest.mark.parametrize(
    "words",
    [
        ("score", "{bundle}", "고양이 é 🙂", "나" * 60),
        ("info", "{bundle}"),
        ("verify", "{bundle}", "--backend", "onnx"),
        ("embed", "{bundle}", "{texts}", "-o", "{out}", "--on-error", "null"),
        ("eval", "{bundle}", "{pairs}", "--columns", "점수1,점수2,값"),
        ("score", "{bundle}", "--prompt-name", "없는 이름 é🙂", "가"),
        ("info", "{tmp}/없는 묶음 é🙂"),
        ("고양이 é",),
        ("--help",),
    ],
    ids=lambda words: words[0],
)
def test_no_terminal_is_too_small(sample_bundle, tmp_path, words, encoding):
    """JSON is UTF-8 everywhere; tables and errors lose characters, and nothing else."""
    (tmp_path / "글 é.txt").write_bytes(b"a\nb\0\n")
    pairs = "점수1\t점수2\t값\n가\t나\t1\n가\t고양이\t2\n"
    (tmp_path / "쌍.tsv").write_text(pairs, encoding="utf-8")
    (tmp_path / "\udcff").write_bytes(b"")  # a name that is no UTF-8
    places = {
        "bundle": sample_bundle, "tmp": tmp_path, "texts": tmp_path / "글 é.txt",
        "out": tmp_path / "결과 é\udcff.npy", "pairs": tmp_path / "쌍.tsv",
    }  # fmt: skip
    filled = [word.format(**places) for word in words]
    verb = words[0] in cli.VERBS
    for more in ((), ("--json",)) if verb else ((),):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "kosine.cli",
                *filled,
                *more,
            ],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        )
        assert b"Traceback" not in done.stderr
        fails = "없는" in " ".join(words) or words[0] == "고양이 é"
        assert done.returncode == (2 if fails else 0), done.stderr
        if fails:
            assert done.stderr.count(b"\n") == 1
            assert done.stdout == b""
        elif more:
            assert isinstance(json.loads(done.stdout.decode("utf-8")), dict)
        else:
            done.stdout.decode(encoding)
    if words[0] == "score" and not fails:
        assert json.loads(done.stdout)["texts"] == filled[2:]


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_export_on_a_small_terminal(tmp_path, more):
    done = subprocess.run(
        [sys.executable, "-m", "kosine.cli", "export", SAMPLE, tmp_path / "고양이 é.kosine", *more],
        capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    if more:
        assert json.loads(done.stdout.decode("utf-8"))["bundle"].endswith("고양이 é.kosine")
    else:
        assert b"??? ?.kosine: " in done.stdout


def test_a_table_lines_up_with_what_is_shown(sample_bundle):
    for encoding in ("ascii", "cp949", "utf-8"):
        done = subprocess.run(
            [sys.executable, "-m", "kosine.cli", "score", str(sample_bundle), "고양이 é", "abc"],
            capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": encoding},
        )  # fmt: skip
        rows = done.stdout.decode(encoding).splitlines()[1:3]
        assert len({score._columns(row) for row in rows}) == 1
        assert ("고양이" in rows[0]) == (encoding != "ascii")
        assert ("?" in rows[0]) == (encoding != "utf-8")


# Help, version and pipes


@pytest.mark.parametrize("words", [("--help",), *((verb, "--help") for verb in cli.VERBS)])
def test_help(run, words):
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert out.startswith("usage: kosine")
    if len(words) == 1:
        assert all(f"  {verb}" in out for verb in cli.VERBS)


def test_version(run):
    assert run("--version") == (0, f"kosine {kosine.__version__}\n", "")


def test_the_installed_command_is_this_one(sample_bundle):
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="kosine")
    assert script.load() is cli.main
    done = subprocess.run(
        [sys.executable, "-m", "kosine.cli", "info", str(sample_bundle)],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0


@pytest.mark.parametrize(
    "words", [("score", "{bundle}", "가", "나"), ("info", "{bundle}", "--json")]
)
def test_a_reader_that_goes_away_is_no_error(sample_bundle, words):
    """As in `kosine score ... | head -0`."""
    filled = [word.format(bundle=sample_bundle) for word in words]
    process = subprocess.Popen(
        [sys.executable, "-m", "kosine.cli", *filled],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(120) == 0
    assert err == b""


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes them by >&-")
def test_standard_streams_may_be_closed(sample_bundle, tmp_path):
    """As a supervisor may start it: what is opened next does not take a stream's place."""
    (tmp_path / "texts.txt").write_text("가\n나\n", encoding="utf-8")
    embed = f"embed '{sample_bundle}' '{tmp_path}/texts.txt' -o '{tmp_path}/v.npy'"
    for words, code in ((f"{embed} >&- 2>&- <&-", 0), (f"info '{tmp_path}/none' >&- 2>&-", 2)):
        line = f"'{sys.executable}' -m kosine.cli {words}"
        assert subprocess.run(["sh", "-c", line], check=False).returncode == code
    assert np.load(tmp_path / "v.npy").shape == (2, 256)
    line = f"'{sys.executable}' -m kosine.cli info '{tmp_path}/none' >&-"
    done = subprocess.run(["sh", "-c", line], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
