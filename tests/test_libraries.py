"""The recipes of docs/libraries.md: with the real library where it is, else with its stub."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

import stub_libraries
from conftest import ROOT
from library_trials import Trials, trials_of
from recipes import CHECKS, DISTRIBUTIONS, recipes

RECIPES = recipes()


def test_every_recipe_is_held_to_something():
    assert RECIPES.keys() == CHECKS.keys() == DISTRIBUTIONS.keys()


@pytest.mark.filterwarnings("ignore")  # what the libraries say of themselves
@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name, sample, sample_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")  # for their worker processes
    try:
        importlib.metadata.version(DISTRIBUTIONS[name])
    except importlib.metadata.PackageNotFoundError:
        if name not in stub_libraries.STUBS:
            pytest.skip(f"{DISTRIBUTIONS[name]} is not installed, and has no stub")
        stub_libraries.install(name, monkeypatch)
    CHECKS[name](RECIPES[name].run(tmp_path, sample_bundle, sample, None), sample)


def test_what_make_test_libraries_said_last():
    """Every trial that there is, passed, with the versions that it was tried with."""
    newest = max((ROOT / "bench" / "results" / "libraries").glob("20*.json"))
    said = json.loads(newest.read_text("utf-8"))["trials"]
    assert said.keys() == trials_of(Trials(Path(), Path(), Path())).keys()
    for name, trial in said.items():
        assert trial["outcome"] == "passed", name
        assert trial["versions"], name
