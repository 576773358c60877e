"""What a run gathers: raw samples by contestant and workload, and the result's sections of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kosine_bench.contestants.contestant import Contestant
from kosine_bench.measuring.summary import limit_seconds, summarise, summarise_load
from kosine_bench.measuring.work_file import WorkFile

__all__ = ["Samples", "agreement"]


class Samples:
    """Samples as workers answered them.

    Attributes:
        runs: Load times and peak memory by contestant and model size, a value per round.
        parity: Agreement with the reference, one entry per contestant, workload and way in.
        tuning: The chosen setting by contestant, workload and mode.
        rounds: Timed calls by contestant, workload, mode and way in, one entry per round.
        load: Latencies under load by contestant and workload, one entry per round.
    """

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], dict[str, Any]] = {}
        self.parity: list[dict[str, Any]] = []
        self.tuning: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.rounds: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
        self.load: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def sections(
        self,
        files: Sequence[WorkFile],
        kinds: Sequence[type[Contestant]],
        ceilings: Mapping[str, Any],
    ) -> dict[str, Any]:
        """The sections of the result file that hold samples, and figures made from them."""
        by_key = {work.key: work for work in files}
        precisions = {kind.name: kind.precision for kind in kinds}
        return {
            "runs": [
                {"contestant": name, "model": size, **run}
                for (name, size), run in self.runs.items()
                if run["load_seconds"]
            ],
            "parity": self.parity,
            "tuning": [
                {"contestant": name, "workload": key, "mode": mode, **tuned}
                for (name, key, mode), tuned in self.tuning.items()
            ],
            "figures": [
                {
                    "contestant": name,
                    "workload": key,
                    "mode": mode,
                    "scope": scope,
                    "setting": self.tuning[name, key, mode]["best"],
                    "summary": summarise(
                        mode, rounds, _limit(by_key[key], precisions[name], mode, rounds, ceilings)
                    ),
                    "rounds": rounds,
                }
                for (name, key, mode, scope), rounds in self.rounds.items()
            ],
            "load": [
                {
                    "contestant": name,
                    "workload": key,
                    "capacity": float(np.median([one["capacity"] for one in rounds])),
                    "rows": summarise_load(rounds),
                    "rounds": rounds,
                }
                for (name, key), rounds in self.load.items()
            ],
        }


def _limit(
    work: WorkFile,
    precision: str,
    mode: str,
    rounds: Sequence[Mapping[str, Any]],
    ceilings: Mapping[str, Any],
) -> float | None:
    calls = work.calls(mode, rounds[0]["sentences"])
    return limit_seconds(work.size, precision, calls, ceilings)


def agreement(vectors: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> dict[str, float]:
    """Cosines of rows against the reference's, norms divided out, and the rows' own norms.

    A row that is not finite points away from everything.
    """
    finite = np.isfinite(vectors).all(axis=1)
    rows = np.where(finite[:, None], vectors.astype(np.float64), -expected)
    norms = np.linalg.norm(rows, axis=1)
    cosines = (rows * expected).sum(axis=1) / (norms * np.linalg.norm(expected, axis=1))
    return {
        "min_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
        "max_norm_error": float(np.abs(norms - 1).max()),
    }
