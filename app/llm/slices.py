"""One limit over many processes: each holds a slice of it, asks for more when calls wait, and gives back what it does not use."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from app.llm.lease import Limiter

RENEW_SECONDS = 0.5
"""Every process tells this often what it holds, also when that is nothing: so all know how many they are."""
POLL_SECONDS = 0.1
"""As long as calls wait for what others hold."""
GAP_SECONDS = 0.005
"""No more than 200 trips a second, however often calls come and go."""
EXPIRY_SECONDS = 4.0
"""A process that has told nothing for so long is dead, and its calls and slots with it."""
SETTLE_SECONDS = 1.5
"""When nobody was heard for longer than the expiry (Redis was away, or lost what it knew), a configured limit grants nothing new for so
long: until every living process has told what it holds."""

log = logging.getLogger(__name__)


class Ask(msgspec.Struct, frozen=True):
    """What one process tells of one endpoint."""

    endpoint: str
    keep: int
    """The slots it uses or may use before it hears the answer: nobody can take these."""
    wanted: int
    """The calls under way and waiting."""
    peak: int
    """The most calls that were under way since it told last."""
    start: int
    floor: int
    ceiling: int
    hard: bool
    """Whether the limit is configured, which must not be passed, or only found by trying."""
    successes: int
    throttled: bool
    hold: float
    """Seconds for which the endpoint asked to be left alone."""
    requests: int
    """What it draws from the endpoint's bucket of requests; negative: gives back. `tokens` likewise."""
    tokens: int
    request_burst: float = 0.0
    request_rate: float = 0.0
    token_burst: float = 0.0
    token_rate: float = 0.0


class Grant(msgspec.Struct, frozen=True):
    """What it may do."""

    slots: int
    """The calls that it may have under way."""
    limit: int
    """The calls that all may have under way together."""
    free: int
    """Slots that nobody holds."""
    replicas: int
    """The living processes."""
    tight: bool
    """Whether others need what this process can spare."""
    hold: float
    requests: int
    tokens: int


Take = Callable[[Sequence[Ask]], Awaitable[Sequence[Grant]]]


class Slices:
    """All limiters of this process towards the other processes. `run()` does the work and belongs in a task, before the first call."""

    def __init__(self, take: Take, *, replicas: int = 1) -> None:
        """`replicas` is how many processes there are at least: by so many a limit is divided when Redis was never in reach."""
        self._take = take
        self._at_least = replicas
        self._heard: dict[str, int] = {}
        self._holders: dict[str, Limiter] = {}
        self._woken = asyncio.Event()
        self._away = False

    def join(self, endpoint: str, holder: Limiter) -> None:
        """Share the limit of an endpoint, as long as the process lives. A second holder of one would count its slots twice."""
        if endpoint in self._holders:
            raise ValueError(f"endpoint {endpoint} has a limiter in this process")
        self._holders[endpoint] = holder
        self.wake()

    def wake(self) -> None:
        """Ask at once."""
        self._woken.set()

    async def run(self) -> None:
        """Ask again and again; when cancelled, give back what is not in use."""
        task = asyncio.current_task()
        try:
            # redis-py may swallow the cancelling of a command; then only the task itself still knows of it.
            while not (task and task.cancelling()):
                await self._exchange()
                await self._pause()
        finally:
            await self._exchange(leaving=True)

    async def _pause(self) -> None:
        await asyncio.sleep(GAP_SECONDS)
        hungry = not self._away and any(holder.hungry for holder in self._holders.values())
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS if hungry else RENEW_SECONDS):
                await self._woken.wait()
        self._woken.clear()

    async def _exchange(self, *, leaving: bool = False) -> None:
        asks = [holder.ask(leaving=leaving) for holder in self._holders.values()]
        if not asks:
            return
        until = asyncio.get_running_loop().time() + EXPIRY_SECONDS
        try:
            grants = await self._take(asks)
        except Exception as error:
            self._tell(away=True, why=type(error).__name__)
            for ask in asks:
                self._holders[ask.endpoint].missed(ask, max(self._at_least, self._heard.get(ask.endpoint, 1)))
            return
        self._tell(away=False)
        for ask, grant in zip(asks, grants, strict=True):
            self._heard[ask.endpoint] = grant.replicas
            self._holders[ask.endpoint].granted(grant, until)

    def _tell(self, *, away: bool, why: str = "") -> None:
        if away and not self._away:
            log.warning("limits are no longer shared with other processes: %s", why)
        if self._away and not away:
            log.info("limits are shared again")
        self._away = away
