"""Child processes: each in a session of its own, writing to a log, dying with its parent, stopped with a deadline.

Start children from the main thread: on Linux a child dies with the *thread* that started it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, ClassVar

from app.servers.folders import leave_socket_folder

LAUNCHER = Path(__file__).with_name("launch.py")
LOG_LIMIT = 5_000_000  # bytes; a larger log is moved to NAME.log.1 when its server starts


class Identity(StrEnum):
    """As whom a child runs."""

    SAME = "same"
    NAMESPACE = "namespace"  # `nobody` to itself, the same user to the file system
    NOBODY = "nobody"


class Child:
    """A running child process, and what it has said since it began."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log: Path | None = None, log_begin: int = 0) -> None:
        self.name = name
        self.popen = popen
        self.log = log
        self._log_begin = log_begin

    @property
    def pid(self) -> int:
        """The process id."""
        return self.popen.pid

    def alive(self) -> bool:
        """Whether it still runs; reaps it when it does not."""
        return self.popen.poll() is None

    def wait(self, seconds: float) -> bool:
        """Wait for its end; false when it still runs after `seconds`."""
        try:
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when it has ended."""
        self.popen.send_signal(number)

    def stop(self, *steps: tuple[signal.Signals, float]) -> None:
        """Send each signal in turn and wait its seconds, until the child has ended; in the end it is killed."""
        for number, seconds in steps:
            self.send(number)
            if self.wait(seconds):
                return
        self.send(signal.SIGKILL)
        self.popen.wait()

    def output(self) -> str:
        """What it has written to its log since it began, at most the last 64 kB."""
        if self.log is None:
            return ""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_begin, size - 65536))
            return file.read().decode(errors="replace")

    def last_words(self) -> str:
        """The last line it wrote, or how it ended."""
        lines = [line.strip() for line in self.output().splitlines() if line.strip()]
        return lines[-1] if lines else f"it ended with status {self.popen.poll()} and without a word"


class Engine:
    """An embedded server: a child that keeps its files in `data_dir`, and ends by the signals `stops`, each with its seconds."""

    stops: ClassVar[Sequence[tuple[signal.Signals, float]]]

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir.absolute()
        self._child: Child | None = None

    def alive(self) -> bool:
        """Whether the server runs."""
        return self._child is not None and self._child.alive()

    @property
    def pid(self) -> int | None:
        """The process id of the server, while it has one."""
        return self._child.pid if self._child else None

    def stop(self) -> None:
        """Let it write what is pending and end; harder when it takes too long."""
        if self._child is not None:
            self._child.stop(*self.stops)
            self._child = None
            leave_socket_folder(self._data_dir)


def command_line(command: Sequence[str | Path], identity: Identity, death_signal: signal.Signals) -> list[str]:
    """`command` behind the launcher that ties it to this process."""
    launcher = [sys.executable, "-I", "-S", str(LAUNCHER), str(int(death_signal)), str(os.getpid()), identity.value]
    return [*launcher, *map(str, command)]


def start(
    name: str,
    command: Sequence[str | Path],
    *,
    log: Path | None,
    death_signal: signal.Signals = signal.SIGTERM,
    identity: Identity = Identity.SAME,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Child:
    """Start `command` (an absolute path first) in a session of its own; it gets `death_signal` when this process dies.

    Its output goes to the end of `log`, or with no `log` to the pipe `popen.stdout`. Its environment is `env`, or with
    none this process's own.
    """
    full = command_line(command, identity, death_signal)
    if log is None:
        return Child(name, _popen(full, subprocess.PIPE, env, pass_fds))
    with _open_log(log) as file:
        begin = file.tell()
        return Child(name, _popen(full, file.fileno(), env, pass_fds), log, begin)


def _popen(
    command: list[str], output: int, env: Mapping[str, str] | None, pass_fds: Sequence[int]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - the command is ours
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=env,
        pass_fds=pass_fds,
        start_new_session=True,
    )


def _open_log(path: Path) -> BinaryIO:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_LIMIT:
            path.replace(path.with_name(path.name + ".1"))
    return path.open("ab")


def run(
    command: Sequence[str | Path], *, identity: Identity, env: Mapping[str, str], stdin: str = "", seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a short program to its end, as `start` would, and return its status and output (errors among it)."""
    return subprocess.run(  # noqa: S603 - the command is ours
        command_line(command, identity, signal.SIGKILL),
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        timeout=seconds,
        check=False,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def works_in(pid: int, folder: Path) -> bool:
    """Whether `pid` is a live process whose working directory is `folder`; without /proc, one that names it."""
    if Path("/proc/self").exists():
        try:
            return Path(f"/proc/{pid}/cwd").samefile(folder)
        except OSError:  # ended, a zombie, someone else's, or no such folder
            return False
    told = subprocess.run(["/bin/ps", "-p", str(pid), "-o", "args="], capture_output=True, text=True, check=False)  # noqa: S603 - an integer
    return str(folder) in told.stdout


def stop_orphan(pid: int, folder: Path, *steps: tuple[signal.Signals, float]) -> None:
    """Stop what an earlier parent left behind: `pid`, if it works in `folder`. As `Child.stop`, but for no child."""
    for number, seconds in (*steps, (signal.SIGKILL, 10.0)):
        if not works_in(pid, folder):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        wait_until(lambda: not works_in(pid, folder), seconds)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Look every 10 ms whether `condition` holds; false when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
