"""A newcomer's walk through docs/index.md: its commands as they stand, from first to last.

    python packaging/walk.py [DIST]

In a fresh folder. pip finds kosine in DIST, as it will on PyPI. Two things are not of the page:
CHECKPOINT is the sample, and the service runs in the background, not in another terminal.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from pythons import pythons

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "index.md"
PORT = 8080
READY = (
    "curl --silent --show-error --fail --retry 60 --retry-delay 1 --retry-all-errors "
    f"http://127.0.0.1:{PORT}/health/ready"
)


def script(page: str, checkpoint: Path) -> str:
    """The page's code as one shell script."""
    lines = ["set -euo pipefail"]
    for language, code in re.findall(r"^```(\w+)\n(.*?)^```", page, re.S | re.M):
        if language != "bash":
            lines.append(f"python - <<'END'\n{code}END")
        elif code.startswith("kosine serve "):
            lines.append(f"{code.strip()} &\nservice=$!\ntrap 'kill $service' EXIT\n{READY}")
        else:
            lines.append(code.replace("CHECKPOINT", f"'{checkpoint}'"))
    return "\n".join([*lines, "trap - EXIT", "kill $service", "wait $service"])


def walk(dist: Path, python: Path) -> str:
    """What the commands print; SystemExit where one fails, or the service ends with an error."""
    with socket.socket() as taken:
        if taken.connect_ex(("127.0.0.1", PORT)) == 0:
            raise SystemExit(f"something answers at port {PORT}, the page's")
    away = ("PYTHONPATH", "PIP_CONSTRAINT", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in away}
    environment["PATH"] = f"{python.parent}{os.pathsep}{environment['PATH']}"
    environment["PIP_FIND_LINKS"] = str(dist.resolve())
    told = script(PAGE.read_text("utf-8"), ROOT / "export" / "sample")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            ["bash", "-c", told], cwd=folder, env=environment, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"docs/index.md ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


if __name__ == "__main__":
    newest = [*pythons().values()][-1]
    print(walk(Path(*sys.argv[1:]) if sys.argv[1:] else ROOT / "dist", newest))
