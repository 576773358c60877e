"""Names of devices: "auto", "cpu", "cuda", "cuda:N"."""

from __future__ import annotations

import re

from kosine.errors import BackendUnavailable, UnknownOption

__all__ = ["check_cpu", "check_threads", "cuda_index", "explain", "first_line", "is_cuda"]


# More than any machine's share of one call; ONNX Runtime would try to start any number.
MAX_THREADS = 1_024
# How C++, the C library and ONNX Runtime's allocator say it.
NO_MEMORY = ("bad_alloc", "allocate memory", "failed to allocate", "bfc_arena", "out of memory")
NO_THREADS = ("pthread_create", "start new thread", "resource temporarily unavailable")


def is_cuda(device: str) -> bool:
    """Whether `device` names a GPU; "auto" names none."""
    return device.startswith("cuda")


def check_cpu(backend: str, device: str, threads: int | None, *, limit: str = "cpu") -> None:
    """Refuse what an engine on the CPU cannot be made with.

    Args:
        backend: Its name, for the message.
        device: Must be "auto" or "cpu".
        threads: Must be None or from 1 to MAX_THREADS.
        limit: The devices that the backend of that name has.

    Raises:
        BackendUnavailable: Another device.
        UnknownOption: `threads` out of range.
    """
    if device not in ("auto", "cpu"):
        raise BackendUnavailable(
            f"backend {backend!r} cannot run on device {device[:40]!r}",
            limit=limit,
            remedy="leave device out for the CPU",
        )
    check_threads(threads)


def check_threads(threads: int | None) -> None:
    """Raise UnknownOption unless `threads` is None or a whole number from 1 to MAX_THREADS."""
    if threads is None or (type(threads) is int and 1 <= threads <= MAX_THREADS):
        return
    raise UnknownOption(
        f"threads is {threads!r}", limit=f"1 to {MAX_THREADS}", remedy="leave it out"
    )


def cuda_index(device: str, backend: str) -> int:
    """The number of the GPU that `device` names; "cuda" and "auto" are the first.

    Raises:
        BackendUnavailable: `device` is not a GPU's name.
    """
    if device in ("auto", "cuda"):
        return 0
    match = re.fullmatch(r"cuda:(\d{1,3})", device, re.ASCII)
    if match is None:
        raise BackendUnavailable(
            f"backend {backend!r} cannot run on device {device[:40]!r}",
            limit="cuda or cuda:N, N from 0",
            remedy="name a GPU, for example --device cuda:0",
        )
    return int(match[1])


def explain(error: BaseException, otherwise: str) -> tuple[str, str]:
    """What an engine failed of, on one line, and the remedy.

    `otherwise` is the remedy where neither memory nor threads were wanting. Engines say that in
    exceptions of their own, and in words.
    """
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(word in text for word in NO_MEMORY):
        return "the system gives no more memory", (
            "free memory, raise the limit of this process (ulimit -v, its cgroup), or lower "
            "max_batch_tokens"
        )
    if any(word in text for word in NO_THREADS):
        # The system says the same where a thread's stack finds no memory.
        return "the system gives no more threads, or no memory for their stacks", (
            "raise the limit of threads (ulimit -u, pids of the cgroup) or of memory (ulimit -v), "
            "or load with threads=1"
        )
    return first_line(error), otherwise


def first_line(error: object) -> str:
    """What an engine says, short enough for one line."""
    text = str(error).strip() or type(error).__name__
    return text.split("\n", 1)[0][:200]
