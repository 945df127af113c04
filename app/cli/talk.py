"""A conversation with one agent in the terminal: the answer to standard output as it comes, the rest to standard error."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import typer

from app.agent.runner import Answer
from app.agent.trial import Others, Trial
from app.agent.version import AgentVersion
from app.domain import ANSWER_TYPES, MemoryChange, Message
from app.errors import AgentFailed, AppError
from app.llm.llm import LLM
from app.tasks import Tasks

TIMEOUT = 600.0
"""Seconds an agent may take for one answer, as `RUN_TIMEOUT` has it by default."""
PAUSE = 0.02
"""Seconds between two looks at what it said."""


async def talk(
    version: AgentVersion,
    text: str | None,
    params: Mapping[str, Any],
    scripted: Sequence[str] | None,
    others: Others | None = None,
) -> bool:
    """Have it answer `text`, or every line of standard input, each with what was said and remembered before; whether all went well.

    `others` are the agents that it can delegate to.
    """
    before: list[Message] = []
    memories: list[MemoryChange] = []
    state: Mapping[str, Any] | None = None
    well = True
    async with _llm(scripted) as llm:
        async for line in _lines(text):
            try:
                trial = Trial(version, llm, params=params, person=_person, others=others)
                work = trial.answer(line, before=before, memories=memories, state=state, timeout=TIMEOUT)
                given = await _answered(trial, work)
            except AppError as error:
                typer.echo(error.message, err=True)
                well = False
            else:
                before += [Message.user(line), Message.assistant(given.text)]
                memories += given.memories
                state = given.state
    return well


async def _answered(trial: Trial, answer: Coroutine[Any, Any, Answer]) -> Answer:
    tasks, position, said = Tasks(), 0, ""
    work = tasks.start(_outcome(answer), name="answer")
    try:
        over = False
        while not over:
            over = work.done()
            for event in trial.log.since(position):
                position = event.position
                aside = event.chunk.content_type not in ANSWER_TYPES
                said = said if aside else event.chunk.content
                typer.echo(
                    f"[{event.chunk.content_type}] {event.chunk.content}" if aside else event.chunk.content,
                    nl=aside,
                    err=aside,
                )
            await asyncio.sleep(0 if over else PAUSE)
    finally:
        await tasks.close()
        if said and not said.endswith("\n"):
            typer.echo()
    outcome = work.result()
    if isinstance(outcome, AppError):
        raise outcome
    return outcome


async def _outcome(answer: Coroutine[Any, Any, Answer]) -> Answer | AppError:
    try:
        return await answer
    except AppError as error:
        return error


async def _person(question: str, _: object) -> str:
    """The next line that is typed."""
    if not (line := await asyncio.to_thread(sys.stdin.readline)):
        raise AgentFailed("The agent asks a person, and there is no line left to answer it.")
    return str(line).rstrip("\n")


async def _lines(text: str | None) -> AsyncIterator[str]:
    if text is not None:
        yield text
        return
    while True:
        if sys.stdin.isatty():
            typer.echo("> ", nl=False, err=True)
        if not (line := await asyncio.to_thread(sys.stdin.readline)):
            return
        if line.strip():
            yield line.rstrip("\n")


@asynccontextmanager
async def _llm(scripted: Sequence[str] | None) -> AsyncIterator[LLM]:
    if scripted:
        from app.agent.testing import Scripted

        yield Scripted(scripted)
        return
    from app.cli.models_here import open_llm

    async with open_llm() as llm:
        yield llm
