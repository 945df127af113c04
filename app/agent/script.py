"""What stands in for the platform when an agent is used in a plain script."""

from __future__ import annotations

import sys
from collections import deque

from app.agent.plain import clean
from app.agent.stream import Stream, check
from app.domain import ANSWER_TYPES, Chunk
from app.errors import AgentFailed
from app.journal.recorder import OpenStep, Recorder

KEPT = 10_000
"""How many chunks a script's stream remembers."""


class ScriptStream(Stream):
    """Keeps what is sent, and prints it if `verbose`."""

    def __init__(self, *, verbose: bool = False) -> None:
        self.chunks: deque[Chunk] = deque(maxlen=KEPT)
        self.answered = False
        self.stopped: str | None = None
        self._verbose = verbose

    async def send(self, content_type: str, content: str) -> None:
        """Keep `content`; the same errors as on the platform."""
        check(content_type, content)
        if self.stopped is not None:
            raise AgentFailed("The agent sent more after it had stopped its stream.")
        self.append(content_type, content)

    def append(self, content_type: str, content: str) -> None:
        """Keep a chunk."""
        self.answered = self.answered or content_type in ANSWER_TYPES
        self.chunks.append(Chunk(clean(content), content_type))
        if self._verbose:
            sys.stdout.write(content)
            sys.stdout.flush()


class Unrecorded(Recorder):
    """Lets steps happen, and keeps nothing of them."""

    @property
    def can_wait(self) -> bool:
        """Nobody is there to answer."""
        return False

    def begin(self, step: OpenStep) -> None:
        """Count none of them, for a script may have any number."""
        self._opened = 0

    def end(self, step: OpenStep) -> None:
        """Forget it."""
