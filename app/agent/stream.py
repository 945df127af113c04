"""The way an agent says something before it is done."""

from __future__ import annotations

import asyncio
import re

from app.agent.plain import clean
from app.domain import ANSWER_TYPES, SPEAKER, Chunk
from app.errors import AgentFailed, InvalidInput
from app.journal.log import Log

CONTENT_TYPE = re.compile(r"[a-z0-9_.-]{1,64}")
"""The names of content types, the platform's and an agent's own."""
MAX_NAME = 64


class Stream:
    """Appends to the log of one run, in the order of the calls, until it is stopped. It belongs to one event loop."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self.answered = False
        """Whether a chunk that counts as the answer was sent."""
        self.called = False
        """Whether a tool was called, of which the client may have to tell the result."""
        self.stopped: str | None = None
        """The reason of the first `stop`."""

    async def send(self, content_type: str, content: str) -> None:
        """Show `content` at once. `text`, `code` and `result` make up the answer; other types are shown beside it.

        `InvalidInput` for a type that is no name of 1 to 64 of a-z 0-9 _ . - and for content that is no text;
        `AgentFailed` after `stop`. Gives other tasks their turn.
        """
        if asyncio.get_running_loop() is self._loop:
            check(content_type, content)
            if self.stopped is not None:
                raise AgentFailed("The agent sent more after it had stopped its stream.")
            self.append(content_type, content)
            await asyncio.sleep(0)
        else:  # an agent in a thread that runs a loop of its own
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.send(content_type, content), self._loop))

    async def stop(self, reason: str = "stop") -> None:
        """End the stream: nothing can be sent after it."""
        self.stopped = self.stopped or reason

    async def astream_message(self, content: str, content_type: str = "text") -> None:
        """`send`, in the words of seed 000."""
        await self.send(content_type, content)

    async def astop(self, stop_reason: str = "stop") -> None:
        """`stop`, in the words of seed 000."""
        await self.stop(stop_reason)

    def append(self, content_type: str, content: str) -> None:
        """Add a chunk also after `stop`; for the platform, which adds what `chat` returned."""
        if self._closed:
            raise AgentFailed("The agent sent more after its run had ended.")
        self.answered = self.answered or content_type in ANSWER_TYPES
        self.called = self.called or content_type == "tool_call"
        self._log.append(Chunk(clean(content), content_type))

    def close(self) -> None:
        """Take nothing more; for the platform, when the run has ended."""
        self._closed = True


def check(content_type: object, content: object) -> None:
    """`InvalidInput` for what is no name of a type, and no text."""
    if not isinstance(content_type, str) or not CONTENT_TYPE.fullmatch(content_type):
        raise InvalidInput("A content type is a name of 1 to 64 of a-z, 0-9, _, . and -.", param="content_type")
    if not isinstance(content, str):
        raise InvalidInput("The content of a chunk must be text.", param="content")
    if content_type == SPEAKER and not 0 < len(content) <= MAX_NAME:
        raise InvalidInput(f"The name of a speaker has 1 to {MAX_NAME} characters.", param="content")
