"""The batcher's policy, in tables: no threads, no clock, no sleeps."""

from __future__ import annotations

import gc
import math
import weakref

import pytest

from kosine.serving.latency import LatencyModel
from kosine.serving.limits import Limits
from kosine.serving.queue import Queue
from kosine.serving.request import Batch, BatchFuture, Call, pack

NOW = 100.0


def make_call(
    *tokens: int,
    separate: bool = False,
    priority: int = 0,
    deadline: float = math.inf,
    skip: int = 0,
) -> Call:
    """A call whose texts have so many tokens; their sizes are the same numbers."""
    sentences = [[n] * n for n in tokens]
    if separate:
        futures = [BatchFuture(None, index) for index in range(len(tokens))]
    else:
        futures = [BatchFuture(None)]
    matrix = len(tokens) > 1 and not separate
    return Call(
        sentences,
        tokens,
        futures,
        skip=skip,
        matrix=matrix,
        priority=priority,
        deadline=deadline,
    )


def refusal(queue: Queue, call: Call, now: float = NOW):
    size = call.tokens, len(call.futures), sum(call.sizes)
    return queue.refusal(*size, call.priority, call.deadline, now)


def admit(queue: Queue, *calls: Call, now: float = NOW) -> None:
    for call in calls:
        assert refusal(queue, call, now) is None
        queue.push(call, now)


def take(queue: Queue, now: float = NOW) -> Batch:
    batch = Batch()
    queue.take(batch, now)
    assert batch.tokens == sum(text.tokens for text in batch.texts)
    return batch


def taken(queue: Queue, now: float = NOW) -> list[tuple[Call, int]]:
    return [(text.call, text.place) for text in take(queue, now).texts]


def held(queue: Queue) -> tuple[int, int, int]:
    before = queue.tokens, queue.requests, queue.nbytes
    queue.recount()
    assert (queue.tokens, queue.requests, queue.nbytes) == before, "the sums had drifted"
    return before


class TestOrder:
    @pytest.mark.parametrize(
        ("arrivals", "order"),
        [
            # (arrived, priority) of each call, in order of arrival; ageing is 1 s a level
            ([(0.0, 0), (0.1, 0), (0.2, 0)], [0, 1, 2]),
            ([(0.0, 0), (0.5, 1)], [1, 0]),
            ([(0.0, 0), (1.5, 1)], [0, 1]),
            ([(0.0, 0), (0.1, -1), (0.5, 3), (2.5, 2)], [2, 0, 3, 1]),
        ],
    )
    def test_a_level_of_priority_is_worth_a_second(self, arrivals, order):
        queue = Queue(Limits(batch_tokens=1, ageing_s=1.0))
        calls = []
        for arrived, priority in arrivals:
            calls.append(make_call(1, priority=priority))
            admit(queue, calls[-1], now=arrived)
        assert [calls.index(taken(queue, 3.0)[0][0]) for _ in calls] == order
        assert taken(queue, 3.0) == []

    def test_nothing_starves_under_a_stream_of_higher_priority(self):
        queue = Queue(Limits(batch_tokens=10, ageing_s=1.0))
        low = make_call(10)
        admit(queue, low, now=0.0)
        waited = None
        for step in range(1, 100):
            now = step * 0.1
            admit(queue, make_call(10, priority=5), now=now)
            if taken(queue, now)[0][0] is low:
                waited = now
                break
        print(f"priority 0 against priority 5 waits {waited} s, the head start is 5 s")
        assert waited == pytest.approx(5.1, abs=0.11)

    @pytest.mark.parametrize("deadline", [math.inf, NOW + 1_000])
    def test_the_cancelled_take_no_memory(self, deadline):
        queue = Queue(Limits())
        alive = []
        for _ in range(5_000):
            call = make_call(1, 1, 1, deadline=deadline)
            admit(queue, call)
            queue.claim(call.futures[0])
            alive.append(weakref.ref(call.futures[0]))
        del call
        gc.collect()
        remaining = sum(reference() is not None for reference in alive)
        print(f"5 000 cancelled with the backend stuck: {remaining} remain")
        assert remaining < 200
        assert held(queue) == (0, 0, 0)

    def test_the_cancelled_texts_of_a_call_that_waits_take_no_memory(self):
        queue = Queue(Limits())
        call = make_call(*[1] * 1_000, separate=True)
        admit(queue, call)
        for future in call.futures[:-1]:
            queue.claim(future)
        del future
        assert call.futures[:-1] == [None] * 999
        assert held(queue) == (1, 1, 1)


class TestBatches:
    def test_takes_what_fits_the_token_budget(self):
        queue = Queue(Limits(batch_tokens=10))
        calls = [make_call(n) for n in (4, 5, 2, 1)]
        admit(queue, *calls)
        assert taken(queue) == [(calls[0], 0), (calls[1], 0)]
        assert taken(queue) == [(calls[2], 0), (calls[3], 0)]
        assert taken(queue) == []

    def test_a_text_over_the_budget_goes_alone(self):
        queue = Queue(Limits(batch_tokens=10))
        small, huge, after = make_call(3), make_call(50), make_call(2)
        admit(queue, small, huge, after)
        assert [taken(queue) for _ in range(3)] == [[(small, 0)], [(huge, 0)], [(after, 0)]]

    @pytest.mark.parametrize("separate", [False, True])
    def test_a_call_over_the_budget_lets_others_through(self, separate):
        queue = Queue(Limits(batch_tokens=10))
        huge, small = make_call(*[4] * 5, separate=separate), make_call(3)
        admit(queue, huge, small)
        assert taken(queue, NOW + 1) == [(huge, 0), (huge, 1)]
        # The rest went to the end of the line.
        assert taken(queue, NOW + 2) == [(small, 0), (huge, 2)]
        assert held(queue) == (8, 2 if separate else 1, 8)
        assert taken(queue, NOW + 3) == [(huge, 3), (huge, 4)]
        assert held(queue) == (0, 0, 0)

    def test_cancelled_texts_are_left_out(self):
        queue = Queue(Limits(batch_tokens=100))
        call = make_call(1, 2, 3, 4, separate=True)
        admit(queue, call)
        queue.claim(call.futures[0])
        queue.claim(call.futures[2])
        assert held(queue) == (6, 2, 6)
        assert taken(queue) == [(call, 1), (call, 3)]
        assert held(queue) == (0, 0, 0)

    def test_what_is_left_of_a_cancelled_request_gives_its_places_back(self):
        queue = Queue(Limits(batch_tokens=10))
        call = make_call(*[4] * 5)
        admit(queue, call)
        assert len(taken(queue)) == 2
        queue.claim(call.futures[0])
        assert held(queue) == (0, 0, 0)
        assert taken(queue) == []

    @pytest.mark.parametrize(
        ("wait_s", "arrived", "tokens", "starts"),
        [
            (0.0, [0.0], [1], 5.0),  # no waiting: now
            (2.0, [4.0], [1], 6.0),  # counted from the oldest
            (2.0, [4.0, 4.9], [1, 1], 6.0),
            (2.0, [4.0, 4.9], [6, 6], 5.0),  # a full batch does not wait
            (2.0, [1.0], [1], 3.0),  # overdue
        ],
    )
    def test_waiting_counts_from_the_oldest(self, wait_s, arrived, tokens, starts):
        queue = Queue(Limits(batch_tokens=10, wait_s=wait_s))
        for at, n in zip(arrived, tokens, strict=True):
            admit(queue, make_call(n), now=at)
        assert queue.run_at(5.0) == starts

    def test_nothing_waits_is_never(self):
        assert Queue(Limits()).run_at(NOW) == math.inf

    def test_texts_are_packed_in_their_order_with_their_skips(self):
        queue = Queue(Limits())
        calls = [make_call(1, 2), make_call(3, skip=1), make_call(2, 1)]
        admit(queue, *calls)
        queue.claim(calls[2].futures[0])
        batch = take(queue)
        packed = pack(batch.texts)
        assert packed.ids.tolist() == [1, 2, 2, 3, 3, 3]
        assert packed.starts.tolist() == [0, 1, 3, 6]
        assert packed.skip.tolist() == [0, 0, 1]
        admit(queue, make_call(1, 2))
        assert pack(take(queue).texts).skip is None


class TestBounds:
    @pytest.mark.parametrize(
        ("limits", "sizes", "admitted", "what"),
        [
            (Limits(queue_tokens=10), [[6], [4]], 2, None),
            (Limits(queue_tokens=10), [[6], [5]], 1, "tokens"),
            (Limits(queue_requests=2), [[1], [1], [1]], 2, "requests"),
            (Limits(queue_bytes=10), [[6], [5]], 1, "bytes"),
            # 64 texts and 1 are judged alike: by what they add
            (Limits(queue_tokens=70), [[1] * 64, [1], [1] * 64], 2, "tokens"),
            (Limits(queue_tokens=70), [[1] * 64, [1] * 64, [1]], 2, "tokens"),
        ],
    )
    def test_a_call_enters_whole_or_not_at_all(self, limits, sizes, admitted, what):
        queue = Queue(limits)
        refusals = []
        for tokens in sizes:
            call = make_call(*tokens)
            refused = refusal(queue, call)
            if refused is None:
                queue.push(call, NOW)
            else:
                refusals.append(refused.what)
        assert len(sizes) - len(refusals) == admitted
        assert refusals == ([what] if what else [])
        assert queue.tokens <= limits.queue_tokens
        assert queue.requests <= limits.queue_requests
        assert queue.nbytes <= limits.queue_bytes

    def test_retry_after_comes_from_the_measured_rate(self):
        queue = Queue(Limits(batch_tokens=100, queue_tokens=1_000))
        for tokens in (50, 100):
            queue.latency.observe(tokens, tokens * 0.01)
        admit(queue, *[make_call(100) for _ in range(10)])
        refused = refusal(queue, make_call(500))
        print(f"500 tokens over a full queue of 1 000 at 100 tokens/s: {refused.retry_after:.2f} s")
        assert refused.retry_after == pytest.approx(5.0)

    def test_what_can_never_fit_says_so(self):
        queue = Queue(Limits(queue_requests=3))
        assert refusal(queue, make_call(*[1] * 4, separate=True)).retry_after == math.inf


class TestDeadlines:
    def trained(self, per_token_s: float = 0.01) -> Queue:
        queue = Queue(Limits(batch_tokens=100))
        for tokens in (20, 60, 100):
            queue.latency.observe(tokens, tokens * per_token_s)
        return queue

    @pytest.mark.parametrize("tokens", [[50], [20, 30]])
    def test_an_idle_batcher_always_tries(self, tokens):
        queue = self.trained(per_token_s=1.0)
        call = make_call(*tokens, deadline=NOW + 0.1)
        admit(queue, call)
        batch = take(queue)  # it keeps the prediction honest
        assert [text.call for text in batch.texts] == [call] * len(tokens)
        assert not batch.shed

    def test_a_backlog_that_leaves_no_time_is_refused_at_the_door(self):
        queue = self.trained()
        admit(queue, *[make_call(100) for _ in range(5)])
        refused = refusal(queue, make_call(10, deadline=NOW + 2.0))
        assert refused.what == "deadline"
        assert refused.value == pytest.approx(6.0)  # in the sixth full batch
        assert refused.retry_after == pytest.approx(4.3)  # 0.85 of the deadline is allowed
        assert refusal(queue, make_call(10, deadline=NOW + 7.1)) is None

    def test_the_running_batch_counts_too(self):
        queue = self.trained()
        admit(queue, make_call(100))
        take(queue)
        assert refusal(queue, make_call(10, deadline=NOW + 0.5)).what == "deadline"
        assert refusal(queue, make_call(10, deadline=NOW + 1.3)) is None

    def test_higher_priority_looks_only_at_what_goes_before_it(self):
        queue = self.trained()
        admit(queue, *[make_call(100) for _ in range(5)])
        assert refusal(queue, make_call(10, priority=3, deadline=NOW + 1.0)) is None

    @pytest.mark.parametrize("tokens", [[50], [30, 10, 10]])
    def test_what_cannot_be_met_is_shed_before_it_runs(self, tokens):
        queue = self.trained()
        tight, easy = make_call(*tokens, deadline=NOW + 0.6), make_call(50)
        admit(queue, tight, easy)
        batch = take(queue, NOW + 0.3)
        assert {text.call for text in batch.shed} == {tight}
        assert [text.call for text in batch.texts] == [easy]
        assert held(queue) == (0, 0, 0)

    def test_a_request_of_many_batches_is_judged_as_a_whole(self):
        """Its first batch would be in time; its answer would not."""
        queue = self.trained()
        large = make_call(*[50] * 6, deadline=NOW + 2.5)
        admit(queue, large)
        admit(queue, make_call(10))
        batch = take(queue)
        assert {text.call for text in batch.shed} == {large}
        assert held(queue) == (0, 0, 0)

    def test_a_batch_ends_where_it_would_be_late_for_who_is_in_it(self):
        queue = self.trained()
        tight, other = make_call(40, deadline=NOW + 0.6), make_call(40)
        admit(queue, tight, other)
        assert taken(queue) == [(tight, 0)]
        assert taken(queue) == [(other, 0)]

    def test_expired_wherever_they_are(self):
        queue = Queue(Limits(batch_tokens=10))
        running, waiting = (make_call(10, deadline=NOW + 1) for _ in range(2))
        later = make_call(10, deadline=NOW + 9)
        admit(queue, running, waiting, later)
        take(queue)
        assert queue.next_deadline() == NOW + 1
        late = queue.expired(NOW + 1)
        assert set(late) == {running.futures[0], waiting.futures[0]}
        for future in late:
            queue.claim(future)
        assert queue.next_deadline() == NOW + 9
        assert held(queue) == (10, 1, 10)


class TestLatencyModel:
    def test_finds_the_line(self):
        model = LatencyModel()
        for tokens in range(10, 100, 3):
            model.observe(tokens, 0.002 * tokens + 0.05)
        assert model.predict(200) == pytest.approx(0.45)
        assert model.drain(250, 100) == pytest.approx(0.002 * 250 + 3 * 0.05)

    def test_equal_sizes_go_through_the_origin(self):
        model = LatencyModel()
        for _ in range(5):
            model.observe(100, 1.0)
        assert model.predict(50) == pytest.approx(0.5)

    def test_forgets(self):
        model = LatencyModel(window=10)
        for _ in range(1_000):
            model.observe(100, 9.0)
        for tokens in range(10, 110, 10):
            model.observe(tokens, tokens * 0.1)
        assert model.predict(70) == pytest.approx(7.0)

    def test_knows_nothing_at_first(self):
        model = LatencyModel()
        assert not model
        assert model.predict(1_000) == model.drain(1_000, 10) == 0.0
