"""The HTTP service beside other services on the same machine, under `wrk`.

    python -m kosine_bench.load.service BUNDLE [--checkpoint DIR] [--base] [--seconds 15]
        [--rounds 3] [--clients 64] [--out FILE] [--plot FILE]

Needs wrk (apt install wrk). Each service runs in a process of its own, one at a time, in rounds of
opposite order; figures are medians of the rounds. Every client sends one text of the korsts
workload's mean length at a time, as fast as it is answered; one client alone gives the unloaded
p50. `--base` measures the benchmark's base model too.

- kosine: `kosine serve`, OpenAI's route, base64
- kosine_float: the same with numbers
- bare: a Starlette route on the same server that reads the body and returns the same bytes
- naive: FastAPI's usual service around sentence-transformers (with a checkpoint)
- infinity: infinity_emb (with a checkpoint)

The last two run in environments of their own, which are made on first use. infinity gets a copy of
the checkpoint whose modules have the names that its older sentence-transformers knows. Beside them
stand, without HTTP, what the batcher answers with as many callers ("batcher"), and what the engine
gives with as many texts a call ("engine").
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import kosine
from kosine.errors import InputError
from kosine.threads import usable_cpus
from kosine_bench.contestants import environment
from kosine_bench.contestants.contestant import Absent
from kosine_bench.load.base_model import base_bundle, base_checkpoint
from kosine_bench.load.service_chart import plot
from kosine_bench.load.service_process import ServiceProcess, free_port, serving, started
from kosine_bench.measuring import machine, result_file

__all__ = ["main", "measure"]

# The environment that each rival runs in.
HOMES = {"naive": "rivals", "infinity": "infinity"}
TEXT = "한 남자가 무대 위에서 기타를 치며 노래하고 있다."
SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [==[%s]==]
done = function(summary, latency, requests)
  io.write(string.format("RESULT %%d %%d %%d %%.1f %%.1f\\n", summary.requests, summary.duration,
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""
BARE = """
import base64, sys
import numpy as np, uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
data = open(sys.argv[2], "rb").read()
async def route(request):
    await request.body()
    return Response(data, media_type="application/json")
app = Starlette(routes=[Route("/v1/embeddings", route, methods=["POST"])])
uvicorn.run(app, port=int(sys.argv[1]), log_level="critical", access_log=False)
"""
NAIVE = """
import sys
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[2], device="cpu")
class Body(BaseModel):
    input: str | list[str]
app = FastAPI()
@app.post("/v1/embeddings")
def embed(body: Body):
    return {"data": model.encode(body.input, normalize_embeddings=True).tolist()}
uvicorn.run(app, port=int(sys.argv[1]), log_level="critical", access_log=False)
"""


def measure(
    bundle: str, checkpoint: str | None, seconds: int, rounds: int, clients: int
) -> dict[str, Any]:
    """All services of one model, in turns.

    Returns:
        By service: requests/s, p50 and p99 in ms, the p50 of one client alone, CPU seconds per
        1,000 requests, resident MiB after them, errors; the ratios of kosine's requests/s to the
        bare route's, the batcher's own and the engine's, medians of the rounds'; and why a
        service is not there.

    Raises:
        InputError: wrk is not installed.
    """
    if shutil.which("wrk") is None:
        raise InputError("wrk is not installed", remedy="apt install wrk")
    found: dict[str, list[dict[str, float]]] = {}
    pythons = dict.fromkeys(("bare", "kosine_float", "kosine"), sys.executable)
    absent = {}
    for service, home in HOMES.items() if checkpoint else ():
        try:
            pythons[service] = str(environment.python(home, _say))
            # Whether it can read this checkpoint.
            with tempfile.TemporaryDirectory() as name:
                _write_scripts(Path(name))
                with _start(service, pythons[service], Path(name), bundle, checkpoint):
                    pass
        except (Absent, RuntimeError) as error:
            pythons.pop(service, None)
            absent[service] = str(error)[-200:]
    # What kosine is compared with stands beside it: a machine's speed drifts within a round.
    inside = {"batcher": _batcher, "engine": _engine}
    names = [*pythons]
    place = names.index("kosine") + 1
    names[place:place] = inside
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_scripts(folder)
        _write_answer(folder, bundle)
        for number in range(rounds):
            for service in names if number % 2 == 0 else names[::-1]:
                if service in inside:
                    figures = inside[service](bundle, seconds, clients)
                else:
                    with _start(service, pythons[service], folder, bundle, checkpoint) as process:
                        figures = _load(process, service, folder, seconds, clients)
                found.setdefault(service, []).append(figures)
    services = {
        service: {key: statistics.median(each[key] for each in runs) for key in runs[0]}
        for service, runs in found.items()
    }

    def ratio(other: str) -> float:
        rounds = zip(found["kosine"], found[other], strict=True)
        rates = [own["requests_per_s"] / its["requests_per_s"] for own, its in rounds]
        return round(statistics.median(rates), 3)

    encoder = kosine.load(bundle)
    return {
        "engine": f"{encoder.backend.name} {encoder.backend.dtype}",
        "services": services,
        "absent": absent,
        "to_bare": ratio("bare"),
        "to_batcher": ratio("batcher"),
        "to_engine": ratio("engine"),
        "rounds": found,
    }


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _body(encoding: str) -> str:
    body = {"model": "model", "input": TEXT, "encoding_format": encoding}
    return json.dumps(body, ensure_ascii=False)


def _write_scripts(folder: Path) -> None:
    (folder / "bare.py").write_text(BARE, "utf-8")
    (folder / "naive.py").write_text(NAIVE, "utf-8")


def _write_answer(folder: Path, bundle: str) -> None:
    """What kosine answers, for the bare route to return."""
    with serving(f"model={bundle}") as process:
        url = f"http://127.0.0.1:{process.address[1]}/v1/embeddings"
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(url, _body("base64").encode(), headers)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            (folder / "answer.json").write_bytes(answer.read())


def _start(
    service: str, python: str, folder: Path, bundle: str, checkpoint: str | None
) -> AbstractContextManager[ServiceProcess]:
    if service.startswith("kosine"):
        return serving(f"model={bundle}")
    port = free_port()
    if service == "infinity":
        checkpoint = str(_older(Path(str(checkpoint)), folder / "older"))
        # Its package cannot be run as one; this is what its command does.
        start = "import sys; from infinity_emb.cli import cli; sys.exit(cli())"
        words = ["-c", start, "v2", "--model-id", str(checkpoint), "--port", str(port)]
        words += [
            "--served-model-name",
            "model",
            "--url-prefix",
            "/v1",
            "--device",
            "cpu",
            "--no-model-warmup",
        ]
    else:
        argument = str(folder / "answer.json") if service == "bare" else str(checkpoint)
        words = [str(folder / f"{service}.py"), str(port), argument]
    return started([python, *words], port)


def _older(checkpoint: Path, copy: Path) -> Path:
    """A checkpoint that sentence-transformers 3 can read: since 5 its modules and the pooling's
    fields have other names. Weights and tokenizer are the same."""
    if copy.exists():
        return copy
    shutil.copytree(checkpoint, copy)
    modules = json.loads((copy / "modules.json").read_text("utf-8"))
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        module["type"] = f"sentence_transformers.models.{kind}"
        settings = copy / module["path"] / "config.json"
        if kind == "Pooling":
            pooling = json.loads(settings.read_text("utf-8"))
            if "pooling_mode" in pooling:
                mode = {"mean": "mean_tokens", "cls": "cls_token"}[pooling["pooling_mode"]]
                pooling = {
                    "word_embedding_dimension": pooling["embedding_dimension"],
                    f"pooling_mode_{mode}": True,
                }
                _replace(settings, pooling)
        elif kind == "Transformer":
            length = json.loads((copy / "tokenizer_config.json").read_text("utf-8"))
            limit = {"max_seq_length": length["model_max_length"], "do_lower_case": False}
            _replace(copy / "sentence_bert_config.json", limit)
    _replace(copy / "modules.json", modules)
    return copy


def _replace(path: Path, value: Any) -> None:
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def _load(
    process: ServiceProcess, service: str, folder: Path, seconds: int, clients: int
) -> dict[str, float]:
    script = folder / "load.lua"
    script.write_text(SCRIPT % _body("float" if service == "kosine_float" else "base64"), "utf-8")
    url = f"http://127.0.0.1:{process.address[1]}/v1/embeddings"
    command = ["wrk", "-t", "1", "-s", str(script), "--timeout", "60"]

    def loaded(clients: int, seconds: int) -> list[float]:
        done = subprocess.run(
            [*command, "-c", str(clients), "-d", str(seconds), url],
            capture_output=True,
            check=True,
            text=True,
        )
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
        return [float(word) for word in line.split()[1:]]

    loaded(clients, 2)  # warms up
    alone = loaded(1, max(3, seconds // 4))
    before = process.cpu_seconds()
    requests, micros, errors, p50, p99 = loaded(clients, seconds)
    return {
        "requests_per_s": round(requests / (micros / 1e6), 1),
        "p50_ms": p50 / 1e3,
        "p99_ms": p99 / 1e3,
        "alone_p50_ms": alone[3] / 1e3,
        "cpu_s_per_1000": round((process.cpu_seconds() - before) / requests * 1e3, 3),
        "resident_mib": round(process.resident_bytes() / 2**20, 1),
        "errors": errors,
    }


def _batcher(bundle: str, seconds: int, callers: int) -> dict[str, float]:
    """As many callers as there are clients, on the batcher itself."""
    counts = [0] * callers
    with kosine.Batcher(kosine.load(bundle)) as batcher:
        ends = time.monotonic() + seconds

        def call(number: int) -> None:
            while time.monotonic() < ends:
                batcher.submit(TEXT).result()
                counts[number] += 1

        batcher.submit(TEXT).result()
        began = time.monotonic()
        threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"requests_per_s": round(sum(counts) / (time.monotonic() - began), 1)}


def _engine(bundle: str, seconds: int, texts: int) -> dict[str, float]:
    """As many texts a call, one call after the other."""
    encoder = kosine.load(bundle)
    batch = [TEXT] * texts
    encoder.encode(batch)
    count, began = 0, time.monotonic()
    while time.monotonic() < began + seconds:
        encoder.encode(batch)
        count += texts
    return {"requests_per_s": round(count / (time.monotonic() - began), 1)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--checkpoint", help="what the bundle was made of, for the rivals")
    parser.add_argument("--base", action="store_true", help="the benchmark's base model too")
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    parser.add_argument("--plot", type=Path, help="where to draw requests per second (.svg)")
    given = parser.parse_args(argv)
    asked = (given.seconds, given.rounds, given.clients)
    models = {"sample": measure(given.bundle, given.checkpoint, *asked)}
    if given.base:
        models["base"] = measure(str(base_bundle()), str(base_checkpoint()), *asked)
    report = {
        "made": {"date": result_file.now(), **machine.commit()},
        "machine": machine.describe(usable_cpus()),
        "text_characters": len(TEXT),
        "clients": given.clients,
        "seconds": given.seconds,
        "models": models,
    }
    text = json.dumps(report, indent=1) + "\n"
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text, "utf-8")
    if given.plot is not None:
        plot(report, given.plot)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
