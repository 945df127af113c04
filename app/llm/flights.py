"""Equal calls at once: one works, the others wait for what it makes, or for their turn to work themselves."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Whoever makes it leads first, at turn 0. There is one leader at a time, and a failure is its own unless it says otherwise.

    A leader that is slower than `patience` seconds is joined by one follower, not by all; it may still bring the result.
    """

    def __init__(self, patience: float, over: Callable[[Turns[T]], None]) -> None:
        """`over` is called when the last leader ends without a result and nobody waits."""
        self.token = secrets.token_hex(8)
        """Tells these turns from all others, in every process."""
        self.run = ""
        """The run that leads."""
        self._patience = patience
        self._over = over
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._turn = 0
        self._ended = False
        self._waiting: deque[asyncio.Future[tuple[T | None, int]]] = deque()

    async def wait(self) -> tuple[T | None, int]:
        """The result; or none, and the number of the turn that the caller now leads. Raises what the leader failed with for all."""
        mine: asyncio.Future[tuple[T | None, int]] = self._loop.create_future()
        self._waiting.append(mine)
        try:
            while not mine.done():
                left = self._began + self._patience - self._loop.time()
                if left <= 0:
                    self._waiting.remove(mine)
                    return None, self._next()
                await asyncio.wait((mine,), timeout=left)
        except asyncio.CancelledError:
            self._leave(mine)
            raise
        return mine.result()

    def give(self, result: T) -> None:
        """The result for all who wait."""
        self._ended = True
        while self._waiting:
            self._waiting.popleft().set_result((result, 0))

    def fail(self, turn: int, error: Exception) -> None:
        """The leader of this turn has failed as all who wait would; nothing if another has taken over. `pass_on` belongs after it."""
        if turn != self._turn:
            return
        while self._waiting:
            self._waiting.popleft().set_exception(error)

    def pass_on(self, turn: int) -> None:
        """The leader of this turn has ended. Without a result, and unless another has taken over, the next one leads."""
        if self._ended or turn != self._turn:
            return
        if self._waiting:
            self._waiting.popleft().set_result((None, self._next()))
        else:
            self._ended = True
            self._over(self)

    def _next(self) -> int:
        self._began = self._loop.time()
        self._turn += 1
        return self._turn

    def _leave(self, mine: asyncio.Future[tuple[T | None, int]]) -> None:
        if not mine.done():
            self._waiting.remove(mine)
        elif mine.exception() is None and mine.result()[0] is None:  # cancelled in the moment it was called to lead
            self.pass_on(mine.result()[1])
