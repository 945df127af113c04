"""Asks whether answers fit patterns and schemas of users, of a process that follows them (`fits.py`)."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import Process
from typing import Literal

from app.agent import programs
from app.suites import fits

SECONDS = 20.0
"""How long an answer of the process may take, whatever else the machine does: by itself it ends after two seconds of work."""
MOST = {"pattern": 20_000, "schema": 100_000}
"""The longest rules, in characters."""

Rule = Literal["pattern", "schema"]


class NoScore(Exception):
    """Why an answer has no score, in a sentence of ours."""


class Fitter:
    """One process, which is begun when there is something to ask, and anew after one that took too long. Who asks closes it."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._turn = asyncio.Lock()

    async def fits(self, kind: Rule, rule: str, answer: str | None = None) -> bool:
        """Whether it fits; without an answer, true. `NoScore` for a rule that cannot be followed."""
        if len(rule) > MOST[kind]:
            raise NoScore(f"the {kind}: it has more than {MOST[kind]} characters")
        question = json.dumps({"kind": kind, "rule": rule, "answer": answer}).encode() + b"\n"
        async with self._turn:
            told = await self._told(question)
        if not told:
            raise NoScore(f"the {kind}: it takes too long, or too much memory")
        found = json.loads(told)
        if "why" in found:
            raise NoScore(f"the {kind}: {found['why']}")
        return bool(found["fits"])

    async def _told(self, question: bytes) -> bytes:
        """What the process says; nothing when it had to be ended."""
        said = b""
        try:
            async with asyncio.timeout(SECONDS):
                process = self._process = self._process or await programs.begin(fits.__file__)
                assert process.stdin is not None  # noqa: S101 - it was begun with pipes
                assert process.stdout is not None  # noqa: S101 - as above
                process.stdin.write(question)
                await process.stdin.drain()
                said = await process.stdout.readline()
        except (TimeoutError, OSError):
            said = b""
        finally:
            if not said:
                await self.close()
        return said

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process:
            await programs.end(process)
