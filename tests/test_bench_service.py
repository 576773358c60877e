"""The soak of the service and its measurement beside others: small, and able to fail."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from kosine_bench.load import service as bench
from kosine_bench.load import service_chart
from kosine_bench.load.service_process import free_port, started
from kosine_bench.reliability import hostile_http, service_soak

# Is ready, and answers whatever is posted with 500.
BROKEN = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(500)
        self.end_headers()
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_the_soak_passes(sample_bundle):
    assert service_soak.mutated(str(sample_bundle), 40)["passed"]
    figures = service_soak.load(str(sample_bundle), 2.0, callers=2)
    assert figures["failures"] == 0
    assert figures["requests"] > 0
    assert service_soak.drains(str(sample_bundle), 1, callers=2)["passed"]


def test_the_soak_sees_what_is_broken(monkeypatch, tmp_path):
    script = tmp_path / "broken.py"
    script.write_text(BROKEN, "utf-8")

    @contextlib.contextmanager
    def serving(*_: str):
        port = free_port()
        with started([sys.executable, str(script), str(port)], port) as process:
            yield process

    monkeypatch.setattr(service_soak, "serving", serving)
    monkeypatch.setattr(service_soak, "post", lambda *_: 0.0)
    figures = service_soak.mutated("", 20)
    assert not figures["passed"]
    assert figures["server_errors"] > 0


def test_mutations_repeat():
    first, second = hostile_http.mutations(3), hostile_http.mutations(3)
    assert [next(first) for _ in range(200)] == [next(second) for _ in range(200)]


def test_the_measurement_beside_a_bare_route(sample_bundle):
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed (apt install wrk)")
    report = bench.measure(str(sample_bundle), None, seconds=1, rounds=1, clients=4)
    assert set(report["services"]) == {"bare", "kosine", "kosine_float", "batcher", "engine"}
    for figures in report["services"].values():
        assert figures["requests_per_s"] > 0
        assert figures.get("errors", 0) == 0
    assert report["to_bare"] > 0


RESULTS = ROOT / "bench" / "results" / "service"
PAGE = ROOT / "docs" / "service.md"


def newest(pattern: str) -> tuple[Path, dict[str, Any]]:
    path = max(RESULTS.glob(pattern))
    return path, json.loads(path.read_text("utf-8"))


def test_the_page_shows_the_newest_run():
    path, report = newest("*cpu.json")
    page = PAGE.read_text("utf-8")
    assert service_chart.table(report) in page
    for linked in (path, path.with_suffix(".svg")):
        assert f"(../{linked.relative_to(ROOT).as_posix()})" in page
    assert not report["made"]["dirty"]


def test_the_picture_is_that_of_the_newest_run(tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need the bench extra")
    path, report = newest("*cpu.json")
    service_chart.plot(report, tmp_path / "drawn.svg")
    drawn = (tmp_path / "drawn.svg").read_text("utf-8")
    kept = path.with_suffix(".svg").read_text("utf-8")
    for figures in report["models"].values():
        for service in figures["services"].values():
            assert f"<!-- {service['requests_per_s']:,.0f} -->" in kept
    assert drawn.count("<path") == kept.count("<path")


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*soak*.json")), ids=lambda path: path.stem)
def test_the_soaks_that_are_kept_passed(path):
    report = json.loads(path.read_text("utf-8"))
    experiments = [report[name] for name in service_soak.NAMES if name in report]
    assert experiments
    assert all(each["passed"] for each in experiments)
    assert f"(../{path.relative_to(ROOT).as_posix()})" in PAGE.read_text("utf-8")
