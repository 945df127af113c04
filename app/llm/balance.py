"""Several LLMs as one: `a + b`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from app.domain import Chunk
from app.errors import LLMError, LLMRejected
from app.llm.llm import LLM, Finish, Items, Reply


class Balanced(LLM):
    """Asks its members in turn. One that fails before its first token is stood in for by the next; later nobody is."""

    def __init__(self, *members: LLM) -> None:
        self._members: list[LLM] = []
        for member in members:
            self._members += member._members if isinstance(member, Balanced) else [member]
        self._loop = next((member._loop for member in self._members if member._loop), None)
        self._next = [0]  # shared with what `use` makes of it

    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> AsyncGenerator[Chunk | Finish, None]:
        """Ask the member whose turn it is."""
        async for items in self.items(messages, options):
            for item in items:
                yield item

    async def items(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> AsyncGenerator[Items, None]:
        """The answer of the first that gives one."""
        reply = await self._begun(messages, options)
        at = 0
        try:
            while chunks := await reply.since(at):
                at += len(chunks)
                yield chunks
            whole = reply.response
            yield (Finish(whole.finish_reason or "stop", whole.usage),)
        finally:
            await reply.close()

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> list[list[float]]:
        """By the first member that can; two members' vectors would not be alike."""
        return await self._members[0].embed(texts, model=model)

    async def _begun(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> Reply:
        first = self._next[0]
        self._next[0] = (first + 1) % len(self._members)
        error: LLMError | None = None
        for member in (*self._members[first:], *self._members[:first]):
            try:
                reply = member._open(messages, {**member._defaults, **options})
                await reply.since(0)
            except LLMRejected:
                raise
            except LLMError as failed:
                error = failed
            else:
                return reply
        assert error is not None  # noqa: S101 - there are members, and none began
        raise error
