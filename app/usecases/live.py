"""A run while this process conducts it, and a job while it does it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from app.domain import Message, Run
from app.journal.log import Log
from app.journal.recorder import Recorder
from app.llm.waits import Waits

YOUNG_SECONDS = 0.3
"""How old a run is when its log is first copied: most end before."""

EndedBy = Literal["cancel", "shutdown", "lost"]


@dataclass(frozen=True, slots=True)
class Seen:
    """A run as it is stored, with its log when it has ended; and whether the credential it was asked for with is good."""

    allowed: bool
    run: Run | None = None
    log: Log | None = None


@dataclass(eq=False)
class LiveRun:
    """The run, its log and record, and the way to end it early. `answering` is the task that waits for the agent, while it does.

    `flushed` is how much of the log is in Redis, and `billed` how much of the bill; `due` is when they are copied next, by the
    monotonic clock.
    """

    run: Run
    log: Log
    recorder: Recorder = field(default_factory=Recorder)
    credential_id: UUID | None = None
    attempt: int = 1
    waits: Waits | None = None
    """How long it has waited for calls in mode batch, where that is no time of its own."""
    history: Sequence[Message] = ()
    tools: frozenset[str] = frozenset()
    """The tools of the request, whose calls are for its sender."""
    answering: asyncio.Task[object] | None = None
    ended_by: EndedBy | None = None
    shown: int = 0
    """How much of the log was shown before a person was asked: that need not be read again."""
    flushed: int = 0
    billed: int = 0
    due: float = field(default_factory=lambda: time.monotonic() + YOUNG_SECONDS)
    strayed: bool = False
    """Whether it is known in Redis that its log holds something else than it did."""
    stored: bool = False
    """Whether its end is stored: until then what Redis has of it must stay."""

    def is_ended(self) -> bool:
        """Whether it was ended early."""
        return self.ended_by is not None

    def end(self, by: EndedBy) -> None:
        """Stop the agent; what it has said so far is kept, unless the run is lost to another replica."""
        if not self.is_ended():
            self.ended_by = by
            if self.answering is not None:
                self.answering.cancel()


@dataclass(eq=False)
class LiveJob:
    """A job, and the way to leave it to another process. `working` is the task that does its work, while it does."""

    working: asyncio.Task[object] | None = None
    left: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is written down what became of the job, or cannot be."""

    def is_left(self) -> bool:
        """Whether it was left."""
        return self.left

    def leave(self) -> None:
        """Stop the work, once: it takes a moment to store what it has."""
        if not self.left:
            self.left = True
            if self.working is not None:
                self.working.cancel()
