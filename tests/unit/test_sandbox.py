"""`self.sandbox.run`: code that nobody has looked at runs in a child, within limits, or says what it lacks."""

from __future__ import annotations

import asyncio
import sys

import psutil
import pytest

from app.agent import BaseAgent, Chattable, CodeFailed, Message
from app.agent import sandbox as module
from app.agent.sandbox import MAX_OUTPUT, Box, Sandbox
from app.agent.testing import answer
from app.errors import AgentFailed, InvalidInput
from app.journal.recorder import Recorder


@pytest.fixture
def box() -> Sandbox:
    return Sandbox(Box(enabled=True), Recorder())


OTHERS: set[int] = set()
"""What other tests have started for the whole session."""


@pytest.fixture(autouse=True)
def others() -> None:
    OTHERS.update(child.pid for child in psutil.Process().children())


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.pid not in OTHERS and lives(child)]


def lives(child: psutil.Process) -> bool:
    try:
        return bool(child.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # between the look at all and the look at this one
        return False


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('a')\nprint('b')", "a\nb\n"),
        ("6 * 7", "42"),
        ("print('so:')\n[n * n for n in range(4)]", "so:\n[0, 1, 4, 9]"),
        ("'text'", "text"),
        ("x = 1", ""),
        ("import json\njson.dumps({'ä': None})", '{"\\u00e4": null}'),
    ],
)
async def test_it_gives_what_is_printed_and_the_last_value(box: Sandbox, code: str, said: str) -> None:
    assert await box.run(code) == said
    assert children() == []


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def f(:", "SyntaxError|parameter"),
        ("1 / 0", "ZeroDivisionError"),
        ("x = [0]\nwhile True:\n    x += x", "MemoryError"),
        ("'a' * 10**12", "MemoryError"),
        ("2 ** (10**9)", "MemoryError"),
        ("2 ** 100000", "digits"),
        ("def f():\n    f()\nf()", "RecursionError"),
        ("print('x' * 1_000_000)", "printed more than"),
        ("while True:\n    print('x' * 1000)", "printed more than"),
        ("'x' * 1_000_000", "printed more than"),
        ("open('/etc/passwd').read()", "PermissionError"),
        ("open('/tmp/made', 'w').write('x')", "PermissionError"),
        ("import os\nos.listdir('/')", "PermissionError"),
        ("import os\nos.environ['PATH']", "KeyError|PermissionError|NameError|Error"),
        ("import socket", "ModuleNotFoundError"),
        ("import urllib.request", "ModuleNotFoundError"),
        ("import subprocess", "ModuleNotFoundError"),
        ("().__class__.__bases__[0].__subclasses__()", "Error"),
        ("import time\ntime.sleep(1000)", "TimeoutError"),
    ],
)
async def test_what_code_may_not_do_is_its_own_error(
    box: Sandbox, code: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.LIMITS, "max_feed_duration_secs", 2.0)
    with pytest.raises(CodeFailed, match=told):
        await box.run(code)
    assert children() == []


async def test_a_long_value_is_shortened_and_not_written_out(box: Sandbox) -> None:
    said = await box.run("[0] * 100_000")
    assert len(said) < MAX_OUTPUT
    assert said.endswith("...]")


async def test_an_endless_loop_is_ended_by_the_interpreter(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.LIMITS, "max_feed_duration_secs", 0.2)
    with pytest.raises(CodeFailed, match="TimeoutError"):
        await box.run("while True: pass")


async def test_what_the_interpreter_does_not_end_is_killed_from_outside(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.LIMITS, "max_feed_duration_secs", None)
    monkeypatch.setattr(module, "KILL_SECONDS", 0.5)
    with pytest.raises(CodeFailed, match=r"ended|killed"):
        await box.run("while True: pass")
    assert children() == []


async def test_a_cancelled_run_kills_its_child(box: Sandbox) -> None:
    running = asyncio.get_running_loop().create_task(box.run("while True: pass"))
    async with asyncio.timeout(10):
        while not children():
            await asyncio.sleep(0.02)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        while children():
            await asyncio.sleep(0.02)


async def test_each_run_begins_anew(box: Sandbox) -> None:
    await box.run("x = 1")
    with pytest.raises(CodeFailed, match="NameError"):
        await box.run("x")


async def test_runs_go_on_side_by_side_a_few_at_a_time(box: Sandbox) -> None:
    assert await asyncio.gather(*(box.run(f"{number} + 1") for number in range(10))) == [
        str(number + 1) for number in range(10)
    ]


@pytest.mark.parametrize("code", ["", " \n", "x" * 200_000, 7])
async def test_what_is_no_code_is_refused(box: Sandbox, code: str) -> None:
    with pytest.raises(InvalidInput, match="code"):
        await box.run(code)


async def test_without_leave_or_without_the_extra_one_sentence_says_so(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AgentFailed, match=r"SANDBOX=true"):
        await Sandbox(Box(enabled=False), Recorder()).run("1")
    monkeypatch.setitem(sys.modules, "pydantic_monty", None)
    with pytest.raises(AgentFailed, match=r"needs the package pydantic-monty: \./scripts/extras installs it\.$"):
        await box.run("1")


class Calculator(Chattable):
    id = "calculator"

    async def chat(self, message: Message) -> str:
        first = await self.sandbox.run(message.content)
        return f"{first} {await self.ask('Right?')}"


def test_a_run_is_a_step_and_is_served_when_the_run_begins_anew() -> None:
    said = answer(Calculator, "import random\nrandom.random()", replies=["yes"])
    assert [step.kind for step in said.steps].count("sandbox") == 1
    (step,) = (step for step in said.steps if step.kind == "sandbox")
    assert step.output
    assert said.text == f"{step.output.decode().strip(chr(34))} yes"


async def test_in_a_script_it_is_there() -> None:
    assert await BaseAgent().sandbox.run("1 + 1") == "2"
