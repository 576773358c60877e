"""`kosine embed`: every kind of input and output, equal texts, bad records, resuming, memory."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import random
import signal
import subprocess
import sys
import termios
import time

import numpy as np
import pytest

import kosine
from kosine import cli
from kosine.encoder import Encoder
from kosine.errors import InputError, MissingExtra
from kosine.jobs import checkpoint, encoding
from kosine.jobs.inputs import Record, open_input

TEXTS = ["한 남자가 기타를 친다.", "", '줄\n둘, "따옴표"', "한 남자가 기타를 친다.", "끝"]
IDS = ["a", "b", "c", "가", "e"]


@pytest.fixture
def embed(capfd, sample_bundle):
    """`kosine embed` on the sample in this process: (exit code, stdout, stderr)."""

    def call(*words):
        code = cli.main(["embed", str(sample_bundle), *map(str, words), "--backend", "onnx"])
        return code, *capfd.readouterr()

    return call


def write(path, texts=TEXTS, ids=IDS):
    """The same records as a file of the kind that the name's ending says."""
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows([("id", "text"), *zip(ids, texts, strict=True)])
    elif path.suffix == ".jsonl":
        lines = [
            json.dumps({"id": i, "text": t}, ensure_ascii=False)
            for i, t in zip(ids, texts, strict=True)
        ]
        path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow")
        import pyarrow.parquet as parquet

        table = arrow.table({"id": ids, "text": texts, "more": [1.5] * len(texts)})
        parquet.write_table(table, path, row_group_size=2)
    else:
        path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def read(path):
    """(ids, vectors as a list of arrays or None)."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        table = parquet.read_table(path)
        ids, rows = table["id"].to_pylist(), table["vector"].to_pylist()
    else:
        objects = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        ids, rows = [o["id"] for o in objects], [o["vector"] for o in objects]
    return ids, [None if row is None else np.array(row, np.float32) for row in rows]


# Inputs and outputs


@pytest.mark.parametrize("out", ["v.npy", "v.jsonl", "v.parquet"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_records_of_every_kind(embed, sample, tmp_path, name, out):
    source, path = write(tmp_path / name), tmp_path / out
    ids = () if out == "v.npy" else ("--id-field", "id")
    code, said, err = embed(source, "-o", path, "--text-field", "text", *ids, "--json")
    assert (code, err) == (0, "")
    expected = sample.encode(TEXTS)
    if out == "v.npy":
        np.testing.assert_allclose(np.load(path), expected, atol=1e-6)
        np.testing.assert_array_equal(np.load(path, mmap_mode="r"), np.load(path))
    else:
        found, vectors = read(path)
        assert found == IDS
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, out])
    value = json.loads(said)
    assert (value["texts"], value["computed_texts"], value["repeated_texts"]) == (5, 4, 1)
    assert value["shape"] == [5, 256]


def test_rows_without_an_id_are_numbered(embed, tmp_path):
    source = write(tmp_path / "t.txt", ["가", "나", "다"], None)
    for out in ("v.jsonl", "v.parquet"):
        assert embed(source, "-o", tmp_path / out)[0] == 0
        assert read(tmp_path / out)[0] == [0, 1, 2]


def test_the_fingerprint_is_in_the_parquet_file(embed, sample, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert embed(write(tmp_path / "t.txt"), "-o", tmp_path / "v.parquet")[0] == 0
    metadata = parquet.read_schema(tmp_path / "v.parquet").metadata
    assert metadata[b"kosine.fingerprint"].decode() == sample.fingerprint
    assert metadata[b"kosine.precision"] == b"float32"


@pytest.mark.parametrize("ids", [[3, 1, 2], ["x", "y", "z"]])
def test_ids_keep_their_type(embed, tmp_path, ids):
    source = write(tmp_path / "t.parquet", ["가", "나", "다"], ids)
    for out in ("v.jsonl", "v.parquet"):
        assert embed(source, "-o", tmp_path / out, "--id-field", "id")[0] == 0
        assert read(tmp_path / out)[0] == ids


def test_ids_of_two_types_are_no_column(embed, tmp_path):
    source = write(tmp_path / "t.jsonl", ["가", "나"], ["x", 1])
    assert embed(source, "-o", tmp_path / "v.jsonl", "--id-field", "id")[0] == 0
    assert read(tmp_path / "v.jsonl")[0] == ["x", 1]
    code, _, err = embed(source, "-o", tmp_path / "v.parquet", "--id-field", "id")
    assert code == 2
    assert "some ids are strings and some are numbers" in err
    assert not (tmp_path / "v.parquet").exists()


def test_nothing_at_all(embed, tmp_path):
    source = write(tmp_path / "t.jsonl", [], [])
    for out in ("v.npy", "v.jsonl", "v.parquet"):
        assert embed(source, "-o", tmp_path / out)[0] == 0
    assert np.load(tmp_path / "v.npy").shape == (0, 256)
    assert read(tmp_path / "v.jsonl") == read(tmp_path / "v.parquet") == ([], [])


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("out", ["v.npy", "v.jsonl", "v.parquet"])
def test_smaller_vectors(embed, sample, tmp_path, precision, out):
    path = tmp_path / out
    code, _, err = embed(
        write(tmp_path / "t.jsonl"), "-o", path, "--precision", precision, "--truncate-dim", 64,
        "--batch-tokens", 64,
    )  # fmt: skip
    assert (code, err) == (0, "")
    expected = sample.encode(TEXTS, precision=precision, truncate_dim=64)
    if out == "v.npy":
        assert np.load(path).dtype == expected.dtype
    found = np.load(path) if out == "v.npy" else np.array(read(path)[1])
    assert found.shape == expected.shape
    if precision in ("int8", "uint8"):  # another batch may round to the next step
        assert np.abs(found.astype(int) - expected).max() <= 1
    else:
        assert np.mean(found == expected) > 0.98


def test_json_lines_hold_every_bit(embed, tmp_path):
    source = write(tmp_path / "t.txt", ["고양이", "비행기"], None)
    assert embed(source, "-o", tmp_path / "v.jsonl")[0] == 0
    assert embed(source, "-o", tmp_path / "v.npy")[0] == 0
    np.testing.assert_array_equal(read(tmp_path / "v.jsonl")[1], np.load(tmp_path / "v.npy"))


def test_standard_input_and_output(kosine_command, sample, sample_bundle, tmp_path):
    lines = write(tmp_path / "t.jsonl").read_text("utf-8")
    done = kosine_command(
        "embed", sample_bundle, "-", "--text-field", "text", "--id-field", "id", "-o", "-",
        "--backend", "onnx", stdin=lines,
    )  # fmt: skip
    assert done.returncode == 0
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    assert [o["id"] for o in objects] == IDS
    np.testing.assert_allclose([o["vector"] for o in objects], sample.encode(TEXTS), atol=1e-6)
    assert "5 texts -> standard output (5, 256)" in done.stderr
    assert not list(tmp_path.glob("-"))


@pytest.mark.parametrize(
    ("name", "data", "words", "message"),
    [
        ("t.csv", b"text,id\n", ("--text-field", "body"), "has no column 'body'; its first line"),
        ("t.csv", b"", (), "has no column 'text'"),
        ("t.csv", b"text\n\xff\n", (), "line 2 of '{file}' is not UTF-8"),
        ("t.csv", b"id,text\n1\n", (), "line 2 of '{file}' has no text in 'text'"),
        ("t.jsonl", b"\n[1]\n", (), "line 2 of '{file}' is no JSON object"),
        ("t.jsonl", b"{\n", (), "line 1 of '{file}' is no JSON object"),
        ("t.jsonl", b"[" * 100_000, (), "line 1 of '{file}' is no JSON object"),
        ("t.jsonl", b'{"text": 3}\n', (), "line 1 of '{file}' has no text in 'text'"),
        ("t.jsonl", b'{"text": null}\n', (), "has no text in 'text'"),
        ("t.jsonl", b'{"text": "\\ud800"}\n', (), "line 1 of '{file}' has a lone surrogate"),
        ("t.jsonl", b'{"text": "a"}\n\xff\n', (), "line 2 of '{file}' is not UTF-8 (byte 0xff"),
        ("t.jsonl", b'{"text": "a"}', ("--id-field", "id"), "has no id in 'id'"),
        ("t.jsonl", b'{"text": "a", "id": true}', ("--id-field", "id"), "has no id in 'id'"),
        ("t.jsonl", b'{"text": "a", "id": 9223372036854775808}', ("--id-field", "id"), "no id in"),
        ("t.csv", b'text\n"a\nb"\n"c\nd\n', (), "not readable as CSV after line 3"),
        ("t.csv", b'"text\na\n', (), "not readable as CSV after line 0"),
        ("t.csv", b'text\n"a"b\n', (), "not readable as CSV after line 1"),
        ("t.parquet", b"PAR1", (), "is not readable as Parquet"),
    ],
)
def test_records_that_are_none(embed, tmp_path, name, data, words, message):
    (tmp_path / name).write_bytes(data)
    code, out, err = embed(tmp_path / name, "-o", tmp_path / "v.jsonl", *words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert message.format(file=tmp_path / name) in err
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("link", [False, True])
def test_the_input_is_not_written_over(embed, tmp_path, link):
    path = write(tmp_path / "t.jsonl")
    before = path.read_bytes()
    out = tmp_path / "link.jsonl" if link else path
    if link:
        out.symlink_to(path)
    code, _, err = embed(path, "-o", out)
    assert (code, err.count("\n")) == (2, 1)
    assert "is the input" in err
    assert path.read_bytes() == before


def test_columns_that_hold_no_texts(embed, tmp_path):
    source = write(tmp_path / "t.parquet")
    code, _, err = embed(source, "-o", tmp_path / "v.npy", "--text-field", "more")
    assert code == 2
    assert "column 'more'" in err
    assert "is of type double; strings" in err
    assert (
        "its columns are id, text, more"
        in embed(source, "-o", tmp_path / "v.npy", "--text-field", "body")[2]
    )


def test_without_pyarrow(monkeypatch, tmp_path):
    source = write(tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install 'kosine\[parquet\]'"):
        next(open_input(str(source)).records())


@pytest.mark.parametrize("out", ["v.npy", "v.jsonl", "v.parquet"])
def test_bad_records_become_null(embed, sample, tmp_path, out):
    pytest.importorskip("pyarrow")
    source, path = tmp_path / "t.jsonl", tmp_path / out
    source.write_bytes(b'{"text": "\\u0000"}\nno\n{"text": "a"}\n{"text": "\\u0000"}\n')
    code, said, err = embed(source, "-o", path, "--on-error", "null")
    assert code == 0
    null = "row is NaN" if out == "v.npy" else "vector is null"
    assert err == (
        f"kosine: line 1 has a NUL character at 0; its {null}\n"
        f"kosine: line 2 is no JSON object; its {null}\n"
        f"kosine: line 4 has a NUL character at 0; its {null}\n"
    )
    assert "3 rows are" in said
    vectors = np.load(path) if out == "v.npy" else read(path)[1]
    gone = [row is None or bool(np.isnan(row).all()) for row in vectors]
    assert gone == [True, True, False, True]
    np.testing.assert_allclose(vectors[2], sample.encode("a"), atol=1e-6)


# Equal texts


class Counting:
    """An encoder that counts what it is asked to compute."""

    def __init__(self, encoder: Encoder) -> None:
        self.real, self.texts = encoder, []

    def encode(self, texts, **options):
        self.texts += texts
        return self.real.encode(texts, **options)

    def count_tokens(self, *words):
        return self.real.count_tokens(*words)


def test_equal_texts_are_computed_once(sample):
    counting = Counting(sample)
    job = encoding.RecordEncoder(counting, open_input("-"))
    for window in (["가", "나", "가"], ["나", "다"], ["가", "라", "라"]):
        found = job.encode([Record(i, text) for i, text in enumerate(window)])
        np.testing.assert_allclose(found.vectors, sample.encode(window), atol=1e-6)
    assert counting.texts == ["가", "나", "다", "라"]
    assert job.repeated == 4


def test_what_is_kept_is_bounded(sample):
    counting = Counting(sample)
    job = encoding.RecordEncoder(counting, open_input("-"), cache_bytes=3 * (1024 + 204))
    for text in "가나다가라가나":  # 가 is met again, and so stays; 나 is the oldest
        job.encode([Record(1, text)])
    assert counting.texts == ["가", "나", "다", "라", "나"]
    assert len(job._cache) == 3


def test_long_texts_make_short_windows():
    records = [
        Record(i, "가" * size) for i, size in enumerate([10, 1 << 18, 5, 1 << 17, 1 << 17, 1])
    ]
    sizes = [len(window) for window in encoding.windows(records)]
    assert sizes == [2, 3, 1]
    assert [len(w) for w in encoding.windows([Record(1, "")] * 5000)] == [2048, 2048, 904]


# Resuming

DRIVER = """
import sys
from kosine import cli
from kosine.jobs import checkpoint, encoding
checkpoint.EVERY_S = 0
encoding.WINDOW = 16
sys.exit(cli.main(sys.argv[1:]))
"""


def many_texts(path, count):
    rng = random.Random(3)
    words = ["고양이", "비행기", "기타", "남자", "아이", "비", "주가", "웃는다"]
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(count)]
    return write(path, texts, list(range(count)))


@pytest.mark.parametrize("out", ["v.npy", "v.jsonl", "v.parquet"])
def test_killed_at_any_moment(sample_bundle, tmp_path, out):
    """SIGKILL again and again, at random moments; the file is the one of a run left alone."""
    source = many_texts(tmp_path / "t.jsonl", 2_700)

    def words(path, *more):
        ids = () if out == "v.npy" else ("--id-field", "id")
        return [
            sys.executable, "-c", DRIVER, "embed", sample_bundle, source, "-o", path, "--backend",
            "onnx", "--threads", "1", *ids, *more,
        ]  # fmt: skip

    whole, path = tmp_path / f"whole-{out}", tmp_path / out
    subprocess.run(words(whole), check=True, capture_output=True)
    rng, kills, seen = random.Random(5), 0, set()
    state = tmp_path / f".{out}.resume"
    while True:
        process = subprocess.Popen(
            words(path, "--resume"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if kills < 6:
            # As it starts, or a random moment after it has begun to write.
            deadline = time.monotonic() + 60
            before = state.read_bytes() if state.exists() else b""
            while process.poll() is None and time.monotonic() < deadline:
                if state.exists() and state.read_bytes() != before:
                    break
                time.sleep(0.002)
            time.sleep(rng.random() * 0.15)
        else:
            process.wait(timeout=300)
        finished = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        said, err = process.communicate()
        if finished:
            assert process.returncode == 0, err
            break
        kills += 1
        assert not path.exists() or path.stat().st_size > 0
        if state.exists():
            seen.add(json.loads(state.read_text())["progress"]["rows"])
    assert kills >= 2
    assert len(seen) >= 2, "it was killed at work"
    assert "of them from the run before" in said
    if out == "v.npy":
        np.testing.assert_allclose(np.load(path), np.load(whole), atol=1e-6)
    else:
        ids, vectors = read(path)
        assert ids == list(range(2_700))
        np.testing.assert_allclose(vectors, read(whole)[1], atol=1e-6)
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.fixture
def stopped(embed, tmp_path, monkeypatch):
    """A run that dies after its third checkpoint, without any chance to clean up."""

    class Dead(BaseException):
        pass

    source = many_texts(tmp_path / "t.txt", 50)
    monkeypatch.setattr(encoding, "WINDOW", 8)
    monkeypatch.setattr(checkpoint, "EVERY_S", 0)

    def stop(*words, after=3, out="v.npy"):
        calls = []

        def dying(self, progress, output, *, now=False):
            real(self, progress, output, now=now)
            calls.append(progress.rows)
            if len(calls) == after:
                raise Dead

        with monkeypatch.context() as patch:
            real = checkpoint.Checkpoint.write
            patch.setattr(checkpoint.Checkpoint, "write", dying)
            with pytest.raises(Dead):
                embed(source, "-o", tmp_path / out, *words)
        return source

    return stop


def test_it_goes_on_and_counts_on(embed, sample, stopped, tmp_path):
    source, path = stopped(), tmp_path / "v.npy"
    assert not path.exists()
    code, out, _ = embed(source, "-o", path, "--resume", "--json")
    value = json.loads(out)
    assert (code, value["resumed_at"], value["texts"], value["shape"]) == (0, 24, 50, [50, 256])
    assert value["computed_texts"] + value["repeated_texts"] >= 50
    texts = source.read_text("utf-8").splitlines()
    np.testing.assert_allclose(np.load(path), sample.encode(texts), atol=1e-6)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["t.txt", "v.npy"]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("--truncate-dim", "8"), "--truncate-dim has changed, none to 8"),
        (("--precision", "int8"), "--precision has changed, 'float32' to 'int8'"),
        (("--prompt", "다른 질문"), "the prompt's sha256 has changed"),
        (("--on-error", "null"), "--on-error has changed, 'fail' to 'null'"),
        (("--dtype", "float16"), "the bundle's fingerprint has changed"),
    ],
)
def test_another_option_is_refused(embed, stopped, tmp_path, words, name):
    source = stopped()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    code, out, err = embed(source, "-o", tmp_path / "v.npy", "--resume", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"--resume: {name}" in err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert embed(source, "-o", tmp_path / "v.npy", "--resume", "--batch-tokens", 99)[0] == 0


def test_another_input_is_refused(embed, stopped, tmp_path):
    source = stopped()
    data = source.read_bytes()
    for changed in (data + b"more\n", data[:-10], data.replace(data[:3], data[-4:-1], 1)):
        source.write_bytes(changed)
        code, _, err = embed(source, "-o", tmp_path / "v.npy", "--resume")
        assert code == 2
        assert "--resume: the input's sha256 has changed" in err
    source.write_bytes(data)  # the same texts, whenever they were written
    os.utime(source, (1, 1))
    assert embed(source, "-o", tmp_path / "v.npy", "--resume")[0] == 0


def test_another_bundle_is_refused(capfd, stopped, sample_bundle, tmp_path_factory, tmp_path):
    import shutil

    from rehash import perturb_weights

    source = stopped()
    other = tmp_path_factory.mktemp("other") / "b.kosine"
    shutil.copytree(sample_bundle, other)
    perturb_weights(other)
    capfd.readouterr()
    words = ["embed", other, source, "-o", tmp_path / "v.npy", "--resume", "--backend", "onnx"]
    assert cli.main([str(word) for word in words]) == 2
    assert "--resume: the bundle's fingerprint has changed" in capfd.readouterr().err


def test_without_resume_it_starts_again(embed, stopped, tmp_path):
    source = stopped()
    code, out, _ = embed(source, "-o", tmp_path / "v.npy", "--json")
    assert (code, json.loads(out)["resumed_at"]) == (0, 0)
    assert embed(source, "-o", tmp_path / "w.npy", "--resume")[0] == 0  # nothing to go on with
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), np.load(tmp_path / "w.npy"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99, "identity": {}, "progress": {}}'])
def test_a_state_that_is_none(embed, stopped, tmp_path, text):
    source = stopped()
    (tmp_path / ".v.npy.resume").write_text(text)
    code, _, err = embed(source, "-o", tmp_path / "v.npy", "--resume")
    assert code == 2
    assert "does not say how far a run came" in err


def test_a_part_that_lost_bytes(embed, stopped, tmp_path):
    source = stopped()
    part = tmp_path / ".v.npy.part"
    part.write_bytes(part.read_bytes()[:500])
    code, _, err = embed(source, "-o", tmp_path / "v.npy", "--resume")
    assert code == 2
    assert "'.v.npy.part' has 500 bytes; at least the" in err
    part.unlink()  # gone altogether: there is nothing to go on with
    assert embed(source, "-o", tmp_path / "v.npy", "--resume")[0] == 0


@pytest.mark.parametrize("out", ["v.npy", "v.jsonl", "v.parquet"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_while_it_is_put_in_place(embed, stopped, tmp_path, out, moment, monkeypatch):
    from pathlib import Path

    class Dead(BaseException):
        pass

    source, path = stopped(out=out), tmp_path / out
    real = Path.replace

    def dying(self, target):
        if Path(target) == path and moment == "before":
            raise Dead
        real(self, target)
        if Path(target) == path:
            raise Dead

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Dead):
            embed(source, "-o", path, "--resume")
    assert path.exists() == (moment == "after")
    code, said, _ = embed(source, "-o", path, "--resume", "--json")
    assert (code, json.loads(said)["shape"]) == (0, [50, 256])
    rows = np.load(path) if out == "v.npy" else read(path)[1]
    assert len(rows) == 50
    assert [p.name for p in sorted(tmp_path.iterdir())] == sorted(["t.txt", out])


def test_an_interrupt_keeps_what_is_done(embed, tmp_path, monkeypatch):
    source, path = many_texts(tmp_path / "t.txt", 50), tmp_path / "v.npy"
    monkeypatch.setattr(encoding, "WINDOW", 8)
    monkeypatch.setattr(checkpoint, "EVERY_S", 0)
    with monkeypatch.context() as patch:
        real, calls = encoding.RecordEncoder.encode, []

        def interrupted(self, window):
            calls.append(window)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return real(self, window)

        patch.setattr(encoding.RecordEncoder, "encode", interrupted)
        code, out, err = embed(source, "-o", path)
    assert (code, out) == (130, "")
    assert err == "kosine: interrupted; the same command with --resume goes on\n"
    code, out, _ = embed(source, "-o", path, "--resume", "--json")
    assert json.loads(out)["resumed_at"] == 24
    assert np.load(path).shape == (50, 256)


def test_an_interrupt_of_a_pipe_leaves_nothing(embed, tmp_path, monkeypatch):
    def interrupted(_self, _window):
        raise KeyboardInterrupt

    monkeypatch.setattr(encoding.RecordEncoder, "encode", interrupted)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n")))
    assert embed("-", "-o", tmp_path / "v.npy")[0] == 130
    assert list(tmp_path.iterdir()) == []


def test_a_reader_of_vectors_that_goes_away(sample_bundle, tmp_path):
    """As in `kosine embed ... -o - | head -1`."""
    source = many_texts(tmp_path / "t.txt", 3000)
    process = subprocess.Popen(
        [sys.executable, "-m", "kosine.cli", "embed", sample_bundle, source, "-o", "-"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert json.loads(process.stdout.readline())["id"] == 0
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(300), err) == (0, b"")


def test_null_rows_are_remembered(embed, stopped, tmp_path, monkeypatch):
    source = tmp_path / "t.txt"
    stopped("--on-error", "null")
    lines = source.read_bytes().splitlines(keepends=True)
    lines[2] = lines[40] = b"\0\n"
    for leftover in (".v.npy.part", ".v.npy.resume"):
        (tmp_path / leftover).unlink()
    source.write_bytes(b"".join(lines))

    class Dead(BaseException):
        pass

    real = checkpoint.Checkpoint.write

    def dying(self, progress, output, *, now=False):
        real(self, progress, output, now=now)
        raise Dead

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "write", dying)
        with pytest.raises(Dead):
            embed(source, "-o", tmp_path / "v.npy", "--on-error", "null")
    code, out, _ = embed(
        source, "-o", tmp_path / "v.npy", "--on-error", "null", "--resume", "--json"
    )
    value = json.loads(out)
    assert (code, value["resumed_at"], value["failed_texts"]) == (0, 8, 2)
    assert [entry["line"] for entry in value["failed"]] == [3, 41]


def test_two_runs_do_not_write_one_file(tmp_path):
    from kosine.jobs.outputs import open_output

    like = np.empty((0, 4), np.float32)
    output = open_output(tmp_path / "v.npy", like, {})
    with pytest.raises(InputError, match="another run is writing"):
        open_output(tmp_path / "v.npy", like, {})
    output.close()
    open_output(tmp_path / "v.npy", like, {}).close()


# On a terminal, and in little memory


def test_a_terminal_shows_rate_and_time_left(sample_bundle, tmp_path):
    source = many_texts(tmp_path / "t.txt", 5000)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    done = subprocess.Popen(
        [sys.executable, "-m", "kosine.cli", "embed", sample_bundle, source, "-o",
         tmp_path / "v.npy", "--backend", "onnx"],
        stdout=subprocess.DEVNULL, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # the other side is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    assert done.wait(300) == 0
    text = shown.decode()
    assert "5000/5000" in text
    assert "text/s" in text
    assert "<00:00" in text


def test_memory_does_not_grow_with_the_texts(sample, tmp_path, monkeypatch, sample_bundle):
    """Six times the texts, the same peak: what Python and NumPy hold is traced."""
    import tracemalloc

    monkeypatch.setitem(encoding.RecordEncoder.__init__.__kwdefaults__, "cache_bytes", 1 << 20)
    vectors = sample.encode(["가"])

    def fast(_self, texts, **_options):
        return np.repeat(vectors, len(texts), axis=0) if len(texts) else vectors[:0]

    monkeypatch.setattr(Encoder, "encode", fast)
    peaks = {}
    for out in ("v.npy", "v.parquet"):
        for count in (10_000, 60_000):
            source = tmp_path / f"{count}.txt"
            source.write_text("".join(f"글 {i}\n" for i in range(count)), encoding="utf-8")
            tracemalloc.start()
            code = cli.main(["embed", str(sample_bundle), str(source), "-o", str(tmp_path / out),
                             "--backend", "onnx"])  # fmt: skip
            peaks[count] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert code == 0
        assert peaks[60_000] < peaks[10_000] * 1.1 + (4 << 20), peaks
    assert np.load(tmp_path / "v.npy", mmap_mode="r").shape == (60_000, 256)
    assert kosine.load(sample_bundle, backend="onnx").dim == 256
