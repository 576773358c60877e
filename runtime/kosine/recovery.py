"""After a worker thread has died: fail what it held, and put the books in order."""

from __future__ import annotations

from kosine.errors import WorkerCrashed
from kosine.pipeline import Pipeline

__all__ = ["recover"]


def recover(
    pipeline: Pipeline, role: str, ident: int, is_runner: bool, cause: BaseException
) -> None:
    """Account for a dead thread.

    It may have died between any two steps, so what it held is not taken from its notes alone: it
    is what no queue and no other thread holds.

    Args:
        pipeline: Whose thread it was.
        role: The thread's part.
        ident: Its `threading.get_ident()`.
        is_runner: Whether it was the one that runs batches.
        cause: What it died of.
    """
    error = WorkerCrashed(
        f"the worker died of {type(cause).__name__} while it held the request",
        limit="the worker has been replaced",
        remedy="submit the request again",
    )
    error.__cause__ = cause
    with pipeline.lock:
        pipeline.counters.worker_crashes += 1
        pipeline.tokenising.pop(role, None)
        schedule = pipeline.schedule
        queued = {*schedule.waiting, *schedule.ready}
        elsewhere = {job for jobs in pipeline.tokenising.values() for job in jobs}
        lost = []
        for job in pipeline.live:
            if job not in queued and job not in elsewhere:
                if is_runner or not job.taken:
                    lost.append((job, job.count))
            elif is_runner and job.taken > job.count - job.remaining:
                lost.append((job, job.taken))
        schedule.recount(elsewhere)
        if is_runner:
            pipeline.running, pipeline.running_tokens, pipeline.running_since = (), 0, None
            schedule.batch_done(pipeline.clock.now())
        owed = pipeline.owed.pop(ident, [])
    for future in owed:
        # One that it had settled stays as it is, but its waiters may not have heard of it.
        if future.done():
            future.announce()
        else:
            future.settle_error(error)
    for job, stop in lost:
        if job.grouped and stop < job.count:
            for index in range(stop):
                pipeline.fail_text(job, index, error)
        else:
            pipeline.fail_job(job, error)
