"""The right to have one call under way at an endpoint: given when the limits allow it, in fair order, and always given back."""

from __future__ import annotations

import asyncio
from math import ceil, inf
from types import TracebackType
from uuid import UUID

from app.errors import LLMUnavailable, RateLimited
from app.llm.line import Line, Turn
from app.llm.pace import Adaptive, Bucket
from app.llm.slices import EXPIRY_SECONDS, Ask, Grant, Slices

MAX_WAITING = 2000
"""Calls that wait at one endpoint in one process; more would only pass their deadlines."""
MAX_WAITING_PER_OWNER = 500
MAX_HOLD = 60.0
"""The longest, in seconds, that one answer's Retry-After closes an endpoint: the windows of vendors' limits are a minute."""
MOMENT = 0.001


class Limiter:
    """The limits of one endpoint in this process: calls under way, and requests and tokens per minute.

    With `slices` the limits hold over all processes that share them: this one has a slice, and its calls go without asking anybody as
    long as that suffices. While the others are out of reach it keeps its slice until that would have expired. After that, and at once
    where no limit is configured, it allows itself the limit divided by the processes last known: so a configured limit holds, but for
    calls under way, as long as there are no more processes than slots, since each allows itself one call at least.
    A process that neither renews nor dies for longer than the expiry, because its event loop is blocked, loses its slice while its
    calls go on.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        max_concurrency: int | None = None,
        rpm: int | None = None,
        tpm: int | None = None,
        slices: Slices | None = None,
    ) -> None:
        """Made on the event loop. `max_concurrency` is a hard limit in place of the adaptive one's bounds."""
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._adaptive = Adaptive()
        self._slices = slices
        self._in_touch = slices is not None
        self._away_since: float | None = None
        self._replicas = 1
        self._slots, self._slots_until = 0, inf
        self._free = 0
        self._tight = False
        self._held_until = -inf
        self._line = Line()
        self._alarm: asyncio.TimerHandle | None = None
        self._peak = self._successes = 0
        self._throttled = False
        self.in_use = 0
        self.configure(max_concurrency=max_concurrency, rpm=rpm, tpm=tpm)
        if slices is not None:
            slices.join(endpoint, self)

    def configure(self, *, max_concurrency: int | None, rpm: int | None, tpm: int | None) -> None:
        """Set other limits; calls under way and waiting stay."""
        self._hard = max_concurrency is not None
        self._adaptive.configure(max_concurrency)
        self._requests = Bucket(rpm) if rpm else None
        self._tokens = Bucket(tpm) if tpm else None
        self._divide()

    @property
    def limit(self) -> int:
        """Calls that may be under way in all processes together."""
        return self._adaptive.limit

    @property
    def waiting(self) -> int:
        """Calls that wait in this process."""
        return len(self._line)

    @property
    def has_room(self) -> bool:
        """Whether a call would most likely go at once."""
        return not self._line and self.in_use < self._slots + self._free and self._loop.time() >= self._held_until

    def lease(self, owner: UUID | str, *, tokens: int, deadline: float, batch: bool = False) -> Lease:
        """`async with` this, a call may go. `tokens` is the estimate of prompt and answer, `deadline` a time of the loop's clock.

        Entering raises `RateLimited` when the owner has too many calls waiting, `LLMUnavailable` when all have, when the endpoint asked
        for a rest until after the deadline, and when the deadline passes.
        """
        return Lease(self, owner, tokens, deadline, batch)

    # --- turns

    def _goes(self, lease: Lease) -> bool:
        """Whether a call may go at once; then it has."""
        if self._line or not self._fits(lease.tokens, self._loop.time()):
            return False
        self._begin(lease.tokens)
        return True

    def _fits(self, tokens: int, now: float) -> bool:
        return (
            self.in_use < self._slots
            and self._held_until <= now < self._slots_until
            and (self._requests is None or not self._requests.delay(1, now))
            and (self._tokens is None or not self._tokens.delay(tokens, now))
        )

    def _begin(self, tokens: int) -> None:
        self.in_use += 1
        self._peak = max(self._peak, self.in_use)
        if self._requests is not None:
            self._requests.take(1)
        if self._tokens is not None:
            self._tokens.take(tokens)

    async def _wait(self, lease: Lease) -> None:
        self._refuse_if_full(lease)
        self._line.add(lease)
        late = self._loop.call_at(lease.deadline, self._late, lease)
        if len(self._line) == 1 and self._slices is not None:
            self._slices.wake()
        self._grant()
        try:
            granted = await lease.granted
        except asyncio.CancelledError:
            self._abandon(lease)
            raise
        finally:
            late.cancel()
        if not granted:
            raise LLMUnavailable("The language model is busy: no turn came in time.", retry_after=self._patience())

    def _refuse_if_full(self, lease: Lease) -> None:
        if self._line.of(lease.owner) >= MAX_WAITING_PER_OWNER:
            raise RateLimited("Too many of your calls wait for the language model.", retry_after=self._patience())
        if len(self._line) >= MAX_WAITING:
            raise LLMUnavailable("The language model is busy: too many calls wait.", retry_after=self._patience())
        if self._held_until > lease.deadline:
            raise LLMUnavailable("The language model asks to slow down.", retry_after=self._patience())

    def _patience(self) -> float:
        """Seconds after which to try again: as if every call that waits took a second."""
        held = max(0.0, self._held_until - self._loop.time())
        return min(MAX_HOLD, held + 1 + self.waiting / max(1, self._slots))

    def _late(self, turn: Turn) -> None:
        if not turn.granted.done():
            self._line.remove(turn)
            turn.granted.set_result(False)
            self._grant()

    def _abandon(self, turn: Turn) -> None:
        """Its caller was cancelled, perhaps in the same turn of the loop in which it was granted."""
        if turn.granted.cancelled():
            self._line.remove(turn)
            self._grant()
        elif turn.granted.result():
            if self._requests is not None:
                self._requests.take(-1)
            if self._tokens is not None:
                self._tokens.take(-turn.tokens)
            self._end()

    def _end(self) -> None:
        before = self.in_use
        self.in_use -= 1
        if self._line:
            self._grant()
        if self._tight and self.in_use < before and self._slices is not None:
            self._slices.wake()

    def _grant(self) -> None:
        """Let go whom the limits allow; if only time is missing, look again then."""
        now = self._loop.time()
        while turn := self._line.first():
            if turn.granted.cancelled():
                self._line.remove(turn)
                continue
            if not self._fits(turn.tokens, now):
                break
            self._line.pop(turn)
            self._begin(turn.tokens)
            turn.granted.set_result(True)
        self._set_alarm(turn, now)

    def _set_alarm(self, turn: Turn | None, now: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if turn is None or self.in_use >= self._slots:
            return
        wait = max(
            self._held_until - now,
            self._requests.delay(1, now) if self._requests is not None else 0.0,
            self._tokens.delay(turn.tokens, now) if self._tokens is not None else 0.0,
        )
        if 0 < wait < inf:
            self._alarm = self._loop.call_later(max(wait, MOMENT), self._grant)

    # --- outcomes

    def _refused(self, retry_after: float | None) -> None:
        now = self._loop.time()
        if retry_after:
            self._held_until = max(self._held_until, now + min(retry_after, MAX_HOLD))
        if self._in_touch and self._slices is not None:
            self._throttled = True
            self._slices.wake()
        else:
            self._adaptive.throttled(now)
            self._divide()

    def _answered(self, tokens: int, used: int) -> None:
        if self._tokens is not None:
            self._tokens.take(used - tokens)
        if self._in_touch:
            self._successes += 1
        else:
            before = self.limit
            self._adaptive.succeeded(self._loop.time(), self.in_use * self._replicas)
            if self.limit != before:
                self._divide()

    # --- towards the other processes

    def _divide(self) -> None:
        """Without others, all is this process's; while they are out of reach, its part; else what it is granted."""
        if self._in_touch:
            self._slots = min(self._slots, self.limit)
        else:
            self._slots, self._slots_until = max(1, self.limit // self._replicas), inf
        for bucket in (self._requests, self._tokens):
            if bucket is not None:
                bucket.fill_by(0.0 if self._in_touch else 1 / self._replicas)

    @property
    def hungry(self) -> bool:
        """See `Holder`."""
        return bool(self._line) and self._loop.time() >= self._held_until

    def ask(self, *, leaving: bool = False) -> Ask:
        """See `Holder`."""
        now = self._loop.time()
        if leaving:
            self._peak, self._slots = self.in_use, 0
        if not self._in_touch:
            keep = max(self.in_use, self._slots)
        else:
            spare = 1 if self._peak and not self._tight else 0
            busy = self.in_use if self._tight else self._peak
            keep = max(self.in_use, min(self._slots, busy + spare) if now < self._slots_until else 0)
            self._slots = min(self._slots, keep)
        calls = min(self.waiting, max(1, self._slots + self._free - self.in_use))
        asked = Ask(
            endpoint=self._endpoint,
            keep=keep,
            wanted=max(self._peak, self.in_use) + self.waiting,
            peak=self._peak,
            start=self._adaptive.start,
            floor=self._adaptive.floor,
            ceiling=self._adaptive.ceiling,
            hard=self._hard,
            successes=self._successes,
            throttled=self._throttled,
            hold=max(0.0, self._held_until - now),
            requests=self._draw(self._requests, calls, now),
            tokens=self._draw(self._tokens, self._tokens_of(calls), now),
            request_burst=self._requests.burst if self._requests else 0.0,
            request_rate=self._requests.per_second if self._requests else 0.0,
            token_burst=self._tokens.burst if self._tokens else 0.0,
            token_rate=self._tokens.per_second if self._tokens else 0.0,
        )
        self._peak, self._successes, self._throttled = self.in_use, 0, False
        return asked

    def _tokens_of(self, calls: int) -> int:
        """What the next of the waiting calls need, about."""
        first = self._line.first()
        return max(first.tokens, ceil(self._line.tokens * calls / self.waiting)) if first else 0

    def _draw(self, bucket: Bucket | None, need: int, now: float) -> int:
        return bucket.draw(need, now) if bucket is not None and self._in_touch else 0

    def granted(self, grant: Grant, until: float) -> None:
        """See `Holder`."""
        now = self._loop.time()
        self._away_since = None
        if not self._in_touch:
            self._in_touch = True
            self._divide()
        self._slots, self._slots_until = grant.slots, until
        self._adaptive.limit = grant.limit
        self._free, self._tight, self._replicas = grant.free, grant.tight, grant.replicas
        self._held_until = max(self._held_until, now + grant.hold)
        if self._requests is not None:
            self._requests.put(grant.requests)
        if self._tokens is not None:
            self._tokens.put(grant.tokens)
        self._grant()

    def missed(self, ask: Ask, replicas: int) -> None:
        """See `Holder`."""
        now = self._loop.time()
        if ask.throttled:
            self._adaptive.throttled(now)
        if self._away_since is None:
            self._away_since = now
        if self._hard and now < self._away_since + EXPIRY_SECONDS:
            return
        self._in_touch, self._replicas = False, replicas
        self._free, self._tight = 0, False
        self._divide()
        self._grant()


class Lease(Turn):
    """The right to one call: from entering to leaving `async with`."""

    __slots__ = ("_limiter", "deadline")

    def __init__(self, limiter: Limiter, owner: UUID | str, tokens: int, deadline: float, batch: bool) -> None:
        super().__init__(owner, tokens, batch)
        self._limiter = limiter
        self.deadline = deadline

    async def __aenter__(self) -> Lease:
        if not self._limiter._goes(self):
            await self._limiter._wait(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._limiter._end()

    def throttled(self, retry_after: float | None = None) -> None:
        """The endpoint answered 429, and asked for so many seconds of rest: all calls to it wait for as long (`MAX_HOLD`)."""
        self._limiter._refused(retry_after)

    def succeeded(self, tokens_used: int) -> None:
        """The endpoint answered; what the estimate was wrong by is settled. Say one of both at most, before leaving."""
        self._limiter._answered(self.tokens, tokens_used)
