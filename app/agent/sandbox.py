"""Runs code that a language model wrote: in Monty, an interpreter without files, network or processes, in a child process for each run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from reprlib import Repr
from typing import Any

from app.agent.plain import canonical, clean, revived
from app.errors import AgentFailed, InvalidInput
from app.journal.recorder import Recorder

MAX_CODE = 100_000
"""The longest code, in characters."""
MAX_OUTPUT = 100_000
"""The most characters that code may print and give."""
MAX_TOLD = 2000
"""How much of an error is told, in characters, from its end."""
MAX_BYTES = 64_000_000
"""Of memory."""
SECONDS = 10.0
"""Of computing, after which the interpreter ends the code."""
KILL_SECONDS = SECONDS + 5
"""After which the process is killed from outside, whatever it does."""
AT_ONCE = 4
"""How many children a server process has; who comes then waits."""
LIMITS = {
    "max_feed_duration_secs": SECONDS,
    "max_memory": MAX_BYTES,
    "max_total_sleep_secs": SECONDS / 2,
    "max_recursion_depth": 500,
}


class CodeFailed(AgentFailed):
    """The code failed. Its own error is the message, for whoever wrote it: as a rule the language model."""

    code = "code_failed"


class Box:
    """Where the sandboxes of a process take their turns."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._turns = asyncio.Semaphore(AT_ONCE)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Any]:
        """A session in a child process, which is gone after the block; `AgentFailed` when the sandbox is off or not installed."""
        if not self._enabled:
            raise AgentFailed("Code may not be run here: the server's administrator allows it with SANDBOX=true.")
        try:
            monty = import_module("pydantic_monty")
        except ImportError:
            raise AgentFailed("The sandbox needs the package pydantic-monty: ./scripts/extras installs it.") from None
        async with (
            self._turns,
            monty.AsyncMonty(max_processes=1, request_timeout=KILL_SECONDS) as pool,
            pool.checkout(script_name="code.py", limits=LIMITS) as session,
        ):
            yield session


class Sandbox:
    """`run`, a recorded step."""

    def __init__(self, box: Box, recorder: Recorder) -> None:
        self._box, self._recorder = box, recorder

    async def run(self, code: str) -> str:
        """What Python `code` prints, and then the value of its last expression unless that is None.

        `CodeFailed` tells the code's own error and where it is, also when it needs more time, memory or output than there
        is. It has no files and no network, and of the standard library only what Monty has; each run begins anew.
        """
        if not isinstance(code, str) or not code.strip() or len(code) > MAX_CODE:
            raise InvalidInput(f"code: use 1 to {MAX_CODE} characters.", param="code")
        code = clean(code)
        given = canonical({"code": code})
        with self._recorder.step("sandbox", "sandbox.run", input=given) as step:
            if step.served is None:
                if "input" in step.changes:
                    code = str(step.changes["input"].get("code", code))
                    step.input = canonical({"code": code})
                said = await self._run(code)
                step.done(canonical(said))
        return said if step.served is None else str(revived(step.served, self.run))

    async def _run(self, code: str) -> str:
        output = _Output()
        async with self._box.opened() as session:
            try:
                async with asyncio.timeout(KILL_SECONDS):
                    value = await session.feed_run(code, print_callback=output.take)
                if value is not None:
                    output.take("stdout", value if isinstance(value, str) else _shown(value))
            except TimeoutError:
                raise CodeFailed(f"The code was ended after {KILL_SECONDS:g} seconds.") from None
            except Exception as error:
                raise _told(error, output) from None
        return clean("".join(output.pieces))


class _Output:
    """What code prints, up to a limit."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.room = MAX_OUTPUT

    def take(self, stream: str, text: str) -> None:
        """Take what is printed; an error ends the code."""
        self.room -= len(text)
        if self.room < 0:
            raise CodeFailed(f"The code printed more than {MAX_OUTPUT} characters.")
        self.pieces.append(text)


def _told(error: Exception, output: _Output) -> CodeFailed:
    """The code's error with the line that it is in."""
    if output.room < 0:
        return CodeFailed(f"The code printed more than {MAX_OUTPUT} characters.")
    display = getattr(error, "display", None)
    return CodeFailed(f"The code failed: {clean(display('traceback') if display else str(error))[-MAX_TOLD:]}")


def _shown(value: Any) -> str:
    """A value as Python writes it, but for what is very long: it is written on the event loop, and memory holds millions."""
    form = Repr()
    form.maxlevel, form.maxother = 20, 1000
    form.maxlist = form.maxtuple = form.maxdict = form.maxset = form.maxfrozenset = 1000
    form.maxstring = form.maxlong = 4000
    return form.repr(value)
