"""The batcher's policy, in tables: no threads, no clock, no sleeps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kosine.admission import cut
from kosine.ageing_queue import AgeingQueue
from kosine.job import Job
from kosine.latency import LatencyModel
from kosine.packed import Packed
from kosine.schedule import Batch, Limits, Schedule
from kosine.segments import Segment, join

NOW = 100.0


def make_job(
    *tokens: int,
    grouped: bool = False,
    priority: int = 0,
    deadline: float = math.inf,
    max_tokens: int = 10_000,
) -> Job:
    """A job whose texts have so many tokens; their sizes are the same numbers."""
    job = Job(["x" * n for n in tokens], list(tokens), 0, max_tokens)
    job.grouped = grouped
    job.requests = len(tokens) if grouped else 1
    job.priority = priority
    job.deadline = deadline
    return job


def tokenise(schedule: Schedule, exact: dict[Job, list[int]] | None = None) -> None:
    """Make everything that waits ready, with exact counts where given."""
    while jobs := schedule.take_waiting():
        for job in jobs:
            counts = (exact or {}).get(job, list(job.sizes))
            packed = Packed.of([[1] * n for n in counts])
            schedule.mark_ready(job, job.adopt(packed, packed.starts.tolist(), 0))


def admit(schedule: Schedule, *jobs: Job, now: float = NOW) -> None:
    for job in jobs:
        assert schedule.admit([job], now) is None
    tokenise(schedule)


def texts(batch: Batch) -> list[tuple[Job, int, int]]:
    return [tuple(segment) for segment in batch.segments]


class TestOrder:
    @pytest.mark.parametrize(
        ("arrivals", "order"),
        [
            # (arrived, priority) of each job, in order of arrival; ageing is 1 s a level
            ([(0.0, 0), (0.1, 0), (0.2, 0)], [0, 1, 2]),
            ([(0.0, 0), (0.5, 1)], [1, 0]),
            ([(0.0, 0), (1.5, 1)], [0, 1]),
            ([(0.0, 0), (0.1, -1), (0.5, 3), (2.5, 2)], [2, 0, 3, 1]),
        ],
    )
    def test_a_level_of_priority_is_worth_a_second(self, arrivals, order):
        queue = AgeingQueue(ageing_s=1.0)
        jobs = []
        for arrived, priority in arrivals:
            job = make_job(1, priority=priority)
            job.queued = arrived
            jobs.append(job)
            queue.push(job)
        got = []
        while (head := queue.head()) is not None:
            queue.pop(head)
            got.append(jobs.index(head))
        assert got == order

    def test_nothing_starves_under_a_stream_of_higher_priority(self):
        schedule = Schedule(Limits(batch_tokens=10, ageing_s=1.0))
        low = make_job(10)
        admit(schedule, low, now=0.0)
        waited = None
        for step in range(1, 100):
            now = step * 0.1
            admit(schedule, make_job(10, priority=5), now=now)
            batch = schedule.take(now)
            if batch.segments[0].job is low:
                waited = now
                break
        print(f"priority 0 against priority 5 waits {waited} s, the head start is 5 s")
        assert waited == pytest.approx(5.1, abs=0.11)

    def test_late_tokenising_keeps_the_order_of_arrival(self):
        queue = AgeingQueue(1.0)
        first, second, third = (make_job(1) for _ in range(3))
        first.queued, second.queued, third.queued = 1.0, 2.0, 3.0
        for job in (second, third, first):
            queue.push(job)
        assert list(queue) == [first, second, third]

    def test_dead_entries_do_not_pile_up(self):
        schedule = Schedule(Limits())
        for _ in range(10_000):
            job = make_job(1)
            assert schedule.admit([job], NOW) is None
            schedule.drop(job)
        held = len(schedule.waiting._first)
        print(f"10 000 cancelled with the backend stuck: {held} entries remain")
        assert held < 200
        assert (schedule.tokens, schedule.requests, schedule.nbytes) == (0, 0, 0)


class TestBatches:
    def test_takes_what_fits_the_token_budget(self):
        schedule = Schedule(Limits(batch_tokens=10))
        jobs = [make_job(n) for n in (4, 5, 2, 1)]
        admit(schedule, *jobs)
        assert texts(schedule.take(NOW)) == [(jobs[0], 0, 1), (jobs[1], 0, 1)]
        assert texts(schedule.take(NOW)) == [(jobs[2], 0, 1), (jobs[3], 0, 1)]
        assert texts(schedule.take(NOW)) == []

    def test_a_text_over_the_budget_goes_alone(self):
        schedule = Schedule(Limits(batch_tokens=10))
        small, huge, after = make_job(3), make_job(50), make_job(2)
        admit(schedule, small, huge, after)
        assert [texts(schedule.take(NOW)) for _ in range(3)] == [
            [(small, 0, 1)],
            [(huge, 0, 1)],
            [(after, 0, 1)],
        ]

    def test_a_request_over_the_budget_is_split_and_lets_others_through(self):
        schedule = Schedule(Limits(batch_tokens=10))
        huge, small = make_job(*[4] * 5), make_job(3)
        admit(schedule, huge, small)
        assert texts(schedule.take(NOW + 1)) == [(huge, 0, 2)]
        # The rest went to the end of the line.
        assert texts(schedule.take(NOW + 2)) == [(small, 0, 1), (huge, 2, 3)]
        assert texts(schedule.take(NOW + 3)) == [(huge, 3, 5)]
        assert (schedule.tokens, schedule.requests, schedule.nbytes) == (0, 0, 0)

    def test_cancelled_texts_are_left_out(self):
        schedule = Schedule(Limits(batch_tokens=100))
        job = make_job(1, 2, 3, 4, grouped=True)
        admit(schedule, job)
        schedule.drop_text(job, 0)
        schedule.drop_text(job, 2)
        assert (schedule.tokens, schedule.requests, schedule.nbytes) == (6, 2, 6)
        batch = schedule.take(NOW)
        assert texts(batch) == [(job, 1, 2), (job, 3, 4)]
        assert batch.tokens == 6
        assert (schedule.tokens, schedule.requests, schedule.nbytes) == (0, 0, 0)
        assert schedule.ready_tokens == 0

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
        schedule = Schedule(Limits(batch_tokens=10, wait_s=wait_s))
        for at, n in zip(arrived, tokens, strict=True):
            admit(schedule, make_job(n), now=at)
        assert schedule.run_at(5.0) == starts

    def test_nothing_ready_is_never(self):
        assert Schedule(Limits()).run_at(NOW) == math.inf

    def test_one_prompt_per_tokenising(self):
        schedule = Schedule(Limits())
        jobs = [make_job(1) for _ in range(4)]
        jobs[2].prompt = ("query", None)
        for job in jobs:
            schedule.admit([job], NOW)
        chunks = [schedule.take_waiting() for _ in range(3)]
        assert chunks == [jobs[:2], [jobs[2]], [jobs[3]]]


class TestAdmission:
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
    def test_bounds_are_atomic_per_request(self, limits, sizes, admitted, what):
        schedule = Schedule(limits)
        schedule.estimate_ratio = 1.0
        results = [schedule.admit([make_job(*tokens)], NOW) for tokens in sizes]
        refusals = [refusal for refusal in results if refusal is not None]
        assert len(results) - len(refusals) == admitted
        assert [refusal.what for refusal in refusals] == ([what] if what else [])
        assert schedule.tokens <= limits.queue_tokens
        assert schedule.requests <= limits.queue_requests
        assert schedule.nbytes <= limits.queue_bytes

    def test_a_call_of_many_parts_enters_whole_or_not_at_all(self):
        schedule = Schedule(Limits(queue_requests=5))
        parts = [make_job(1, 1, 1, grouped=True), make_job(1, 1, 1, grouped=True)]
        assert schedule.admit(parts, NOW).what == "requests"
        assert (schedule.tokens, schedule.requests, schedule.nbytes) == (0, 0, 0)
        assert not schedule.waiting

    def test_retry_after_comes_from_the_measured_rate(self):
        schedule = Schedule(Limits(batch_tokens=100, queue_tokens=1_000))
        for tokens in (50, 100):
            schedule.learn_run(tokens, tokens * 0.01)
        admit(schedule, *[make_job(100) for _ in range(10)])
        refusal = schedule.admit([make_job(500)], NOW)
        print(f"500 tokens over a full queue of 1 000 at 100 tokens/s: {refusal.retry_after:.2f} s")
        assert refusal.retry_after == pytest.approx(5.0)

    def test_what_can_never_fit_says_so(self):
        schedule = Schedule(Limits(queue_requests=3))
        refusal = schedule.admit([make_job(*[1] * 4, grouped=True)], NOW)
        assert refusal.retry_after == math.inf
        assert not refusal.countable

    def test_an_upper_estimate_never_refuses_for_ever(self):
        schedule = Schedule(Limits(queue_tokens=100))
        refusal = schedule.admit([make_job(60, 60)], NOW)
        assert refusal.countable
        job = make_job(60, 60)
        packed = Packed.of([[1] * 10, [1] * 10])
        job.adopt(packed, packed.starts.tolist(), 0)
        assert schedule.admit([job], NOW) is None
        assert schedule.tokens == 20

    def test_exact_counts_replace_estimates(self):
        schedule = Schedule(Limits())
        job = make_job(100, 100)
        schedule.admit([job], NOW)
        assert schedule.tokens == 200
        tokenise(schedule, {job: [10, 15]})
        assert schedule.tokens == schedule.ready_tokens == 25
        assert schedule.estimate_ratio < 1.0


class TestCutting:
    """How the texts of one `submit_many` are parted."""

    @pytest.mark.parametrize(
        ("sizes", "parts"),
        [
            ([], []),
            ([8], [(0, 1)]),
            ([8, 8, 8], [(0, 3)]),
            ([8, 8, 9], [(0, 2), (2, 3)]),
            ([8] * 7, [(0, 3), (3, 6), (6, 7)]),
            ([1] * 11, [(0, 5), (5, 10), (10, 11)]),
            ([28, 29, 28], [(0, 1), (1, 2), (2, 3)]),
            ([500, 1, 1, 500], [(0, 1), (1, 3), (3, 4)]),
            ([1, 1, 500, 1], [(0, 2), (2, 3), (3, 4)]),
        ],
    )
    def test_parts_end_where_the_next_text_is_too_much(self, sizes, parts):
        assert list(cut(sizes, 2, 100, 30, 5)) == parts

    def test_long_texts_count_as_what_is_left_of_them(self):
        assert list(cut([10_000] * 6, 2, 10, 30, 5)) == [(0, 3), (3, 6)]

    def test_any_sizes_are_parted_without_gaps_and_as_full_as_can_be(self):
        generator = np.random.default_rng(3)
        for _ in range(200):
            sizes = generator.integers(0, 60, int(generator.integers(1, 80))).tolist()
            parts = list(cut(sizes, 2, 50, 90, 7))
            weights = [min(size + 2, 50) for size in sizes]
            assert [index for part in parts for index in range(*part)] == list(range(len(sizes)))
            for start, stop in parts:
                assert 1 <= stop - start <= 7
                assert stop - start == 1 or sum(weights[start:stop]) <= 90
                if stop < len(sizes) and stop - start < 7:
                    assert sum(weights[start : stop + 1]) > 90

    def test_exact_estimates_fill_a_batch_and_others_leave_some_room(self):
        schedule = Schedule(Limits(batch_tokens=1_000))
        assert schedule.part_tokens() == 1_000
        schedule.estimate_ratio = 0.99
        assert schedule.part_tokens() == 1_000
        schedule.estimate_ratio = 0.25
        assert schedule.part_tokens() == 3_800


class TestDeadlines:
    def trained(self, per_token_s: float = 0.01) -> Schedule:
        schedule = Schedule(Limits(batch_tokens=100))
        for tokens in (20, 60, 100):
            schedule.learn_run(tokens, tokens * per_token_s)
        return schedule

    def test_an_idle_batcher_always_tries(self):
        schedule = self.trained(per_token_s=1.0)
        job = make_job(50, deadline=NOW + 0.1)
        assert schedule.admit([job], NOW) is None
        tokenise(schedule)
        batch = schedule.take(NOW)
        assert texts(batch) == [(job, 0, 1)]  # the probe that keeps the prediction honest

    def test_a_backlog_that_leaves_no_time_is_refused_at_the_door(self):
        schedule = self.trained()
        admit(schedule, *[make_job(100) for _ in range(5)])
        refusal = schedule.admit([make_job(10, deadline=NOW + 2.0)], NOW)
        assert refusal.what == "deadline"
        assert refusal.value == pytest.approx(6.0)  # in the sixth full batch
        assert refusal.retry_after == pytest.approx(4.3)  # 0.85 of the deadline is allowed
        assert schedule.admit([make_job(10, deadline=NOW + 7.1)], NOW) is None

    def test_the_running_batch_counts_too(self):
        schedule = self.trained()
        admit(schedule, make_job(100))
        schedule.take(NOW)
        assert schedule.admit([make_job(10, deadline=NOW + 0.5)], NOW).what == "deadline"
        assert schedule.admit([make_job(10, deadline=NOW + 1.3)], NOW) is None

    def test_higher_priority_looks_only_at_what_goes_before_it(self):
        schedule = self.trained()
        admit(schedule, *[make_job(100) for _ in range(5)])
        assert schedule.admit([make_job(10, priority=3, deadline=NOW + 1.0)], NOW) is None

    def test_what_cannot_be_met_is_shed_at_dequeue(self):
        schedule = self.trained()
        tight, easy = make_job(50, deadline=NOW + 0.6), make_job(50)
        admit(schedule, tight, easy)
        batch = schedule.take(NOW + 0.3)
        assert batch.shed == [tight]
        assert texts(batch) == [(easy, 0, 1)]

    def test_expired_wherever_they_are(self):
        schedule = Schedule(Limits(batch_tokens=10))
        running, waiting, later = (
            make_job(10, deadline=NOW + 1),
            make_job(10, deadline=NOW + 1),
            make_job(10, deadline=NOW + 9),
        )
        admit(schedule, running, waiting, later)
        schedule.take(NOW)
        assert schedule.next_deadline() == NOW + 1
        assert set(schedule.expired(NOW + 1)) == {running, waiting}
        for job in (running, waiting):
            schedule.drop(job)
        assert schedule.next_deadline() == NOW + 9
        assert schedule.tokens == 10

    def test_deadlines_of_the_answered_do_not_pile_up(self):
        schedule = Schedule(Limits())
        for _ in range(5_000):
            job = make_job(1, deadline=NOW + 1_000)
            assert schedule.admit([job], NOW) is None
            schedule.drop(job)
        assert len(schedule._deadlines) < 200


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


def test_join_copies_neighbours_at_once_and_keeps_skips():
    a = Packed.of([[1, 2], [3], [4, 5, 6]])
    b = Packed.of([[7], [8, 9]], skip=Packed.of([[0]]).lengths.repeat(2))
    joined = join([(a, 1, 2), (a, 2, 3), (b, 1, 2)])
    assert joined.ids.tolist() == [3, 4, 5, 6, 8, 9]
    assert joined.starts.tolist() == [0, 1, 4, 6]
    assert joined.skip.tolist() == [0, 0, 1]
    assert join([(a, 0, 3)]) is a
    middle = join([(b, 1, 2)])
    assert middle.ids.tolist() == [8, 9]
    assert middle.starts.tolist() == [0, 2]
    assert middle.starts.dtype == np.int32
    assert middle.skip.tolist() == [1]
    assert join([(a, 1, 2), (a, 2, 3)]).ids.tolist() == [3, 4, 5, 6]
    assert join([(a, 0, 1), (a, 2, 3)]).skip is None


def test_segment_is_a_plain_triple():
    job = make_job(1)
    assert tuple(Segment(job, 0, 1)) == (job, 0, 1)
