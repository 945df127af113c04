"""A run while this process conducts it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

from app.domain import Run
from app.journal.log import Log


@dataclass
class LiveRun:
    """The run, its log, and the way to end it early. `agent` is the task in which the agent answers, while it does."""

    run: Run
    log: Log
    agent: asyncio.Task[object] | None = None
    ended_by: Literal["cancel", "shutdown"] | None = None

    def end(self, by: Literal["cancel", "shutdown"]) -> None:
        """Stop the agent; what it has said so far is kept."""
        self.ended_by = self.ended_by or by
        if self.agent is not None:
            self.agent.cancel()
