"""What Linux says of a process's memory."""

from __future__ import annotations

from pathlib import Path

__all__ = ["process_memory"]


def process_memory(process: int | str, field: str) -> int:
    """Bytes; 0 where the process has ended, or the system does not tell.

    Args:
        process: Its id, or "self".
        field: VmHWM is the most that was resident so far; RssAnon leaves out the pages of mapped
            files (weights, libraries), which the system may drop.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text("ascii", "replace")
    except OSError:
        return 0
    line = next((line for line in status.splitlines() if line.startswith(f"{field}:")), "x 0")
    return int(line.split()[1]) * 1024
