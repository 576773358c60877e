"""The service's promises at full size: mutations, slow clients, drains, swaps, an hour of load.

    python -m kosine_bench.reliability.service_soak BUNDLE [--only NAME ...] [--mutations N]
        [--hours H] [--out F]

Starts `kosine serve` for each experiment. Prints one JSON object; exits 1 if a figure is outside
its bar. `make soak-serve` runs it on the sample.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from kosine.threads import usable_cpus
from kosine_bench.load.service_process import ServiceProcess, serving
from kosine_bench.measuring import machine, result_file
from kosine_bench.reliability.harness import Figures
from kosine_bench.reliability.hostile_http import mutations, request, send, status_of

__all__ = ["drains", "load", "main", "mutated", "reloads", "slow_clients"]

NAMES = ("mutations", "slow_clients", "drains", "reloads", "load")
GROWTH_MIB = 16.0
KEY = "a-key-of-the-soak"
BODY = json.dumps({"model": "sample", "input": "오늘 서울의 날씨는 맑다"}).encode()


def post(service: ServiceProcess, body: bytes = BODY, path: str = "/v1/embeddings") -> float:
    """Seconds of one good request, on a connection of its own."""
    url = f"http://{service.address[0]}:{service.address[1]}{path}"
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    asked = urllib.request.Request(url, body, headers)
    started = time.perf_counter()
    with urllib.request.urlopen(asked, timeout=60) as answer:
        answer.read()
    return time.perf_counter() - started


def mutated(bundle: str, count: int, seed: int = 0) -> Figures:
    """Mutations of good requests: how many were answered 5xx, and whether it lives."""
    statuses: dict[int, int] = {}
    with serving(f"sample={bundle}") as service:
        for number, data in zip(range(count), mutations(seed), strict=False):
            status = status_of(send(service.address, data, 0.05))
            statuses[status] = statuses.get(status, 0) + 1
            if number % 100 == 0:
                post(service)
        post(service)
    server_errors = sum(n for status, n in statuses.items() if status >= 500)
    return {
        "mutations": count,
        "seed": seed,
        "statuses": {str(status): n for status, n in sorted(statuses.items())},
        "server_errors": server_errors,
        "passed": server_errors == 0,
    }


def slow_clients(bundle: str, writers: int = 500, readers: int = 100, good: int = 400) -> Figures:
    """A good client's p99 beside clients that send by the byte and clients that do not read."""
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    large = request(json.dumps({"model": "sample", "input": ["a"] * 300}).encode())

    def p99(service: ServiceProcess) -> float:
        return statistics.quantiles([post(service) for _ in range(good)], n=100)[98] * 1e3

    words = (f"sample={bundle}", "--read-timeout", "600", "--write-timeout", "600")
    with serving(*words) as service, ExitStack() as stack:
        p99(service)
        before = p99(service)
        slow = [
            stack.enter_context(socket.create_connection(service.address)) for _ in range(writers)
        ]
        for connection in slow:
            connection.sendall(head)
        for _ in range(readers):
            reader = stack.enter_context(socket.socket())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            reader.connect(service.address)
            reader.sendall(large)
        time.sleep(10)
        for connection in slow:
            connection.sendall(b"X")
        during = p99(service)
    return {
        "writers": writers,
        "readers": readers,
        "p99_ms_before": round(before, 3),
        "p99_ms_during": round(during, 3),
        "passed": during <= 2 * before,
    }


def drains(bundle: str, times: int = 20, callers: int = 8) -> Figures:
    """SIGTERM under load, again and again: requests that were sent and got no whole answer.

    Each request has a connection of its own. One that the kernel refuses was accepted by nobody.
    """
    lost: list[str] = []
    answered = [0] * callers
    for _ in range(times):
        with serving(f"sample={bundle}", "--drain-delay", "0.5") as service:
            many = threading.Barrier(callers + 1)

            def call(number: int, service: ServiceProcess, many: threading.Barrier) -> None:
                sent = 0
                while True:
                    answer = b""
                    try:
                        answer = send(service.address, request(BODY), 30.0)
                    except ConnectionRefusedError:
                        break
                    except OSError as error:
                        lost.append(repr(error))
                    if status_of(answer) == 200 and answer.endswith(b"}}"):
                        answered[number] += 1
                    else:
                        lost.append(repr(answer[:80]))
                    sent += 1
                    if sent == 20:
                        many.wait(60)

            threads = [
                threading.Thread(target=call, args=(number, service, many))
                for number in range(callers)
            ]
            for thread in threads:
                thread.start()
            many.wait(60)
        for thread in threads:
            thread.join()
    return {
        "drains": times,
        "answered": sum(answered),
        "lost": len(lost),
        "first_lost": lost[:3],
        "passed": not lost,
    }


def reloads(bundle: str, times: int = 200, callers: int = 3) -> Figures:
    """A bundle loaded anew under load, again and again: requests that failed."""
    failures: list[str] = []
    answered = [0] * callers
    ended = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys"
        keys.write_text(KEY, "ascii")
        with serving(f"sample={bundle}", "--api-key-file", str(keys)) as service:

            def call(number: int) -> None:
                body = json.dumps({"model": "sample", "input": ["가", "나", "다"] * 100}).encode()
                while not ended.is_set():
                    try:
                        post(service, body)
                        answered[number] += 1
                    except OSError as error:
                        failures.append(repr(error))

            threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
            for thread in threads:
                thread.start()
            for _ in range(times):
                post(service, b"", "/reload")
            ended.set()
            for thread in threads:
                thread.join()
    return {
        "swaps": times,
        "answered": sum(answered),
        "failures": len(failures),
        "first_failures": failures[:3],
        "passed": not failures,
    }


def load(bundle: str, seconds: float, callers: int = 8) -> Figures:
    """Good requests of all sizes for long: failures, and resident memory after the warm-up."""
    failures: list[str] = []
    counts = [0] * callers
    samples: list[int] = []
    with serving(f"sample={bundle}") as service:
        ends = time.monotonic() + seconds

        def call(number: int) -> None:
            sizes = (1, 1, 1, 8, 64, 300)
            while time.monotonic() < ends and len(failures) < 20:
                size = sizes[counts[number] % len(sizes)]
                texts = [f"{number}번 손님의 {i}번째 문장" for i in range(size)]
                try:
                    post(service, json.dumps({"model": "sample", "input": texts}).encode())
                except OSError as error:
                    failures.append(repr(error))
                counts[number] += 1

        threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
        for thread in threads:
            thread.start()
        while time.monotonic() < ends:
            time.sleep(max(0.2, seconds / 300))
            samples.append(service.resident_bytes())
        for thread in threads:
            thread.join()
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[2 * third :]
    growth = (statistics.median(last) - statistics.median(middle)) / 2**20 if middle else 0.0
    return {
        "seconds": seconds,
        "requests": sum(counts),
        "failures": len(failures),
        "first_failures": failures[:3],
        "rss_mib": round(samples[-1] / 2**20, 1),
        "rss_growth_mib": round(growth, 2),
        "passed": not failures and growth < GROWTH_MIB,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--mutations", type=int, default=50_000)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    options = parser.parse_args(argv)
    bundle = options.bundle
    experiments: dict[str, Callable[[], Figures]] = {
        "mutations": lambda: mutated(bundle, options.mutations),
        "slow_clients": lambda: slow_clients(bundle),
        "drains": lambda: drains(bundle),
        "reloads": lambda: reloads(bundle),
        "load": lambda: load(bundle, options.hours * 3_600),
    }
    found = {name: experiments[name]() for name in options.only}
    report = {
        "made": {"date": result_file.now(), **machine.commit()},
        "machine": machine.describe(usable_cpus()),
        **found,
    }
    text = json.dumps(report, indent=2) + "\n"
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, "utf-8")
    sys.stdout.write(text)
    return 0 if all(each["passed"] for each in found.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
