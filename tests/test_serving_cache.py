"""The batcher's cache: the same bits, bounded, counted, and no text in it."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import kosine
from kosine.errors import BatcherClosed, InputError, QueueFull, UnknownPrompt
from kosine.serving.cache import ENTRY_BYTES, Key, VectorCache
from kosine.testing import FakeBackend, FakeEncoder, SteppedBatcher

ROOM = 1 << 20


def make(**options):
    encoder = FakeEncoder(FakeBackend(dim=8), prompts={"query": "q: ", "other": "o: "})
    return SteppedBatcher(encoder, cache_bytes=options.pop("cache_bytes", ROOM), **options)


def answer(batcher, *args, **options):
    future = batcher.submit(*args, **options)
    while batcher.run_batch():
        pass
    return future.result(0)


def test_the_same_bits_without_the_queue():
    with make() as batcher:
        first = answer(batcher, "a text")
        future = batcher.submit("a text")
        assert future.done()
        assert future.result().tobytes() == first.tobytes()
        stats = batcher.stats()
    assert (stats.cache_hits, stats.cache_misses, stats.cache_hit_rate) == (1, 1, 0.5)
    assert (stats.submitted, stats.completed, stats.batch_texts) == (2, 2, 1)
    assert stats.cache_bytes == first.nbytes + ENTRY_BYTES


def test_without_one_nothing_is_kept():
    with make(cache_bytes=0) as batcher:
        answer(batcher, "a text")
        assert not batcher.submit("a text").done()
        stats = batcher.stats()
    assert (stats.cache_hits, stats.cache_misses, stats.cache_bytes) == (0, 0, 0)
    assert stats.cache_hit_rate == 0


def test_what_an_answer_depends_on_is_in_the_key():
    calls = [
        {}, {"prompt_name": "query"}, {"prompt_name": "other"}, {"prompt": ""}, {"prompt": "q: "},
        {"prompt": "query"}, {"truncate_dim": 4}, {"truncate_dim": 8},
        {"normalize_embeddings": False},
    ]  # fmt: skip
    with make() as batcher, make(cache_bytes=0) as plain:
        for _ in range(2):
            for options in calls:
                found, expected = (answer(each, "a text", **options) for each in (batcher, plain))
                np.testing.assert_array_equal(found, expected)
        assert batcher.stats().cache_misses == batcher.stats().cache_hits == len(calls)
    pairs = [("a", "bc"), ("ab", "c"), ("", "abc"), (None, "abc")]
    assert len({Key.of(text, None, prompt, None, True) for prompt, text in pairs}) == len(pairs)
    assert Key.of("a", "b", None, None, True) != Key.of("a", None, "b", None, True)


def test_of_many_only_what_is_new_is_computed():
    texts = [f"text {i}" for i in range(6)]
    with make() as batcher, make(cache_bytes=0) as plain:
        answer(batcher, texts[1])
        answer(batcher, texts[4])
        futures = batcher.submit_many(texts)
        assert [future.done() for future in futures] == [i in (1, 4) for i in range(6)]
        assert batcher.run_batch()
        for future, text in zip(futures, texts, strict=True):
            np.testing.assert_array_equal(future.result(0), answer(plain, text))
        assert batcher.stats().batch_texts == 6
        # Answered together: all of them are known, or all are computed.
        rows = np.stack([future.result() for future in futures])
        np.testing.assert_array_equal(batcher.submit(texts).result(0), rows)
        again = batcher.submit([*texts, "a new one"])
        assert not again.done()
        assert batcher.run_batch()
        np.testing.assert_array_equal(again.result(0)[:6], rows)
        assert batcher.submit("a new one").done()
        stats = batcher.stats()
    assert stats.submitted == stats.completed


def test_cancelling_and_failing_beside_hits():
    with make() as batcher:
        known = answer(batcher, "known")
        futures = batcher.submit_many(["new", "known", "newer", "known"])
        assert futures[0].cancel()
        while batcher.run_batch():
            pass
        np.testing.assert_array_equal(futures[1].result(0), known)
        assert futures[2].result(0).shape == (8,)
        assert not batcher.submit("new").done(), "what was cancelled is not kept"
        with pytest.raises(UnknownPrompt):
            batcher.submit("known", prompt_name="no such")


def test_a_hit_needs_no_room_in_the_queue():
    with make(max_queue_requests=1) as batcher:
        answer(batcher, "known")
        batcher.submit("waits")
        assert batcher.submit("known").done()
        with pytest.raises(QueueFull):
            batcher.submit("new")
    with pytest.raises(BatcherClosed):
        batcher.submit("known")


def test_what_the_caller_does_to_a_vector_is_not_kept():
    with make() as batcher:
        first = answer(batcher, "a text")
        kept = first.copy()
        first[:] = 7
        second = batcher.submit("a text").result(0)
        np.testing.assert_array_equal(second, kept)
        second[:] = 9
        np.testing.assert_array_equal(batcher.submit("a text").result(0), kept)


def test_it_is_bounded_and_forgets_what_was_used_longest_ago():
    size = 8 * 4 + ENTRY_BYTES
    cache = VectorCache(3 * size)
    keys = [Key.of(str(i), None, None, None, True) for i in range(5)]
    vectors = np.eye(8, dtype=np.float32)
    for i in (0, 1, 2):
        cache.keep(keys[i], vectors[i])
    assert cache.find(keys[0]) is not None
    cache.keep(keys[3], vectors[3])
    assert cache.nbytes == 3 * size
    assert [cache.find(key) is not None for key in keys] == [True, False, True, True, False]
    VectorCache(size - 1).keep(keys[0], vectors[0])  # no room for one: nothing happens


def test_it_holds_no_text():
    secret = "주민등록번호 구백구십구"
    with make() as batcher:
        answer(batcher, secret, prompt="비밀 머리말 ")
        gc.collect()
        held = [*batcher._cache._vectors]
    assert held
    assert not any(isinstance(part, str) for key in held for part in key)
    assert all(len(key.digest) == 32 for key in held)


@pytest.mark.parametrize("value", [-1, 1.5, "64", True, None])
def test_what_it_cannot_be(value):
    with pytest.raises(InputError, match="cache_bytes="):
        make(cache_bytes=value)


def test_threads_and_an_encoder(sample):
    """With real threads, from many callers, on real vectors."""
    texts = [f"문장 {i % 7}" for i in range(60)]
    expected = {text: sample.encode(text) for text in texts}
    wrong = []

    def ask(batcher):
        for text in texts:
            found = batcher.submit(text).result(60)
            if np.abs(found - expected[text]).max() > 1e-6:
                wrong.append(text)

    with kosine.Batcher(sample, cache_bytes=ROOM) as batcher:
        threads = [threading.Thread(target=ask, args=(batcher,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = batcher.stats()
    assert not wrong
    assert stats.cache_hits + stats.cache_misses == 240
    assert stats.cache_hits >= 240 - 4 * 7
    assert stats.submitted == stats.completed == 240


def test_an_answer_is_kept_before_anybody_can_change_it(monkeypatch):
    """Whoever waits may write into the vector at the moment that the future is done."""
    futures, done = [], []
    keep = VectorCache.keep

    def watched(self, key, vector):
        done.append(futures[0].done())
        keep(self, key, vector)

    monkeypatch.setattr(VectorCache, "keep", watched)
    for texts in ("a text", ["one", "two"]):
        futures.clear()
        with make() as batcher:
            futures.append(batcher.submit(texts))
            while batcher.run_batch():
                pass
    assert done == [False] * 3
