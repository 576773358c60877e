"""Looking up what a result holds."""

from __future__ import annotations

from typing import Any

__all__ = [
    *("ENOUGH_ARRIVALS", "beaten_limits", "cosine_columns", "figure_of", "main_workload"),
    *("COSINE", "TRAINED_COSINE", "min_cosine", "trained_workloads"),
]

# A limit that somebody passes by more than noise was measured too low, and is none.
MOST_SHARE = 1.05
# A 95th percentile of fewer rests on too few of the slowest.
ENOUGH_ARRIVALS = 100
COSINE, TRAINED_COSINE = "lowest cosine", "lowest cosine, trained"


def main_workload(result: dict[str, Any]) -> str:
    """The workload that the report is about: korsts on base, or else the first."""
    keys: list[str] = list(result["workloads"])
    return next((key for key in keys if key == "korsts@base"), keys[0])


def figure_of(
    result: dict[str, Any], contestant: str, workload: str, mode: str, scope: str
) -> dict[str, Any] | None:
    """That figure, or None where it was not measured."""
    wanted = (contestant, workload, mode, scope)
    for figure in result["figures"]:
        if (figure["contestant"], figure["workload"], figure["mode"], figure["scope"]) == wanted:
            return dict(figure)
    return None


def trained_workloads(result: dict[str, Any]) -> list[str]:
    """Keys of the workloads that were run on a model with trained weights."""
    models = result["models"]
    return [key for key in result["workloads"] if models[_model(key)]["weights"] == "trained"]


def cosine_columns(result: dict[str, Any], workload: str) -> dict[str, list[str]]:
    """Heads of the columns of lowest cosines beside `workload`'s speeds, and over which workloads.

    How near int8 comes on random weights says little of trained ones, which stand beside it.
    """
    trained = trained_workloads(result)
    if workload in trained:
        return {TRAINED_COSINE: [workload]}
    return {COSINE: [workload]} | ({TRAINED_COSINE: trained} if trained else {})


def _model(workload: str) -> str:
    return workload.split("@", 1)[1]


def min_cosine(result: dict[str, Any], contestant: str, *workloads: str) -> float | None:
    """The lowest cosine to PyTorch's vectors over both ways in, or None where unchecked."""
    found = [
        float(entry["min_cosine"])
        for entry in result["parity"]
        if entry["contestant"] == contestant and entry["workload"] in workloads
    ]
    return min(found, default=None)


def beaten_limits(result: dict[str, Any]) -> set[str]:
    """Precisions whose matrix limit, as it was measured, some contestant passed."""
    precision = {entry["name"]: str(entry["precision"]) for entry in result["contestants"]}
    return {
        precision[figure["contestant"]]
        for figure in result["figures"]
        if (figure["summary"].get("limit_share") or 0.0) > MOST_SHARE
    }
