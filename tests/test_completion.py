"""Completion, asked of the shells themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from kosine import cli, completion


def script(shell):
    return subprocess.run(
        [sys.executable, "-m", "kosine.cli", "completion", shell],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


@pytest.fixture(scope="module")
def bash():
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    text = script("bash")

    def complete(*words):
        quoted = " ".join(f"'{word}'" for word in words)
        asked = (
            f"{text}\nCOMP_WORDS=(kosine {quoted}); COMP_CWORD={len(words)}; _kosine; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return set(done.stdout.split())

    return complete


def test_bash_knows_every_verb(bash):
    assert bash("") == {*cli.VERBS, "--help", "--version"}
    assert bash("e") == {"export", "embed", "eval"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("embed", "b", "--on-error", ""), {"fail", "null"}),
        (("embed", "b", "--precision", "u"), {"uint8", "ubinary"}),
        (("score", "b", "--backend", ""), {"auto", "native", "cuda", "onnx", "tensorrt"}),
        (("embed", "--res"), {"--resume"}),
        (("search", "b", "--text"), {"--text-field"}),
        (("info", "b", "--resume"), set()),
        (("completion", ""), set(completion.SHELLS)),
    ],
)
def test_bash_knows_options_and_values(bash, words, expected):
    assert bash(*words) == expected


def test_bash_names_files_elsewhere(bash, tmp_path):
    (tmp_path / "texts.txt").write_text("")
    assert bash("embed", "b", f"{tmp_path}/te") == {f"{tmp_path}/texts.txt"}


@pytest.mark.parametrize("verb", cli.VERBS)
def test_bash_offers_every_option_of_a_verb(bash, verb):
    parser = cli.Parser(prog=verb)
    cli.import_verb(verb, cli.VERBS[verb][0]).add_arguments(parser)
    assert bash(verb, "-") == set(parser._option_string_actions)


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_shell_reads_it(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    path = tmp_path / "script"
    path.write_text(script(shell))
    done = subprocess.run([shell, "-n", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_fish_completes():
    if shutil.which("fish") is None:
        pytest.skip("no fish here")
    asked = (
        script("fish")
        + "\ncomplete -C 'kosine embed b --on-error '\necho -\ncomplete -C 'kosine se'"
    )
    done = subprocess.run(["fish", "-c", asked], capture_output=True, text=True, check=True)
    values, verbs = done.stdout.split("-\n")
    assert set(values.split()) == {"fail", "null"}
    assert {line.split("\t")[0] for line in verbs.splitlines()} >= {"search"}


def test_fish_script_names_every_option():
    text = script("fish")
    for verb in cli.VERBS:
        assert f"-a {verb} -d " in text
    assert "'__fish_seen_subcommand_from embed' -l on-error -x -a 'fail null'" in text
    assert "'__fish_seen_subcommand_from search' -s k" in text
