"""The processes of a run: started on the loopback address, measured by their pid, gone with the benchmark."""

from __future__ import annotations

import asyncio
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.servers import process
from app.servers.process import Child

READY_SECONDS = 90.0
FILES = 16_000
"""Open files that 5,000 readers need, and room for more."""
_READY = re.compile(r"ready at http://127\.0\.0\.1:(\d+)")


def many_files() -> None:
    """Raise this process's limit of open files; children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@dataclass(frozen=True)
class Program:
    """A server on `port`. `pid` is the process whose costs count, which may be a child of the one that was started."""

    name: str
    port: int
    pid: int

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def cpu(self) -> float:
        """CPU seconds, user and system, of the whole process until now."""
        if sys.platform == "linux":
            # The clock of another process (clock_getcpuclockid(3)): nanoseconds, where psutil has hundredths of a second.
            return time.clock_gettime((~self.pid << 3) | 2)
        user, system, *_ = psutil.Process(self.pid).cpu_times()
        return float(user + system)

    def memory(self) -> int:
        """Resident bytes."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def files(self) -> int:
        """Open files and sockets."""
        return int(psutil.Process(self.pid).num_fds())


@contextmanager
def program(
    name: str, command: Sequence[str], *, env: Mapping[str, str], log: Path, worker: str = ""
) -> Iterator[Program]:
    """Run `python COMMAND` until the block ends; with `worker` it is that child (a word of its command line) that is measured."""
    child = process.start(name, [sys.executable, *command], log=log, env=env)
    try:
        port = _port(child)
        yield Program(name, port, _worker(child.pid, worker) if worker else child.pid)
    finally:
        child.stop((signal.SIGTERM, 30.0))


def _port(child: Child) -> int:
    process.wait_until(lambda: bool(_READY.search(child.output())) or not child.alive(), READY_SECONDS)
    found = _READY.search(child.output())
    if not found:
        raise RuntimeError(f"{child.name} did not start:\n{child.output()}")
    return int(found[1])


def _worker(pid: int, word: str) -> int:
    family = psutil.Process(pid).children(recursive=True)
    return int(next(member.pid for member in family if word in member.cmdline()))


async def until(condition: Callable[[], bool], seconds: float) -> float:
    """Wait for a condition, `seconds` at most: how long it took."""
    began = time.monotonic()
    while not condition() and time.monotonic() < began + seconds:
        await settled(0.05)
    return time.monotonic() - began


async def settled(seconds: float = 0.3) -> None:
    """Give what goes on after the answers, such as the flush of a log, its time."""
    await asyncio.sleep(seconds)
