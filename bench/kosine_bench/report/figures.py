"""Looking up what a result holds."""

from __future__ import annotations

from typing import Any

__all__ = ["ENOUGH_ARRIVALS", "beaten_limits", "figure_of", "main_workload", "min_cosine"]

# A limit that somebody passes by more than noise was measured too low, and is none.
MOST_SHARE = 1.05
# A 95th percentile of fewer rests on too few of the slowest.
ENOUGH_ARRIVALS = 100


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


def min_cosine(result: dict[str, Any], contestant: str, workload: str) -> float | None:
    """The lowest cosine to PyTorch's vectors over both ways in, or None where unchecked."""
    found = [
        float(entry["min_cosine"])
        for entry in result["parity"]
        if (entry["contestant"], entry["workload"]) == (contestant, workload)
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
