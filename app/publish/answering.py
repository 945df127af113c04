"""One request to a published agent: a fresh instance in a task of its own, which always comes to an end that its client is told."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager
from typing import Any

from app.agent.base import BaseAgent
from app.agent.chattable import give_meaning
from app.agent.memory import BaseMemory
from app.agent.request import OpenAIRequest
from app.agent.runner import GRACE, app_error, final
from app.errors import AgentFailed, AppError
from app.publish.streamer import AgentStream, DataStreamer
from app.tasks import Tasks

Turn = AbstractAsyncContextManager[Any]
log = logging.getLogger(__name__)


class Asked:
    """An agent, and the method of it that answers."""

    def __init__(self, agent: BaseAgent, method: str) -> None:
        self.agent, self.method = agent, method
        self._tasks = Tasks()

    @property
    def memory_cls(self) -> type[BaseMemory]:
        """What its memory is: each session has one of its own."""
        return type(self.agent.memory)

    def start(self, request: OpenAIRequest, streamer: DataStreamer, turn: Turn | None) -> None:
        """Answer; when the streamer ends before its agent, as it does in time, the agent is ended soon after if it was late."""
        task = self._tasks.start(self._answer(request, streamer, turn), name=f"agent {type(self.agent).__name__}")
        self._tasks.start(_end_with(task, streamer), name="end of an answer")

    async def close(self) -> None:
        """End what is still answering."""
        await self._tasks.close()

    async def _answer(self, request: OpenAIRequest, streamer: DataStreamer, turn: Turn | None) -> None:
        error: BaseException | None = None
        try:
            if turn is None:
                await self._call(request, streamer, self.memory_cls())
            else:
                async with turn as memory:
                    await self._call(request, streamer, memory)
        except BaseException as raised:  # `SystemExit` too: it is the agent's, and not the server's end
            error = raised
        if streamer.ended and error and not isinstance(error, asyncio.CancelledError):
            log.error("agent %s failed after its answer", type(self.agent).__name__, exc_info=error)
        streamer.end(error=_told(error) if error else None)

    async def _call(self, request: OpenAIRequest, streamer: DataStreamer, memory: Any) -> None:
        agent = self._fresh()
        agent.memory, agent.request = memory, request
        give_meaning(agent)
        stream = agent.stream = AgentStream(streamer)
        try:
            given = await getattr(agent, self.method)(request)
            if stream.stopped is None:
                finish = (await final(given, stream))["finish"]
                if finish == "cut":
                    raise AgentFailed("The language model's answer broke off.")
                stream.stopped = finish
        finally:
            stream.close()
        if not streamer.ended:  # the end follows when the memory is kept
            streamer.reason = stream.stopped or "stop"

    def _fresh(self) -> BaseAgent:
        """An agent made like the published one: what a request sets on it or its LLM, no other sees."""
        fresh = self.agent.again()
        fresh.update_config(**self.agent.get_config())
        if "llm" in vars(fresh):
            fresh.llm = fresh.llm.use()
        return fresh


async def _end_with(task: asyncio.Task[None], streamer: DataStreamer) -> None:
    """End an agent that is late: its client was told already."""
    await asyncio.wait([task], timeout=streamer.seconds_left)
    if not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=GRACE)


def _told(error: BaseException) -> AppError:
    """The error as callers may see it; what else is known goes to the log."""
    if known := app_error(error):
        return known
    if isinstance(error, asyncio.CancelledError):
        return AgentFailed("The agent was ended before it had answered.")
    log.error("an agent failed", exc_info=error)
    return AgentFailed(f"The agent failed: {type(error).__name__[:64]}.")
