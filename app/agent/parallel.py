"""Several prompts at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from app.agent.prompts import Prompt, Send
from app.domain import Message
from app.llm.llm import Completion


class ParallelPrompt:
    """Several prompts called at once: `p1 | p2`."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = list(prompts)

    def __or__(self, other: Prompt | ParallelPrompt) -> ParallelPrompt:
        """And another, or others."""
        return ParallelPrompt([*self.prompts, *(other.prompts if isinstance(other, ParallelPrompt) else [other])])

    async def acall(self, query: str | Message | None = None, **options: Any) -> list[Completion]:
        """The answers in the order of the prompts; one that failed is empty, with its `error`, and costs no other.

        With `is_stream` those of one content type are sent one after the other, in order.
        """
        turns = self._turns(options.get("content_type"))
        calls = (self._one(prompt, turn, query, options) for prompt, turn in zip(self.prompts, turns, strict=True))
        return list(await asyncio.gather(*calls))

    def call(self, query: str | Message | None = None, **options: Any) -> list[Completion]:
        """`acall` for synchronous code."""
        return self.prompts[0]._agent.llm._wait(self.acall(query, **options)) if self.prompts else []

    async def _one(self, prompt: Prompt, turn: _Turn, query: Any, options: Mapping[str, Any]) -> Completion:
        try:
            answer: Completion = await prompt.acall(query, send=turn.send, **options)
        except Exception as error:
            return Completion(error=error)
        else:
            return answer
        finally:
            await turn.end()

    def _turns(self, content_type: str | None) -> list[_Turn]:
        last: dict[str, _Turn] = {}
        turns = []
        for prompt in self.prompts:
            kind = content_type or prompt.content_type
            turns.append(_Turn(prompt._agent.stream.send, last.get(kind)))
            last[kind] = turns[-1]
        return turns


class _Turn:
    """Keeps what is sent until the one before has ended."""

    def __init__(self, send: Send, before: _Turn | None) -> None:
        self._send = send
        self._kept: list[tuple[str, str]] = []
        self._next: _Turn | None = None
        self._open = before is None
        self._ended = False
        if before:
            before._next = self

    async def send(self, content_type: str, content: str) -> None:
        """Send now, or keep for later."""
        if self._open:
            await self._send(content_type, content)
        else:
            self._kept.append((content_type, content))

    async def end(self) -> None:
        """Nothing more comes: the next may begin, once this one's turn has come."""
        self._ended = True
        if self._open and self._next:
            await self._next._begin()

    async def _begin(self) -> None:
        while self._kept:
            kept, self._kept = self._kept, []
            for content_type, content in kept:
                await self._send(content_type, content)
        self._open = True
        if self._ended and self._next:
            await self._next._begin()
