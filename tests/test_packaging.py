"""What a release is made of: the workflow that a person can turn on, versions, platforms."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import ROOT

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
WORKFLOW = ROOT / ".github" / "workflows" / "wheels.yml"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_the_workflow_starts_by_hand_only_and_may_only_read() -> None:
    read = yaml.safe_load(WORKFLOW.read_text("utf-8"))
    assert read[True] == {"workflow_dispatch": None}  # YAML 1.1 reads the key `on` as true
    assert read["permissions"] == {}
    for job in read["jobs"].values():
        assert job["permissions"] == {"contents": "read"}
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)


def test_the_workflow_builds_every_python_and_tries_both_ends_of_the_dependencies() -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]
    (step,) = (each for each in jobs["native"]["steps"] if "CIBW_BUILD" in each.get("env", {}))
    built = step["env"]["CIBW_BUILD"].split()
    stated = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if ":: 3." in each]
    assert built == [f"cp{each.replace('.', '')}-manylinux_x86_64" for each in stated]
    matrix = jobs["test"]["strategy"]["matrix"]
    tried = {*matrix["resolution"], *(each["resolution"] for each in matrix["include"])}
    assert tried == {"highest", "lowest-direct"}


def test_the_workflow_is_linted() -> None:
    beside = Path(sys.executable).with_name("zizmor")
    zizmor = beside if beside.exists() else shutil.which("zizmor")
    if zizmor is None:
        pytest.skip("zizmor is not installed (pip install zizmor)")
    done = subprocess.run(
        [zizmor, "--offline", "--no-progress", WORKFLOW],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_distributions_have_one_version_and_the_changelog_knows_it() -> None:
    plugin = tomllib.loads((ROOT / "export/optimum_plugin/pyproject.toml").read_text("utf-8"))
    assert plugin["project"]["version"] == PROJECT["version"]
    assert f"\n## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_no_engine_says_what_to_install(sample_bundle, monkeypatch) -> None:
    """As the wheel with no native module behaves where onnxruntime is absent."""
    import importlib.util

    import kosine
    from kosine.errors import MissingExtra
    from kosine_kernels import engine

    monkeypatch.setattr(engine, "_native", None, raising=False)
    monkeypatch.setattr(engine, "_native_missing", ImportError("not in this build"))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    with pytest.raises(MissingExtra, match=r"pip install 'kosine\[onnx\]'"):
        kosine.load(sample_bundle)
