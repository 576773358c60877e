"""A small result file's content, with figures that are easy to reckon with."""

from __future__ import annotations

from typing import Any

from kosine_bench.measuring.summary import summarise, summarise_load

WORKLOAD = "korsts@base"


def contestant(name: str, label: str, precision: str = "float32", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "ours": name.startswith("kosine"),
        "precision": precision,
        "device": "cpu",
        "versions": {},
        "import_seconds": [0.1],
        "absent": None,
        **changes,
    }


def figure(name: str, mode: str, seconds: list[float], scope: str) -> dict[str, Any]:
    """One round per entry of `seconds`; 100 sentences and 1 700 tokens in each."""
    rounds = [
        {
            "seconds": [second / 2, second / 2],
            "cpu_seconds": 2 * second,
            "sentences": 100,
            "tokens": 1700,
            "computed_tokens": 1700 if name.startswith("kosine") else 3400,
        }
        for second in seconds
    ]
    return {
        "contestant": name,
        "workload": WORKLOAD,
        "mode": mode,
        "scope": scope,
        "setting": {"batch_size": 32, "order": "arrival", "streams": 1},
        "summary": summarise(mode, rounds, limit=0.08),
        "rounds": rounds,
    }


def make_result() -> dict[str, Any]:
    """kosine at 1 s, a rival at 2 s, a faster one that computes the wrong thing, one absent."""
    contestants = [
        contestant("kosine-onnx-float32", "kosine onnx fp32"),
        contestant("right-float32", "Right fp32"),
        contestant("right-int8", "Right int8", "int8"),
        contestant("wrong-float32", "Wrong fp32"),
        contestant("gone-float32", "Gone fp32", absent="no such package\nsecond line"),
    ]
    seconds = {
        "kosine-onnx-float32": [1.0, 2.0, 1.0],
        "right-float32": [2.0, 4.0, 2.0],
        "right-int8": [0.5, 1.0, 0.5],
        "wrong-float32": [0.1, 0.1, 0.1],
    }
    cosines = {
        "kosine-onnx-float32": 1.0,
        "right-float32": 0.9999999,
        "right-int8": 0.991,
        "wrong-float32": 0.31,
    }
    load = [
        {"share": share, "rate": share * 100, "latencies": [share / 10] * 20}
        for share in (0.3, 0.5, 0.7, 0.9)
    ]
    return {
        "made": {
            "date": "2030-01-02T03:04:05Z",
            "commit": "0123456789abcdef",
            "dirty": False,
            "kosine": "0.1.0",
            "quick": False,
            "rounds": 3,
            "seed": 7,
            "modes": ["single", "burst", "bulk", "load"],
        },
        "machine": {
            "cpu": "Example CPU(R) 9000 @ 2.00GHz",
            "architecture": "x86_64",
            "cpus": 2,
            "threads": 2,
            "isa": ["avx2"],
            "memory_gib": 8.0,
            "system": "Linux",
            "python": "3.11.7",
        },
        "ceilings": {"matrix": {"float32": {"flops": 1e12}}, "memory": {"bytes_per_second": 1e10}},
        "models": {"base": {"layers": 12, "hidden": 768, "weights": "random"}},
        "workloads": {
            WORKLOAD: {
                "workload": "korsts",
                "model": "base",
                "sentences": "generated",
                "columns": [{"minimum": 5, "mean": 17.0, "maximum": 63, "prompt": False}],
            }
        },
        "contestants": contestants,
        "runs": [
            {
                "contestant": name,
                "model": "base",
                "load_seconds": [0.5, 0.7],
                "first_seconds": [0.1, 0.1],
                "peak_rss_bytes": [512 * 2**20, 500 * 2**20],
            }
            for name in seconds
        ],
        "parity": [
            {
                "contestant": name,
                "workload": WORKLOAD,
                "scope": scope,
                "min_cosine": cosine,
                "mean_cosine": cosine,
                "max_norm_error": 0.0,
            }
            for name, cosine in cosines.items()
            for scope in ("engine", "end-to-end")
        ],
        "tuning": [],
        "figures": [
            figure(name, mode, values, scope)
            for name, values in seconds.items()
            for mode in ("single", "burst", "bulk")
            for scope in ("engine", "end-to-end")
        ],
        "load": [
            {
                "contestant": name,
                "workload": WORKLOAD,
                "capacity": 100.0,
                "rows": summarise_load([{"points": load}]),
                "rounds": [{"capacity": 100.0, "points": load}],
            }
            for name in ("kosine-onnx-float32", "right-float32")
        ],
    }
