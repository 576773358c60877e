"""Faults that services met in the batcher, each with what is right instead."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, CancelledError, as_completed, wait

import numpy as np
import pytest

from kosine.errors import BatcherClosed, BatcherError, ForkedBatcher
from kosine.packed import Packed, Pooled
from kosine.serving.batcher import Batcher
from kosine.testing import FakeBackend, FakeEncoder


class Gate(FakeBackend):
    """Each batch waits until `go` is set; `ran` is set when one has begun."""

    def __init__(self):
        super().__init__()
        self.ran, self.go = threading.Event(), threading.Event()

    def run(self, batch: Packed) -> Pooled:
        self.ran.set()
        assert self.go.wait(30)
        return super().run(batch)


class TestThreadsThatCannotStart:
    @pytest.mark.parametrize("which", ["kosine-runner", "kosine-timer"])
    def test_submit_raises_and_the_next_tries_again(self, monkeypatch, which):
        start = threading.Thread.start
        failing = [True]

        def fails_once(thread):
            if thread.name == which and failing:
                failing.clear()
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", fails_once)
        with Batcher(FakeEncoder()) as batcher:
            with pytest.raises(BatcherError, match="can't start new thread"):
                batcher.submit("refused")
            assert batcher.stats().queue_requests == 0
            assert batcher.submit("served").result(30).shape == (8,)
            assert batcher.stats().submitted == 1
            assert batcher.health().ok

    def test_health_tells(self, monkeypatch):
        def never(_):
            raise RuntimeError("can't start new thread")

        batcher = Batcher(FakeEncoder())
        assert batcher.health().ok
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", never)
            with pytest.raises(BatcherError):
                batcher.submit("refused")
            assert not batcher.health().ok
        assert batcher.submit("served").result(30).shape == (8,)
        assert batcher.health().ok
        batcher.close()


class TestCancelling:
    def test_a_request_that_has_partly_run_is_cancelled_and_the_rest_never_runs(self):
        backend = Gate()
        with Batcher(FakeEncoder(backend), max_batch_tokens=100) as batcher:
            future = batcher.submit([f"text {number:03}" for number in range(50)])
            assert backend.ran.wait(30)
            assert batcher.stats().queue_tokens > 0
            assert future.cancel()
            assert (batcher.stats().queue_tokens, batcher.stats().queue_requests) == (0, 0)
            backend.go.set()
            batcher.submit("after").result(30)
            assert len(backend.batches) == 2
            with pytest.raises(CancelledError):
                future.result(0)
            assert batcher.stats().cancelled == 1

    def test_waiters_of_every_kind_hear_of_it(self):
        backend = Gate()
        batcher = Batcher(FakeEncoder(backend))
        first, *futures = (batcher.submit(f"text {n}") for n in range(4))
        waiting = threading.Thread(target=lambda: wait(futures, 30))
        waiting.start()
        threading.Timer(0.01, futures[1].cancel).start()
        assert wait(futures, 30, FIRST_COMPLETED).done == {futures[1]}
        assert futures[0].cancel()
        assert futures[0].cancel()  # twice is once
        assert futures[2].cancel()
        assert set(as_completed(futures, 30)) == set(futures)
        waiting.join(30)
        assert not waiting.is_alive()
        backend.go.set()
        assert first.result(30).shape == (8,)
        assert not first.cancel()
        assert batcher.stats().cancelled == 3
        batcher.close()

    def test_a_storm_against_the_answer_never_has_both(self):
        with Batcher(FakeEncoder()) as batcher:
            for _ in range(300):
                futures = batcher.submit_many([f"text {n}" for n in range(20)])
                cancelled = [future.cancel() for future in futures]
                wait(futures, 30)
                assert [future.cancelled() for future in futures] == cancelled
            stats = batcher.stats()
        assert stats.completed + stats.cancelled == stats.submitted == 6_000


class TestCallbacks:
    @pytest.mark.parametrize("options", [{}, {"max_wait_ms": 5.0}])
    @pytest.mark.parametrize("how", [{}, {"timeout": 20.0}, {"drain": False}])
    def test_close_returns_at_once_with_much_work_queued(self, options, how):
        batcher = Batcher(FakeEncoder(), max_batch_tokens=50, **options)
        closed = []
        called = threading.Event()

        def close(_):
            closed.append(batcher.close(**how))
            called.set()

        first, *rest = batcher.submit_many([f"text {number}" for number in range(500)])
        first.add_done_callback(close)
        assert called.wait(10)
        assert closed == [False]
        assert wait(rest, 30).not_done == set()
        errors = {type(future.exception()) for future in rest}
        assert errors <= ({type(None), BatcherClosed} if how == {"drain": False} else {type(None)})
        assert batcher.close()

    def test_waiting_for_the_own_batcher_is_an_error(self):
        with Batcher(FakeEncoder()) as batcher:
            seen = []

            def wait_inside(_):
                for ask in (lambda f: f.result(), lambda f: f.exception(5)):
                    try:
                        ask(batcher.submit("inside"))
                    except BatcherError as error:
                        seen.append(str(error))

            batcher.submit("outside").add_done_callback(wait_inside)
            batcher.submit("after").result(30)
        assert len(seen) == 2
        assert all("done-callback" in message for message in seen)

    def test_one_that_raises_harms_nobody(self, caplog):
        with Batcher(FakeEncoder()) as batcher:
            future = batcher.submit("first")
            future.add_done_callback(lambda _: 1 / 0)
            assert batcher.submit("second").result(30).shape == (8,)
        assert "exception calling callback" in caplog.text


class TestOneBudget:
    """A batch is one call of the backend, as large as the backend likes it."""

    def test_the_encoder_s_own(self):
        backend = FakeBackend()
        texts = [f"{number:09}" for number in range(450)]  # 10 tokens each
        with Batcher(FakeEncoder(backend, max_batch_tokens=1_000)) as batcher:
            wait(batcher.submit_many(texts), 30)
        assert backend.batches == [(100, 1_000)] * 4 + [(50, 500)]

    @pytest.mark.parametrize("budget", [100, 2_500])
    def test_one_that_is_named(self, sample, monkeypatch, budget):
        calls = []
        run = sample.backend.run
        monkeypatch.setattr(
            sample.backend, "run", lambda batch: calls.append(batch.num_tokens) or run(batch)
        )
        texts = ["한 남자가 기타를 치고 있다. " * 4] * 60
        with Batcher(sample, max_batch_tokens=budget) as batcher:
            rows = [future.result(60) for future in batcher.submit_many(texts)]
        each = sample.count_tokens(texts[0])
        total = each * len(texts)
        assert sum(calls) == total
        assert max(calls) <= budget
        assert len(calls) == -(-len(texts) // (budget // each))
        assert np.abs(np.stack(rows) - sample.encode(texts)).max() < 1e-6

    def test_submit_many_runs_in_as_few_calls_as_encode(self, sample, monkeypatch):
        calls = []
        run = sample.backend.run
        monkeypatch.setattr(
            sample.backend, "run", lambda batch: calls.append(batch.num_tokens) or run(batch)
        )
        texts = [f"{number}번째 문장이 여기에 있습니다." for number in range(800)]
        sample.encode(texts)
        encoded = len(calls)
        calls.clear()
        for _ in range(2):
            with Batcher(sample) as batcher:
                wait(batcher.submit_many(texts), 60)
        assert len(calls) <= 2 * (encoded + 1)


class TestExit:
    @pytest.mark.parametrize("code", [0, 3])
    @pytest.mark.parametrize(
        "call",
        [
            "batcher.submit('a').result()",
            "[f.result() for f in batcher.submit_many(['a'] * 50)]",
            "asyncio.run(batcher.aencode('a'))",
            "batcher.submit(['a'] * 500).result()",
        ],
    )
    def test_daemon_threads_that_hold_the_batcher_say_nothing(self, code, call):
        program = (
            "import asyncio, sys, threading, time\n"
            "from kosine import Batcher; from kosine.testing import *\n"
            "encoder = FakeEncoder(FakeBackend(cost=lambda b: 0.01))\n"
            "batcher = Batcher(encoder, max_batch_tokens=60)\n"
            "def work():\n"
            f"    while True: {call}\n"
            "for _ in range(3): threading.Thread(target=work, daemon=True).start()\n"
            f"time.sleep(0.3); sys.exit({code})\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (code, "")

    def test_a_batcher_in_a_module_that_is_torn_down(self):
        program = (
            "from kosine import Batcher; from kosine.testing import *\n"
            "class Holder:\n"
            "    def __init__(self): self.batcher = Batcher(FakeEncoder()); self.self = self\n"
            "holder = Holder(); holder.batcher.submit('a').result(); holder.batcher.close()\n"
            "other = Holder(); other.batcher.submit('a').result()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")


class TestFutures:
    def test_errors_have_no_context_of_ours(self):
        backend = Gate()
        with Batcher(FakeEncoder(backend)) as batcher:
            future = batcher.submit("text")
            with pytest.raises(TimeoutError) as late:
                future.result(timeout=0)
            assert late.value.__context__ is None
            backend.go.set()

    def test_asyncio_cancels_and_awaits(self):
        backend = Gate()

        async def main():
            async with Batcher(FakeEncoder(backend)) as batcher:
                task = asyncio.create_task(batcher.aencode("first"))
                gone = asyncio.create_task(batcher.aencode("second"))
                await asyncio.sleep(0.01)
                gone.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await gone
                backend.go.set()
                return (await task).shape, batcher.stats().cancelled

        assert asyncio.run(main()) == ((8,), 1)

    def test_an_orphan_fails_though_its_lock_is_held_and_an_answer_stays(self):
        with Batcher(FakeEncoder()) as batcher:
            answered = batcher.submit("text")
            answered.result(30)
            while not answered.settled:
                time.sleep(0.001)
            answered.orphan(ForkedBatcher("forked"))
            assert answered.result(0).shape == (8,)
            lost = type(answered)(answered.owner)
            called = []
            lost.add_done_callback(called.append)
            taken, let_go = threading.Event(), threading.Event()

            def hold():
                with lost._condition:
                    taken.set()
                    let_go.wait(30)

            holder = threading.Thread(target=hold)
            holder.start()
            assert taken.wait(30)
            lost.orphan(ForkedBatcher("forked"))
            assert isinstance(lost.exception(1), ForkedBatcher)
            assert called == []
            let_go.set()
            holder.join()
