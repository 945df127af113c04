"""Questions to the database that go together: while one is on its way, those that come meanwhile gather and become the next.

However many callers come at once, they take one connection of the pool and leave the others to everybody else. No caller gets an
answer to a question that was asked before he came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice
from typing import Generic, TypeVar

from app.tasks import Tasks

Question = TypeVar("Question")
Answer = TypeVar("Answer")
MOST = 50
"""How many different questions go at once."""


class Together(Generic[Question, Answer]):
    """Gathers questions for `ask`, which gives the answers it knows. It runs among `tasks`, under `name`."""

    def __init__(
        self, ask: Callable[[Sequence[Question]], Awaitable[Mapping[Question, Answer]]], tasks: Tasks, *, name: str
    ) -> None:
        self._ask = ask
        self._tasks = tasks
        self._name = name
        self._waiting: dict[Question, list[asyncio.Future[Answer | None]]] = {}
        self._is_asking = False

    async def get(self, question: Question) -> Answer | None:
        """The answer to a question, or None when there is none. Raises what `ask` raises."""
        heard: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(question, []).append(heard)
        if not self._is_asking:
            self._is_asking = True
            self._tasks.start(self._ask_all(), name=self._name)
        return await heard

    async def _ask_all(self) -> None:
        try:
            while self._waiting:
                await self._ask_some({key: self._waiting.pop(key) for key in list(islice(self._waiting, MOST))})
        finally:
            self._is_asking = False

    async def _ask_some(self, batch: Mapping[Question, Sequence[asyncio.Future[Answer | None]]]) -> None:
        """Callers that have left are passed over."""
        error: Exception | None = None
        answers: Mapping[Question, Answer] = {}
        try:
            answers = await self._ask(list(batch))
        except Exception as raised:
            error = raised
        for question, callers in batch.items():
            for heard in callers:
                if not heard.done():
                    heard.set_exception(error) if error else heard.set_result(answers.get(question))
