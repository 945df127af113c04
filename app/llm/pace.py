"""How much an endpoint takes: a limit of calls under way that adapts to its refusals, and buckets of requests and tokens a minute."""

from __future__ import annotations

from math import ceil, inf

START, FLOOR, CEILING = 20, 10, 100
"""Calls under way at one endpoint: at first, at least and at most, unless a limit is configured (design, section 6)."""
SHRINK, GROW = 0.8, 1.05
COOLDOWN_SECONDS = 15.0
WELL_USED = 0.8
BURST_SHARE = 0.05
"""The part of a minute's allowance that may go out at one moment."""


class Adaptive:
    """The limit of calls under way.

    A 429 shrinks it, once in a cooldown, in which it does not grow either. It grows after a round, as many successes as the limit
    without a 429, in which most of it was in use.
    """

    def __init__(self) -> None:
        self.start, self.floor, self.ceiling = START, FLOOR, CEILING
        self._exact = float(START)
        self._successes = 0
        self._peak = 0
        self._cool_until = -inf

    def configure(self, max_concurrency: int | None) -> None:
        """A configured limit is where it starts and the most it may be; one below the floor is the floor too."""
        before = self.ceiling, self.floor
        self.ceiling = CEILING if max_concurrency is None else max_concurrency
        self.start = START if max_concurrency is None else max_concurrency
        self.floor = min(FLOOR, self.ceiling)
        if (self.ceiling, self.floor) != before:
            self._exact = float(self.start)

    @property
    def limit(self) -> int:
        """How many calls may be under way."""
        return int(self._exact)

    @limit.setter
    def limit(self, limit: int) -> None:
        """Take over what all replicas found out together."""
        if limit != int(self._exact):
            self._exact = float(limit)

    def throttled(self, now: float) -> None:
        """The endpoint answered 429 to one of its calls."""
        if now >= self._cool_until:
            self._exact = max(self.floor, self._exact * SHRINK)
            self._cool_until = now + COOLDOWN_SECONDS
        self._successes = self._peak = 0

    def succeeded(self, now: float, in_use: int) -> None:
        """One of `in_use` calls went well."""
        if now < self._cool_until:
            return
        self._successes += 1
        self._peak = max(self._peak, in_use)
        if self._successes >= self.limit:
            if self._peak >= WELL_USED * self.limit:
                self._exact = min(self.ceiling, self._exact * GROW)
            self._successes = self._peak = 0


class Bucket:
    """An allowance per minute, as a token bucket.

    It holds 5 % of a minute's allowance (at least one) and is filled with the rest over the minute, so that no minute, wherever it
    begins, sees more than the allowance: vendors count in windows that nobody knows. A call that needs more than the bucket holds goes
    when it is full and leaves a debt.
    """

    def __init__(self, per_minute: int) -> None:
        self.burst = max(1.0, per_minute * BURST_SHARE)
        self.per_second = max(per_minute - self.burst, per_minute / 2) / 60
        self.spent = 0.0
        """What was taken since this was last set to zero."""
        self._level = self._most = self.burst
        self._rate = self.per_second
        self._at: float | None = None

    def fill_by(self, share: float) -> None:
        """Be filled by a share of the allowance only; by 0, it is a purse into which others put what they drew elsewhere."""
        self._rate = self.per_second * share
        self._most = max(1.0, self.burst * share) if share else inf
        self._level = min(self._level, self._most if share else 0.0)

    def level(self, now: float) -> float:
        """What it holds; a debt is negative."""
        passed = now - self._at if self._at is not None else 0.0
        if passed > 0:
            self._level = min(self._most, self._level + passed * self._rate)
        self._at = now
        return self._level

    def delay(self, need: float, now: float) -> float:
        """Seconds until so much may be taken; infinite in a purse that must be filled by others."""
        missing = min(need, self._most) - self.level(now)
        if missing <= 1e-6:
            return 0.0
        return missing / self._rate if self._rate else inf

    def take(self, amount: float) -> None:
        """Take what `delay` allowed, or correct by it an estimate that was too low (or, negative, too high)."""
        self._level = min(self._most, self._level - amount)
        self.spent += amount

    def draw(self, need: float, now: float) -> int:
        """What a purse asks of the others' bucket to meet `need` and as much as was spent lately; negative: what it gives back."""
        wish = need + max(0.0, self.spent) - self.level(now)
        self.spent = 0.0
        if wish < 0:
            self._level += ceil(wish)
        return ceil(wish)

    def put(self, amount: float) -> None:
        """Fill a purse."""
        self._level = min(self._most, self._level + amount)
