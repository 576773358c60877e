"""The batcher's policy: who is admitted, who goes next, who is dropped. No threads, no clock.

Every method takes the time as an argument and returns a decision; the caller carries it out.

- The queue is bounded in requests, tokens and bytes; a call is admitted whole or not at all.
- Calls are served in the order of their arrival, with a head start of `ageing_s` seconds per
  level of priority. Everybody ages alike, so that order never changes while waiting: nothing
  starves, and nothing is sorted again.
- A batch takes texts in that order until the next one does not fit. A text over the budget goes
  alone. A call that is not through goes to the end of its level, so that a huge one neither
  blocks the others nor waits for them for ever.
- A text whose deadline has passed, or is predicted to pass before its batch ends, is shed before
  it costs anything.
"""

from __future__ import annotations

import math
from typing import Any

from kosine.serving.latency import LatencyModel
from kosine.serving.limits import Limits, Refusal
from kosine.serving.order import Deadlines, Level
from kosine.serving.request import Batch, BatchFuture, Call, Text

__all__ = ["Queue"]

# A request is admitted, and a batch grown, if the answer is predicted within this part of the
# time that is left: under overload the queue settles at the limit, and predictions are not exact.
# A machine may become a tenth slower at any time, and then everybody in the queue is late together.
# A shorter queue serves no fewer: as many have to be refused, only earlier.
HEADROOM = 0.85


class Queue:
    """The texts that wait.

    Args:
        limits: Bounds and budget.

    Attributes:
        tokens, requests, nbytes: What waits.
        latency: What batches take.
        busy_until: When the batch that runs is predicted to end.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.latency = LatencyModel()
        self.tokens = self.requests = self.nbytes = 0
        self.busy_until = -math.inf
        self._levels: dict[int, Level] = {}
        self._deadlines = Deadlines()

    # Coming in

    def refusal(
        self, tokens: int, requests: int, nbytes: int, priority: int, deadline: float, now: float
    ) -> Refusal | None:
        """Why a call of this size cannot be admitted now; None if it can.

        Args:
            tokens, requests, nbytes: Of the call, or the least that they can be.
            priority: Its level.
            deadline: When its answer must be there; infinite for none.
            now: The time.
        """
        limits = self.limits
        if (
            self.tokens + tokens <= limits.queue_tokens
            and self.requests + requests <= limits.queue_requests
            and self.nbytes + nbytes <= limits.queue_bytes
        ):
            return None if deadline == math.inf else self._late(tokens, priority, deadline, now)
        worst: Refusal | None = None
        for what, held, extra, limit in (
            ("requests", self.requests, requests, limits.queue_requests),
            ("bytes", self.nbytes, nbytes, limits.queue_bytes),
            ("tokens", self.tokens, tokens, limits.queue_tokens),
        ):
            if held + extra <= limit:
                continue
            if extra > limit:
                return Refusal(what, extra, limit, math.inf)
            # What must leave first is a part of what is held: so is the time that it takes.
            share = (held + extra - limit) / held
            worst = Refusal(what, held + extra, limit, self._backlog_s(now) * share)
        assert worst is not None, "some bound is broken"
        a_batch = self.latency.predict(limits.batch_tokens) if self.latency else 1.0
        return worst._replace(retry_after=max(worst.retry_after, a_batch))

    def push(self, call: Call, now: float) -> None:
        """Take a call in; `refusal` had nothing against it."""
        call.arrived = call.queued = now
        level = self._levels.get(call.priority)
        if level is None:
            level = self._levels[call.priority] = Level()
        level.calls[call] = None
        if call.deadline != math.inf:
            self._deadlines.watch(call)
        level.tokens += call.tokens
        self.tokens += call.tokens
        self.requests += len(call.futures)
        self.nbytes += sum(call.sizes)

    def _late(self, tokens: int, priority: int, deadline: float, now: float) -> Refusal | None:
        """Whether the backlog ahead leaves no time; an idle batcher always tries."""
        if not self.tokens and now >= self.busy_until:
            return None
        budget = self.limits.batch_tokens
        total = self._tokens_ahead(priority, now) + tokens
        if total > budget:
            # Behind a full batch the next one will be full too, and ends for all of it at once.
            total = -(-total // budget) * budget
        finish = max(now, self.busy_until) + self.latency.drain_at_most(total, budget)
        allowed = HEADROOM * (deadline - now)
        if finish - now <= allowed:
            return None
        return Refusal("deadline", finish - now, deadline - now, finish - now - allowed)

    def _tokens_ahead(self, priority: int, now: float) -> int:
        """Tokens that go before what arrives now with that priority."""
        ageing_s = self.limits.ageing_s
        key = now - priority * ageing_s
        return sum(
            level.tokens
            for own, level in self._levels.items()
            if own >= priority or level.first().queued - own * ageing_s < key
        )

    def _backlog_s(self, now: float) -> float:
        left = max(0.0, self.busy_until - now)
        return left + self.latency.drain(self.tokens, self.limits.batch_tokens)

    # Going out

    def run_at(self, now: float) -> float:
        """When the next batch should start: now or earlier, a time to wait for, or never."""
        if not self._levels:
            return math.inf
        if self.limits.wait_s <= 0.0 or self.tokens >= self.limits.batch_tokens:
            return now
        oldest = min(level.first().arrived for level in self._levels.values())
        latest = self.next_deadline() - self.latency.predict(self.tokens)
        return min(oldest + self.limits.wait_s, latest)

    def take(self, batch: Batch, now: float) -> None:
        """Fill a batch, in order, up to the budget; shed who cannot make it.

        A batch also ends where the next text would make it too long for the deadline of one that
        is in it already. Texts are put into the batch before they leave the queue: whoever is
        interrupted in between loses none.
        """
        budget = self.limits.batch_tokens
        predict = self.latency.drain_at_most
        patience = math.inf
        probe: Call | None = None
        full = False
        while not full and batch.tokens < budget and (call := self._head()) is not None:
            timed = call.deadline != math.inf
            sizes = call.sizes
            # Of the texts that leave the queue; they are the first that wait.
            leaving = tokens = nbytes = 0
            for text in call.remaining():
                total = batch.tokens + text.tokens
                if timed and not (call.matrix and leaving):
                    # Texts that are answered together are worth nothing until the last has run.
                    needed = batch.tokens + call.tokens if call.matrix else total
                    if now + predict(needed, budget) > call.deadline:
                        if probe is None and call.deadline > now:
                            probe = call
                        late = [*call.remaining()] if call.matrix else [text]
                        batch.shed += late
                        leaving += len(late)
                        tokens += sum([text.tokens for text in late])
                        nbytes += sum([sizes[text.place] for text in late])
                        call.next = late[-1].place + 1
                        if call.matrix:
                            break
                        continue
                full = bool(batch.texts) and (
                    total > budget or (patience != math.inf and predict(total, budget) > patience)
                )
                if full:
                    break
                if timed:
                    patience = min(patience, HEADROOM * (call.deadline - now))
                batch.texts.append(text)
                batch.tokens = total
                leaving += 1
                tokens += text.tokens
                nbytes += sizes[text.place]
                call.next = text.place + 1
                if total >= budget:
                    break
            if leaving:
                requests = int(call.waiting == leaving) if call.matrix else leaving
                self._discharge(call, requests, leaving, tokens, nbytes)
                if call.waiting and batch.texts and batch.texts[-1].call is call:
                    # Served for now: the others of its level go first.
                    call.queued = now
                    self._levels[call.priority].calls.move_to_end(call)
        if probe is not None and not batch.texts:
            # Nothing else to run: trying costs nobody's place and keeps the prediction honest.
            self._try_again(batch, probe)
        if batch.texts:
            self.busy_until = now + self.latency.predict(batch.tokens)

    def _head(self) -> Call | None:
        """The call that goes next; None if nothing waits."""
        best: Call | None = None
        best_key = math.inf
        for priority, level in self._levels.items():
            call = level.first()
            key = call.queued - priority * self.limits.ageing_s
            if key < best_key:
                best, best_key = call, key
        return best

    def _try_again(self, batch: Batch, call: Call) -> None:
        for text in [text for text in batch.shed if text.call is call]:
            if batch.texts and batch.tokens + text.tokens > self.limits.batch_tokens:
                break
            batch.texts.append(text)
            batch.tokens += text.tokens
            batch.shed.remove(text)

    # Leaving early

    def claim(self, future: BatchFuture[Any]) -> None:
        """A future is answered, failed or cancelled: its texts no longer wait."""
        future.open = False
        call, future.call = future.call, None
        if call is None:
            return
        call.open -= 1
        if not call.open and call.deadline != math.inf:
            self._deadlines.forget(call)
        index = future.index
        if call.matrix:
            if call.waiting:
                left = call.sizes[call.next :]
                self._discharge(call, 1, len(left), call.tokens, sum(left))
        elif index >= call.next:
            call.futures[index] = None  # what nobody waits for takes no memory
            self._discharge(call, 1, 1, len(call.sentences[index]), call.sizes[index])

    def expired(self, now: float) -> list[BatchFuture[Any]]:
        """Open futures whose deadline has passed, whether they wait or run."""
        calls = self._deadlines.passed(now)
        return [
            future
            for call in calls
            for future in call.futures
            if future is not None and future.open
        ]

    def next_deadline(self) -> float:
        """The earliest deadline of an open future; infinite if there is none."""
        return self._deadlines.earliest()

    def waiting(self) -> list[Text]:
        """Every text that waits."""
        calls = [call for level in self._levels.values() for call in level.calls]
        return [text for call in calls for text in call.remaining()]

    def recount(self) -> None:
        """Recompute all sums from the texts: a killed thread may have left a half-done step."""
        texts = self.waiting()
        for priority, level in list(self._levels.items()):
            for call in list(level.calls):
                own = [*call.remaining()]
                call.waiting, call.tokens = len(own), sum(text.tokens for text in own)
                if not own:
                    del level.calls[call]
            level.tokens = sum(call.tokens for call in level.calls)
            if not level.calls:
                del self._levels[priority]
        self.tokens = sum(text.tokens for text in texts)
        self.nbytes = sum(text.call.sizes[text.place] for text in texts)
        self.requests = len({text.future for text in texts})

    def _discharge(self, call: Call, requests: int, texts: int, tokens: int, nbytes: int) -> None:
        """So much of a call no longer waits."""
        call.waiting -= texts
        call.tokens -= tokens
        self.tokens -= tokens
        self.nbytes -= nbytes
        self.requests -= requests
        level = self._levels[call.priority]
        level.tokens -= tokens
        if not call.waiting:
            level.calls.pop(call, None)
            if not level.calls:
                del self._levels[call.priority]
