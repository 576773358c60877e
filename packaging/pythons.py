"""The Pythons of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

VERSIONS = ("3.11", "3.12", "3.13", "3.14")
ASK = "import sys; print('%d.%d' % sys.version_info[:2])"


def pythons() -> dict[str, Path]:
    """Version to interpreter, of those kosine supports: on PATH, or installed by pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found: dict[str, Path] = {}
    for version in VERSIONS:
        beside = sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)
        on_path = shutil.which(f"python{version}")
        for each in (*beside, *([on_path] if on_path else [])):
            # A shim is on PATH whether or not its version is there.
            said = subprocess.run([each, "-c", ASK], capture_output=True, text=True, check=False)
            if said.stdout.strip() == version:
                found[version] = Path(each)
                break
    return found
