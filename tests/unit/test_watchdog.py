"""The watchdog on both event loops: it ends agents that block them, and nothing else."""

# ruff: noqa: ASYNC251, S112 - agents that block, and catch what they should not, are what is tested

import asyncio
import logging
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from app.agent import Chattable, Message
from app.agent.watchdog import INTERVAL, AgentBlocked, Watchdog
from app.errors import AgentFailed
from tests.agents.stage import perform, said

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
QUICK = 0.01
"""Seconds between looks, so that a block is one of a tenth of a second."""


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a coroutine on one kind of loop, watched."""

    async def watched(main: Coroutine[Any, Any, None], interval: float) -> None:
        watchdog = Watchdog(asyncio.get_running_loop(), interval=interval)
        watchdog.start()
        try:
            await main
        finally:
            watchdog.stop()

    def start(main: Coroutine[Any, Any, None], interval: float = QUICK) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(watched(main, interval))

    return start


class Base(Chattable):
    id = "test"


class Sleeps(Base):
    async def chat(self, message: Message) -> str:
        time.sleep(30)
        return "unreached"


class Spins(Base):
    async def chat(self, message: Message) -> str:
        while True:
            pass


class Catches(Base):
    async def chat(self, message: Message) -> str:
        while True:
            try:
                time.sleep(30)
            except Exception:
                continue


class SpinsInAChild(Base):
    async def chat(self, message: Message) -> str:
        async def child() -> None:
            time.sleep(30)

        await asyncio.gather(child(), asyncio.sleep(0))
        return "unreached"


class SpinsInAGenerator(Base):
    async def chat(self, message: Message) -> AsyncIterator[str]:
        yield "before"
        time.sleep(30)


class SpinsAtBirth(Base):
    def __init__(self, session: Any = None) -> None:
        time.sleep(30)

    async def chat(self, message: Message) -> str:
        return "unreached"


class IgnoresOnce(Base):
    async def chat(self, message: Message) -> str:
        try:
            time.sleep(30)
        except BaseException:
            time.sleep(30)
        return "unreached"


@pytest.mark.parametrize(
    "agent",
    [Sleeps, Spins, Catches, SpinsInAChild, SpinsInAGenerator, SpinsAtBirth, IgnoresOnce],
    ids=lambda a: a.__name__,
)
def test_an_agent_that_blocks_the_loop_fails(run: Any, agent: type[Chattable]) -> None:
    async def main() -> None:
        with pytest.raises(AgentFailed, match=r"^The agent blocked the server\.$"):
            await perform(agent)

    run(main())


def test_others_stall_for_at_most_two_seconds(run: Any) -> None:
    stalls = []

    async def others() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.05)
            stalls.append(time.monotonic() - before)

    async def main() -> None:
        pulse = asyncio.get_running_loop().create_task(others())
        with pytest.raises(AgentFailed, match=r"^The agent blocked the server\.$"):
            await perform(Catches)
        await asyncio.sleep(0.1)
        pulse.cancel()

    run(main(), interval=INTERVAL)
    assert 1 < max(stalls) < 2


class ExitsInAChild(Base):
    async def chat(self, message: Message) -> str:
        async def child() -> None:
            await asyncio.sleep(0)
            sys.exit(message.content)

        await asyncio.gather(child(), child())
        return "unreached"


def test_sys_exit_in_a_task_of_the_agent_does_not_end_the_server(run: Any) -> None:
    async def main() -> None:
        with pytest.raises(AgentFailed, match="SystemExit"):
            await perform(ExitsInAChild)

    run(main())


def test_sync_agents_may_block_as_they_like(run: Any) -> None:
    class Slow(Base):
        def chat(self, message: Message) -> str:
            time.sleep(0.3)
            return "done"

    async def main() -> None:
        assert await said(Slow) == "done"

    run(main())


def test_the_platforms_own_tasks_are_never_interrupted(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        await asyncio.sleep(0.1)
        time.sleep(0.3)

    run(main())
    assert "keeps the event loop from turning" in caplog.text


def test_many_short_turns_of_an_agent_are_no_block(run: Any) -> None:
    class Busy(Base):
        async def chat(self, message: Message) -> str:
            until = time.monotonic() + 0.5
            while time.monotonic() < until:
                time.sleep(0.02)
                await asyncio.sleep(0)
            return "done"

    async def main() -> None:
        assert await said(Busy) == "done"

    run(main())


def test_a_used_signal_is_left_alone_and_the_other_put_back(run: Any) -> None:
    def mine(*_: Any) -> None:
        pass

    async def main() -> None:
        assert signal.getsignal(signal.SIGUSR1) is mine
        assert callable(signal.getsignal(signal.SIGUSR2))

    old = signal.signal(signal.SIGUSR1, mine)
    try:
        run(main())
        assert signal.getsignal(signal.SIGUSR1) is mine
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_outside_the_main_thread_it_only_logs(caplog: pytest.LogCaptureFixture) -> None:
    done = []

    class Slow(Base):
        async def chat(self, message: Message) -> str:
            time.sleep(0.3)
            return "done"

    async def main() -> None:
        watchdog = Watchdog(asyncio.get_running_loop(), interval=QUICK)
        watchdog.start()
        try:
            done.append(await said(Slow))
        finally:
            watchdog.stop()

    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(target=asyncio.run, args=(main(),))
        thread.start()
        thread.join()
    assert done == ["done"]
    assert "agent test keeps the event loop from turning" in caplog.text


def test_no_agent_can_catch_being_blocked_by_catching_exception() -> None:
    assert not issubclass(AgentBlocked, Exception)
