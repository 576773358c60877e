"""The batcher's steps under every order that Hypothesis can think of: no threads, no sleeps.

The model knows what every future must end in. Steps that threads would take are rules, so that
any interleaving of whole steps is tried; what may happen while the encoder runs outside the lock
(a cancellation, a deadline, an arrival) is tried from inside the encoder.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import CancelledError

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kosine.errors import (
    BackendError,
    DeadlineExceeded,
    InputError,
    NonFiniteVector,
    QueueFull,
    WorkerCrashed,
)
from kosine.testing import (
    FAULT_MARKS,
    FakeBackend,
    FakeClock,
    FakeCrash,
    FakeEncoder,
    SteppedBatcher,
)

EXAMPLES, STEPS = 150, 100
QUEUE_TOKENS, QUEUE_REQUESTS, QUEUE_BYTES = 300, 24, 260

totals = {"steps": 0, "futures": 0}

WORDS = st.text("abc가나다 ", max_size=12)
# Marks of faults: \x11 raises, \x12 makes a NaN row, \x13 spoils the shape, \x14 kills.
MARKS = st.sampled_from(["", "", "", "", "", "\x11", "\x12", "\x13"])
TEXTS = st.builds("{}{}".format, WORDS, MARKS)
PRIORITIES = st.sampled_from([0, 0, 0, 2, -1])
DEADLINES = st.sampled_from([None, None, None, 0.5, 3.0])


class Interrupting(FakeBackend):
    """Calls back in the middle of a batch."""

    during = None

    def run(self, batch):
        if self.during is not None:
            during, self.during = self.during, None
            during()
        return super().run(batch)


class BatcherModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.backend = Interrupting(dim=4, faults=FAULT_MARKS, clock=self.clock)
        self.encoder = FakeEncoder(self.backend, max_tokens=40, prompts={"query": "q: "})
        self.batcher = SteppedBatcher(
            self.encoder,
            max_batch_tokens=60,
            max_queue_tokens=QUEUE_TOKENS,
            max_queue_requests=QUEUE_REQUESTS,
            max_queue_bytes=QUEUE_BYTES,
            clock=self.clock,
        )
        self.expected = []  # (future, texts, single, prompt_name)
        self.resolutions = {}

    def remember(self, future, texts, single, prompt_name):
        self.expected.append((future, texts, single, prompt_name))
        self.resolutions[id(future)] = 0

        def count(done):
            self.resolutions[id(done)] += 1

        # Half are watched from the start, half only looked at in the end: both ways to settle.
        if len(self.expected) % 2:
            future.add_done_callback(count)
        else:
            self.resolutions[id(future)] = None
        totals["futures"] += 1

    @rule(
        text=TEXTS, priority=PRIORITIES, deadline=DEADLINES, query=st.sampled_from([None, "query"])
    )
    def submit_one(self, text, priority, deadline, query):
        try:
            future = self.batcher.submit(
                text, priority=priority, deadline=deadline, prompt_name=query
            )
        except QueueFull as error:
            self.refused(error)
        else:
            self.remember(future, [text], True, query)

    @rule(texts=st.lists(TEXTS, min_size=1, max_size=8), deadline=DEADLINES)
    def submit_list(self, texts, deadline):
        try:
            future = self.batcher.submit(texts, deadline=deadline)
        except QueueFull:
            return
        self.remember(future, texts, False, None)

    @rule(texts=st.lists(TEXTS, min_size=1, max_size=8), priority=PRIORITIES, deadline=DEADLINES)
    def submit_many(self, texts, priority, deadline):
        try:
            futures = self.batcher.submit_many(texts, priority=priority, deadline=deadline)
        except QueueFull:
            return
        for future, text in zip(futures, texts, strict=True):
            self.remember(future, [text], True, None)

    @rule()
    def run(self):
        self.run_batch()

    def run_batch(self):
        try:
            return self.batcher.run_batch()
        except FakeCrash as error:
            self.batcher.crash(error)
            return True

    @rule(texts=st.lists(WORDS, min_size=2, max_size=6), data=st.data())
    def cancel_some_of_what_runs(self, texts, data):
        """Part of one `submit_many` is cancelled while all of it is in the running batch."""
        try:
            futures = self.batcher.submit_many(texts)
        except QueueFull:
            return
        for future, text in zip(futures, texts, strict=True):
            self.remember(future, [text], True, None)
        chosen = data.draw(st.sets(st.integers(0, len(texts) - 1), min_size=1))
        self.backend.during = lambda: [futures[number].cancel() for number in chosen]
        while self.run_batch():
            pass
        self.backend.during = None

    @rule(data=st.data())
    def run_while_others_act(self, data):
        # Small numbers: the latest futures, which are likely to be in this very batch.
        cancelled = data.draw(st.sets(st.integers(0, 12), max_size=4))

        def during():
            for number in cancelled:
                if number < len(self.expected):
                    self.expected[-1 - number][0].cancel()
            self.clock.advance(0.3)
            self.batcher.expire()
            self.submit_during()

        self.backend.during = during
        self.run_batch()
        self.backend.during = None

    def submit_during(self):
        with contextlib.suppress(QueueFull):
            self.remember(self.batcher.submit("during"), ["during"], True, None)

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def cancel(self, data):
        future = data.draw(st.sampled_from(self.expected[-20:]))[0]
        was_done = future.done()
        assert future.cancel() is (not was_done or future.cancelled())

    @rule(seconds=st.sampled_from([0.1, 0.4, 1.0]))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @rule()
    def expire(self):
        self.batcher.expire()

    @rule()
    def crash(self):
        try:
            future = self.batcher.submit("kill \x14")
        except QueueFull:
            return
        self.remember(future, ["kill \x14"], True, None)
        while self.run_batch():
            pass

    @rule(texts=st.lists(WORDS, min_size=20, max_size=24))
    def cancel_a_long_request_that_has_begun(self, texts):
        """What a request of many batches has left is not run once nobody waits for it."""
        try:
            future = self.batcher.submit(texts, priority=9)
        except (QueueFull, InputError):
            return
        self.remember(future, texts, False, None)
        self.run_batch()
        if future.done():
            return
        before = self.batcher.stats()
        assert future.cancel()
        after = self.batcher.stats()
        assert after.queue_requests == before.queue_requests - 1
        assert after.queue_tokens < before.queue_tokens

    @invariant()
    def sums_are_right(self):
        totals["steps"] += 1
        stats = self.batcher.stats()
        assert 0 <= stats.queue_tokens <= QUEUE_TOKENS
        assert 0 <= stats.queue_requests <= QUEUE_REQUESTS
        assert 0 <= stats.queue_bytes <= QUEUE_BYTES
        assert stats.running_tokens == 0
        open_futures = [entry for entry in self.expected if not entry[0].done()]
        assert stats.queue_requests == len(open_futures)
        if not open_futures:
            assert (stats.queue_tokens, stats.queue_bytes) == (0, 0)
            assert self.batcher.run_at() == float("inf")

    def teardown(self):
        for _ in range(1_000):
            if not self.run_batch():
                break
        stats = self.batcher.stats()
        assert (stats.queue_tokens, stats.queue_requests, stats.queue_bytes) == (0, 0, 0)
        ended = stats.completed + stats.failed + stats.cancelled + stats.expired + stats.shed
        assert stats.submitted == ended == len(self.expected)
        for future, texts, single, prompt_name in self.expected:
            assert future.done(), "a future hangs"
            assert self.resolutions[id(future)] in (1, None), "not exactly once"
            self.check(future, texts, single, prompt_name)
        self.batcher.close()

    @staticmethod
    def refused(error):
        assert 0 <= error.retry_after < 1_000

    @staticmethod
    def blame(mark, joined):
        assert mark in joined, "an innocent text failed"

    def check(self, future, texts, single, prompt_name):
        joined = "".join(texts)
        try:
            vectors = future.result(timeout=0)
        except (CancelledError, DeadlineExceeded):
            return
        except WorkerCrashed:
            return  # whoever shared a batch with the killer
        except NonFiniteVector:
            self.blame("\x12", joined)
        except RuntimeError:
            self.blame("\x11", joined)
        except BackendError:
            self.blame("\x13", joined)
        else:
            assert not set(joined) & set("\x11\x12\x13\x14"), "a guilty text got a result"
            right = self.encoder.encode(texts, prompt_name=prompt_name)
            np.testing.assert_array_equal(vectors, right[0] if single else right)


def test_each_future_resolves_exactly_once():
    totals.update(steps=0, futures=0)
    machine = BatcherModel.TestCase.settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    assert machine.stateful_step_count == STEPS
    case = BatcherModel.TestCase()
    case.runTest()
    print(f"{totals['steps']:,} steps, {totals['futures']:,} futures: each resolved exactly once")
    assert totals["steps"] >= 10_000


@pytest.mark.parametrize("broken", ["twice", "never", "swapped"])
def test_the_model_notices(broken):
    """Negative controls: a batcher that answers twice, never, or the wrong one, must fail."""
    model = BatcherModel()
    first = model.batcher.submit_many(["one", "two"])
    for future, text in zip(first, ["one", "two"], strict=True):
        model.remember(future, [text], True, None)
    if broken == "swapped":
        finish = model.encoder.finish
        model.encoder.finish = lambda pooled, **options: finish(pooled, **options)[::-1]
    model.run_batch()
    if broken == "twice":
        model.resolutions[id(first[0])] += 1
    if broken == "never":
        first[0]._state = "PENDING"
    with pytest.raises(AssertionError):
        model.teardown()
