"""The batcher as its callers see it. Time is a fake clock; nothing sleeps for a result."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import CancelledError, wait

import numpy as np
import pytest

from kosine import Batcher
from kosine.batcher_stats import prometheus_collector
from kosine.errors import (
    BackendError,
    BatcherClosed,
    DeadlineExceeded,
    InputError,
    NonFiniteVector,
    QueueFull,
    TextError,
    UnknownPrompt,
    WorkerCrashed,
)
from kosine.testing import (
    FAULT_MARKS,
    FakeBackend,
    FakeClock,
    FakeEncoder,
    linear_cost,
    rectangle_cost,
)

TEXTS = ["하나", "two", "", "삼 삼 삼", "four four"]


class GatedBackend(FakeBackend):
    """Stops at the start of a batch until it is let through."""

    def __init__(self, **options):
        super().__init__(**options)
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.open = False

    def run(self, batch):
        if not self.open:
            self.entered.release()
            assert self.gate.acquire(timeout=30)
        return super().run(batch)

    def let_through(self, batches=1):
        self.gate.release(batches)

    def open_for_good(self):
        self.open = True
        self.gate.release(1_000)


def held(batcher, backend, text="held"):
    """Submit a text and wait until its batch runs."""
    future = batcher.submit(text)
    assert backend.entered.acquire(timeout=30)
    return future


def until(condition):
    """Wait, without a clock, for what another thread is about to do."""
    for _ in range(100_000):
        if condition():
            return
        threading.Event().wait(0.0005)
    raise AssertionError("it never happened")


@pytest.fixture
def gate():
    """Makes batchers whose batches stop at a gate; it is open in the end."""
    made = []

    def make(**options):
        clock = FakeClock()
        backend = GatedBackend(faults=FAULT_MARKS, clock=clock, cost=options.pop("cost", None))
        options = {"max_batch_tokens": 100, "clock": clock, **options}
        made.append((Batcher(FakeEncoder(backend), **options), backend, clock))
        return made[-1]

    yield make
    for batcher, backend, _ in made:
        backend.open_for_good()
        batcher.close()


@pytest.fixture
def gated(gate):
    return gate()


class TestAnswers:
    def test_a_str_gives_a_row_and_a_list_a_matrix(self):
        encoder = FakeEncoder()
        right = encoder.encode(TEXTS)
        with Batcher(encoder) as batcher:
            one = batcher.submit(TEXTS[0]).result(10)
            many = batcher.submit(TEXTS).result(10)
            tupled = batcher.submit(tuple(TEXTS)).result(10)
            each = [future.result(10) for future in batcher.submit_many(TEXTS)]
            none = batcher.submit([]).result(10)
            assert batcher.submit_many([]) == []
        assert one.shape == (encoder.dim,)
        assert one.dtype == many.dtype == np.float32
        np.testing.assert_array_equal(one, right[0])
        np.testing.assert_array_equal(many, right)
        np.testing.assert_array_equal(tupled, right)
        np.testing.assert_array_equal(np.stack(each), right)
        assert none.shape == (0, encoder.dim)

    def test_prompts_and_dimensions_do_not_mix(self):
        encoder = FakeEncoder(prompts={"query": "질문: "})
        with Batcher(encoder) as batcher:
            futures = {
                (name, dim): batcher.submit(TEXTS, prompt_name=name, truncate_dim=dim)
                for name in (None, "query")
                for dim in (None, 3, 5)
            }
            own = batcher.submit(TEXTS, prompt="질문: ", prompt_name="query")
            for (name, dim), future in futures.items():
                prepared = encoder.prepare(TEXTS, prompt_name=name)
                right = encoder.finish(encoder.compute(prepared.batch), truncate_dim=dim)
                np.testing.assert_array_equal(future.result(10), right)
            np.testing.assert_array_equal(
                own.result(10), encoder.encode(TEXTS, prompt_name="query")
            )

    def test_answers_are_their_owners_alone(self):
        """Requests that ran in one batch share no memory, but for texts of one `submit_many`."""
        backend = GatedBackend()
        with Batcher(FakeEncoder(backend)) as batcher:
            first = held(batcher, backend)
            futures = [
                [batcher.submit(TEXTS[0])],
                [batcher.submit(TEXTS[1])],
                batcher.submit_many(TEXTS),
                batcher.submit_many(TEXTS),
                [batcher.submit(TEXTS)],
                batcher.submit_many(TEXTS[:1]),
            ]
            backend.open_for_good()
            answers = [[future.result(10) for future in own] for own in futures]
            first.result(10)
        assert len(backend.batches) <= 3  # they did run together
        for own, others in ((a, answers[:i] + answers[i + 1 :]) for i, a in enumerate(answers)):
            assert all(row.flags.writeable for row in own)
            for row in own:
                assert not any(np.shares_memory(row, other) for rows in others for other in rows)
                row[...] = 0.0  # and is seen by nobody else
        for (own,) in answers[0], answers[1], answers[4], answers[5]:
            assert own.base is None or own.base.size == own.size  # nothing else is kept alive

    def test_one_huge_request_is_split_and_reassembled(self):
        backend = FakeBackend()
        encoder = FakeEncoder(backend)
        texts = [f"text number {number}" for number in range(500)]
        with Batcher(encoder, max_batch_tokens=100) as batcher:
            vectors = batcher.submit(texts).result(30)
        assert max(tokens for _, tokens in backend.batches) <= 100
        assert len(backend.batches) > 50
        np.testing.assert_array_equal(vectors, encoder.encode(texts))

    def test_a_text_over_the_budget_is_not_stuck(self):
        encoder = FakeEncoder()
        with Batcher(encoder, max_batch_tokens=3) as batcher:
            vectors = batcher.submit(TEXTS).result(10)
        np.testing.assert_array_equal(vectors, encoder.encode(TEXTS))

    def test_asyncio_and_threads_share_one_batcher(self):
        encoder = FakeEncoder()

        async def main():
            async with Batcher(encoder) as batcher:
                one, many, *each = await asyncio.gather(
                    batcher.aencode(TEXTS[0]),
                    batcher.aencode(TEXTS),
                    asyncio.to_thread(lambda: batcher.submit(TEXTS[1]).result(10)),
                    batcher.aencode("long " * 5_000),
                )
                with pytest.raises(TextError):
                    await batcher.aencode([3])
                return one, many, each

        one, many, each = asyncio.run(main())
        np.testing.assert_array_equal(many, encoder.encode(TEXTS))
        np.testing.assert_array_equal(np.stack([one, each[0]]), encoder.encode(TEXTS[:2]))
        np.testing.assert_array_equal(each[1], encoder.encode(["long " * 5_000])[0])

    def test_the_real_encoder(self, sample):
        texts = ["한 남자가 기타를 친다.", "두 사람이 걷는다.", "", "A man plays a guitar."] * 5
        with Batcher(sample) as batcher:
            each = [future.result(30) for future in batcher.submit_many(texts)]
            together = batcher.submit(texts, truncate_dim=2).result(30)
            raw = batcher.submit_many(texts, normalize_embeddings=False)
            asyncio.run(batcher.aencode(texts[0], normalize_embeddings=False))
        expected = sample.encode(texts, normalize_embeddings=False)
        assert np.abs(np.linalg.norm(expected, axis=1) - 1).min() > 0.01
        np.testing.assert_allclose([f.result(0) for f in raw], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.stack(each), sample.encode(texts), atol=1e-6)
        np.testing.assert_allclose(together, sample.encode(texts, truncate_dim=2), atol=1e-6)


class TestBadInput:
    @pytest.mark.parametrize(
        ("texts", "error"),
        [
            (3, TextError),
            (b"bytes", TextError),
            ([b"bytes"], TextError),
            (["fine", None], TextError),
            ("lone \ud800 surrogate", TextError),
            (["fine", "lone \ud800 surrogate"], TextError),
        ],
    )
    def test_what_is_not_text(self, texts, error):
        with Batcher(FakeEncoder()) as batcher:
            with pytest.raises(error) as caught:
                batcher.submit(texts)
            assert caught.value.limit
            assert batcher.stats().submitted == 0

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"prompt_name": "nonsense"}, UnknownPrompt),
            ({"prompt": 3}, TextError),
            ({"truncate_dim": 0}, InputError),
            ({"truncate_dim": 9}, InputError),
            ({"truncate_dim": 1.5}, InputError),
            ({"priority": "high"}, InputError),
            ({"deadline": 0.0}, DeadlineExceeded),
            ({"deadline": -1.0}, DeadlineExceeded),
            ({"deadline": float("nan")}, DeadlineExceeded),
            ({"deadline": "1"}, InputError),
            ({"deadline": True}, InputError),
        ],
    )
    def test_options_are_refused_at_the_door(self, options, error):
        with Batcher(FakeEncoder()) as batcher:
            with pytest.raises(error):
                batcher.submit("text", **options)
            with pytest.raises(error):
                batcher.submit_many(["text"], **options)

    @pytest.mark.parametrize(
        "options",
        [
            {"max_batch_tokens": 0},
            {"max_queue_tokens": -1},
            {"max_queue_requests": 1.5},
            {"max_queue_bytes": 0},
            {"max_wait_ms": -1},
            {"max_wait_ms": float("inf")},
            {"ageing_s": 0},
            {"max_queue_requests": True},
            {"max_wait_ms": "5"},
            {"max_wait_ms": None},
            {"max_wait_ms": True},
            {"ageing_s": "1"},
        ],
    )
    def test_limits_that_make_no_sense(self, options):
        with pytest.raises(InputError):
            Batcher(FakeEncoder(), **options)

    def test_numbers_of_numpy_are_numbers(self):
        options = {
            "max_wait_ms": np.float32(1),
            "ageing_s": np.float32(2),
            "cache_bytes": np.int64(9),
            "max_queue_requests": np.int32(3),
        }
        with Batcher(FakeEncoder(), **options) as batcher:
            for deadline in (None, np.float32(30), np.int64(30)):
                future = batcher.submit("text", deadline=deadline)
                assert future.result(30).shape == (FakeEncoder().dim,)
            assert batcher.health().worker_crashes == 0

    def test_a_call_of_many_is_cut_into_whole_batches(self):
        backend = FakeBackend()
        texts = [f"{number:09}" for number in range(45)]  # 10 tokens each
        with Batcher(FakeEncoder(backend), max_batch_tokens=100) as batcher:
            rows = [future.result(30) for future in batcher.submit_many(texts)]
        assert np.array_equal(rows, FakeEncoder().encode(texts))
        assert backend.batches == [(10, 100)] * 4 + [(5, 50)]

    def test_a_text_of_many_that_cannot_be_tokenised_fails_alone(self):
        encoder = FakeEncoder()
        texts = ["fine", "lone \ud800 surrogate", "a\0b", "fine too"]
        with Batcher(encoder, cache_bytes=1 << 20) as batcher:
            for _ in range(2):  # the second time from the cache
                futures = batcher.submit_many(texts)
                rows = [futures[0].result(30), futures[3].result(30)]
                np.testing.assert_array_equal(rows, encoder.encode([texts[0], texts[3]]))
                for place, what in ((1, "surrogate"), (2, "NUL")):
                    with pytest.raises(TextError, match=f"text {place} has a .*{what}"):
                        futures[place].result(30)
            (alone,) = batcher.submit_many(["\0"])
            assert isinstance(alone.exception(30), TextError)
            stats = batcher.stats()
            assert (stats.submitted, stats.completed, stats.failed) == (9, 4, 5)
            with pytest.raises(TextError, match="text 1 is missing"):
                batcher.submit_many(["fine", None])

    def test_submit_many_wants_a_list(self):
        with Batcher(FakeEncoder()) as batcher, pytest.raises(InputError):
            batcher.submit_many("text")

    def test_messages_never_hold_the_text(self):
        secret = "tajný \ud800"
        with Batcher(FakeEncoder()) as batcher, pytest.raises(TextError) as caught:
            batcher.submit(["fine", secret])
        assert "tajn" not in str(caught.value)


class TestScheduling:
    def test_takes_what_is_queued_when_the_backend_frees(self, gated):
        batcher, backend, _ = gated
        first = held(batcher, backend)
        rest = [batcher.submit(f"text {i}") for i in range(5)]
        backend.let_through()
        assert backend.entered.acquire(timeout=30)
        backend.let_through()
        wait([first, *rest], 30)
        assert [sentences for sentences, _ in backend.batches] == [1, 5]

    def test_waits_for_company_from_the_oldest_on(self):
        clock = FakeClock()
        backend = FakeBackend()
        with Batcher(FakeEncoder(backend), clock=clock, max_wait_ms=100) as batcher:
            first = batcher.submit("a")
            clock.advance(0.06)
            second = batcher.submit("b")
            assert wait([first], 0.05).not_done
            assert backend.batches == []
            clock.advance(0.05)  # 110 ms after the first, 50 after the second
            wait([first, second], 30)
        assert [sentences for sentences, _ in backend.batches] == [2]

    def test_priority_goes_first(self, gated):
        batcher, backend, _ = gated
        held(batcher, backend)
        order = []
        long = "x" * 90
        for name, priority in (("low", -1), ("mid", 0), ("high", 1)):
            future = batcher.submit(long + name, priority=priority)
            future.add_done_callback(lambda _, name=name: order.append(name))
        backend.open_for_good()
        assert batcher.close()
        assert order == ["high", "mid", "low"]

    def test_the_padded_cost_model_is_a_rectangle(self):
        batch = FakeEncoder().prepare(["abc", "abcdefg"]).batch
        assert linear_cost(1.0, 0.5)(batch) == 12.5
        assert rectangle_cost(1.0, 0.5)(batch) == 16.5


class TestAdmission:
    def test_bounds_hold_and_say_when_to_retry(self, gate):
        batcher, backend, _ = gate(max_queue_requests=3)
        held(batcher, backend)
        for _ in range(3):
            batcher.submit("text")
        with pytest.raises(QueueFull) as caught:
            batcher.submit("text")
        assert caught.value.retry_after > 0
        assert "max_queue_requests=3" in str(caught.value)
        with pytest.raises(InputError):
            batcher.submit_many(["text"] * 4)
        assert batcher.stats().rejected == {"requests": 2}

    def test_a_request_of_64_and_one_of_1_are_judged_alike(self, gate):
        batcher, backend, _ = gate(max_queue_requests=2)
        held(batcher, backend)
        batcher.submit(["text"] * 64)
        batcher.submit("text")
        for texts in ("text", ["text"] * 64):
            with pytest.raises(QueueFull):
                batcher.submit(texts)

    def test_the_exact_count_decides(self):
        class Merging(FakeEncoder):
            """Four bytes a token: an upper estimate from bytes is four times too high."""

            def prepare(self, texts, **options):
                return super().prepare([text[::4] for text in texts], **options)

        with Batcher(Merging(max_tokens=10_000), max_queue_tokens=200) as batcher:
            assert batcher.submit("x" * 700).result(10).shape == (8,)
            with pytest.raises(InputError):
                batcher.submit("x" * 900)

    def test_a_deadline_that_the_backlog_breaks_is_refused_at_once(self, gate):
        batcher, backend, clock = gate(cost=lambda _: 0.0)
        backend.open = True
        for tokens in (10, 50, 100):
            # What batches take is learnt from batches: a hundredth of a second a token.
            backend._cost = lambda batch: clock.advance(batch.num_tokens * 0.01) or 0.0
            batcher.submit("x" * (tokens - 1)).result(10)
        backend.open = False
        held(batcher, backend)
        futures = [batcher.submit("x" * 99) for _ in range(4)]
        with pytest.raises(QueueFull) as caught:
            batcher.submit("text", deadline=1.0)
        assert caught.value.retry_after > 1.0
        assert batcher.submit("text", deadline=30.0)
        assert batcher.stats().rejected == {"deadline": 1}
        assert not any(future.done() for future in futures)

    def test_a_full_queue_refuses_before_it_tokenises(self, gate, monkeypatch):
        batcher, backend, _ = gate(max_queue_tokens=20)
        held(batcher, backend)
        batcher.submit("x" * 18)
        counted = []
        monkeypatch.setattr(FakeEncoder, "prepare", lambda *_, **__: counted.append(1))
        with pytest.raises(QueueFull):
            batcher.submit_many(["a", "b"])
        assert not counted


class TestDeadlines:
    def test_a_waiting_request_expires_while_the_backend_hangs(self, gated):
        batcher, backend, clock = gated
        first = held(batcher, backend)
        waiting = batcher.submit("text", deadline=5.0)
        many = batcher.submit_many(["a", "b"], deadline=5.0)
        clock.advance(5.0)
        for future in (waiting, *many):
            with pytest.raises(DeadlineExceeded):
                future.result(30)
        assert not first.done()
        stats = batcher.stats()
        assert (stats.expired, stats.queue_tokens, stats.queue_requests) == (3, 0, 0)

    def test_a_running_request_expires_and_its_answer_is_dropped(self, gated):
        batcher, backend, clock = gated
        future = batcher.submit("text", deadline=5.0)
        assert backend.entered.acquire(timeout=30)
        clock.advance(5.0)
        with pytest.raises(DeadlineExceeded):
            future.result(30)
        backend.open_for_good()
        assert batcher.submit("next").result(30).shape == (8,)
        assert batcher.health().worker_crashes == 0

    def test_deadline_exceeded_is_a_timeout_error(self):
        assert issubclass(DeadlineExceeded, TimeoutError)


class TestCancelling:
    def test_frees_its_place_at_every_stage(self, gated):
        batcher, backend, clock = gated
        running = held(batcher, backend)
        waiting = batcher.submit(["a", "b"])
        many = batcher.submit_many(["c", "d", "e"])
        assert batcher.stats().queue_requests == 4
        assert waiting.cancel()
        assert many[1].cancel()
        assert batcher.stats().queue_requests == 2
        assert batcher.stats().queue_tokens == 4
        clock.advance(1.0)
        assert many[0].cancel()
        assert batcher.stats().queue_tokens == 2
        assert running.cancel()
        assert running.cancelled()
        assert wait([running, waiting], 10).not_done == set()
        backend.open_for_good()
        assert many[2].result(30).shape == (8,)
        with pytest.raises(CancelledError):
            many[0].result(30)
        assert batcher.stats().cancelled == 4
        assert batcher.health().worker_crashes == 0

    def test_cancelling_a_task_gives_its_place_back(self, gated):
        batcher, backend, _ = gated
        held(batcher, backend)

        async def main():
            tasks = [asyncio.create_task(batcher.aencode(t)) for t in ("short", "long " * 5_000)]
            while batcher.stats().queue_requests < 2:
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return [task.cancelled() for task in tasks]

        assert asyncio.run(main()) == [True, True]
        assert batcher.stats().queue_requests == 0

    def test_a_done_callback_may_use_the_batcher(self):
        with Batcher(FakeEncoder()) as batcher:
            later = []
            done = threading.Event()

            def again(_):
                later.append(batcher.submit("again"))
                done.set()

            batcher.submit("first").add_done_callback(again)
            assert done.wait(30)
            assert later[0].result(30).shape == (8,)


class TestFaults:
    @pytest.mark.parametrize(
        ("mark", "error"),
        [("\x11", RuntimeError), ("\x12", NonFiniteVector), ("\x13", BackendError)],
    )
    def test_only_the_guilty_fails(self, mark, error):
        backend = FakeBackend(faults=FAULT_MARKS)
        encoder = FakeEncoder(backend)
        texts = [f"text {number}" for number in range(64)]
        texts[37] += mark
        with Batcher(encoder) as batcher:
            futures = batcher.submit_many(texts)
            alone = batcher.submit(texts[:40])
            right = encoder.encode(texts)
            for number, future in enumerate(futures):
                if number == 37:
                    assert isinstance(future.exception(30), error)
                else:
                    np.testing.assert_array_equal(future.result(30), right[number])
            assert isinstance(alone.exception(30), error)
            if mark == "\x12":
                assert alone.exception().indices == (37,)
                assert futures[37].exception().indices == (0,)
            assert batcher.submit("next").result(30).shape == (8,)

    def test_halving_costs_at_most_twice_the_logarithm(self):
        backend = FakeBackend(faults=FAULT_MARKS)
        with Batcher(FakeEncoder(backend)) as batcher:
            futures = batcher.submit_many(["guilty \x11" if i == 77 else "x" for i in range(256)])
            wait(futures, 30)
        print(f"1 guilty among 256: {len(backend.batches)} runs, bar 1 + 2 log2(256) = 17")
        assert len(backend.batches) <= 17

    def test_named_rows_need_no_further_run(self):
        backend = FakeBackend(faults=FAULT_MARKS)
        with Batcher(FakeEncoder(backend)) as batcher:
            wait(batcher.submit_many(["x", "nan \x12", "y"]), 30)
        assert len(backend.batches) == 1

    def test_a_text_that_cannot_be_tokenised_fails_alone(self):
        class Choking(FakeEncoder):
            def prepare(self, texts, **options):
                if any("choke" in text for text in texts):
                    raise ValueError("the tokenizer panicked")
                return super().prepare(texts, **options)

        encoder = Choking()
        with Batcher(encoder) as batcher:
            futures = batcher.submit_many(["a", "choke", "b"])
            assert isinstance(futures[1].exception(30), ValueError)
            with pytest.raises(ValueError, match="panicked"):
                batcher.submit("choke").result(30)
            right = encoder.encode(["a", "b"])
            np.testing.assert_array_equal(futures[0].result(30), right[0])
            np.testing.assert_array_equal(futures[2].result(30), right[1])

    def test_a_crash_fails_what_it_held_and_the_worker_comes_back(self, gated):
        batcher, backend, _ = gated
        first = held(batcher, backend, "kill \x14")
        waiting = batcher.submit("innocent, in the queue")
        backend.let_through()
        with pytest.raises(WorkerCrashed) as caught:
            first.result(30)
        assert "FakeCrash" in str(caught.value)
        assert backend.entered.acquire(timeout=30)
        backend.let_through()
        assert waiting.result(30).shape == (8,)
        health = batcher.health()
        assert (health.ok, health.worker_crashes, health.last_crash) == (True, 1, "FakeCrash")

    def test_after_a_crash_there_is_one_runner(self):
        """Whoever looks in the meantime must not start a second one."""
        before = set(threading.enumerate())
        batcher = Batcher(FakeEncoder(FakeBackend(faults=FAULT_MARKS)))
        batcher.submit("first").result(30)
        for _ in range(20):
            crashing = batcher.submit("kill \x14")
            while not crashing.done():
                batcher.health()
            assert isinstance(crashing.exception(30), WorkerCrashed)
            assert batcher.submit("next").result(30).shape == (8,)
        own = [thread.name for thread in set(threading.enumerate()) - before]
        assert own.count("kosine-runner") == 1
        assert batcher.health().worker_crashes == 20
        assert batcher.close()


class TestEnding:
    def test_close_drains(self, gated):
        batcher, backend, _ = gated
        held(batcher, backend)
        futures = [batcher.submit(f"text {i}") for i in range(5)]
        backend.open_for_good()
        assert batcher.close()
        assert all(future.result(0).shape == (8,) for future in futures)
        assert batcher.health().state == "closed"
        with pytest.raises(BatcherClosed):
            batcher.submit("late")
        assert batcher.close()

    def test_close_without_draining_fails_what_waits(self, gated):
        batcher, backend, _ = gated
        running = held(batcher, backend)
        waiting = [batcher.submit("text"), *batcher.submit_many(["a", "b"])]
        closing = threading.Thread(target=batcher.close, args=(False,))
        closing.start()
        for future in waiting:
            with pytest.raises(BatcherClosed):
                future.result(30)
        backend.open_for_good()
        assert running.result(30).shape == (8,)
        closing.join(30)
        assert not closing.is_alive()

    def test_close_gives_up_on_a_backend_that_hangs(self, gated):
        batcher, backend, clock = gated
        running = held(batcher, backend)
        ended = []
        closing = threading.Thread(target=lambda: ended.append(batcher.close(timeout=0.05)))
        closing.start()
        closing.join(30)
        assert ended == [False]
        with pytest.raises(BatcherClosed):
            running.result(30)
        assert clock.now() == 1_000.0

    def test_an_unused_batcher_has_no_threads(self):
        before = threading.active_count()
        batcher = Batcher(FakeEncoder())
        assert threading.active_count() == before
        assert batcher.health().ok
        assert batcher.close()

    def test_an_abandoned_batcher_answers_and_ends_its_threads(self):
        before = set(threading.enumerate())
        batcher = Batcher(FakeEncoder())
        future = batcher.submit("text")
        threads = set(threading.enumerate()) - before
        assert len(threads) == 2
        gone = weakref.ref(batcher)
        del batcher
        gc.collect()
        assert gone() is None
        assert future.result(30).shape == (8,)
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()

    @pytest.mark.parametrize("closes", ["", "batcher.close()"])
    def test_interpreter_exit_never_hangs(self, closes):
        code = (
            "from kosine import Batcher; from kosine.testing import *\n"
            "batcher = Batcher(FakeEncoder(FakeBackend(cost=lambda b: 0.2)))\n"
            "batcher.submit('a').result(); pending = batcher.submit_many(['b'] * 3)\n" + closes
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")


class TestNumbers:
    def test_stats_add_up_and_hold_no_text(self):
        encoder = FakeEncoder(FakeBackend(faults=FAULT_MARKS), max_tokens=20)
        with Batcher(encoder) as batcher:
            futures = batcher.submit_many(["tajné", "x" * 50, "bad \x11"])
            wait(futures, 30)
            until(lambda: batcher.health().running_s is None)
            stats = batcher.stats()
        assert stats.submitted == 3
        assert (stats.completed, stats.failed) == (2, 1)
        assert stats.truncated == 1
        assert stats.batches == 1
        assert stats.batch_texts == 3
        assert stats.bisections > 0
        assert stats.stages["prepare"].count >= 1
        assert stats.stages["queue"].buckets[10.0] == stats.stages["queue"].count
        assert "tajn" not in repr(stats)

    def test_prometheus(self):
        pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")
        from prometheus_client import CollectorRegistry, generate_latest

        with Batcher(FakeEncoder()) as batcher:
            registry = CollectorRegistry()
            registry.register(prometheus_collector(batcher))
            batcher.submit("tajné").result(10)
            until(lambda: batcher.stats().stages["finish"].count)
            text = generate_latest(registry).decode()
        assert 'kosine_batcher_ended_total{how="completed"} 1.0' in text
        assert 'kosine_batcher_stage_seconds_bucket{le="+Inf",stage="run"} 1.0' in text
        assert "tajn" not in text
