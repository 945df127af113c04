"""The server processes of `serve`, as many as `WORKERS` says: started, started again when they die, and stopped together."""

from __future__ import annotations

import collections
import contextlib
import json
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import typer

from app.metrics import PLACE
from app.servers import process
from app.servers.lock import Lock
from app.servers.process import Child

STOP_SECONDS = 30.0
QUIET_SECONDS = 1.0
"""How long a terminal waits without a word."""
HURRIED_SECONDS = 3.0
TRIES = 5  # deaths in a row of one worker that never took a request
LONGEST_PAUSE = 5.0  # seconds between two starts of one worker
TAIL_LINES = 20


class WorkerError(Exception):
    """The application cannot be started; the text says what it said."""


@dataclass
class _Worker:
    child: Child
    control: socket.socket
    pump: threading.Thread
    said: collections.deque[bytes]
    ready: bool = False


@dataclass
class _Slot:
    """The place of one worker, whichever process holds it now."""

    number: int
    worker: _Worker | None = None
    deaths: int = 0
    start_at: float = field(default_factory=time.monotonic)


class Workers:
    """`count` processes that share one listening socket. Call `watch` often.

    They begin by importing the application, and serve once `tell` has given them its settings.
    """

    def __init__(self, count: int, listener: socket.socket, presence: Lock) -> None:
        self._slots = [_Slot(number) for number in range(count)]
        self._metrics = tempfile.TemporaryFile(prefix="chattable-metrics-")  # noqa: SIM115 - closed by `stop`
        self._metrics.truncate(count * PLACE)
        self._listener = listener
        self._presence = presence
        self._told = b""

    @property
    def ready(self) -> bool:
        """Whether all of them take requests."""
        return all(slot.worker is not None and slot.worker.ready for slot in self._slots)

    def tell(self, settings: Mapping[str, str]) -> None:
        """Let them serve, with these settings besides those of the environment."""
        self._told = json.dumps(dict(settings)).encode() + b"\n"
        for slot in self._slots:
            if slot.worker is not None:
                _send(slot.worker.control, self._told)

    def watch(self) -> None:
        """Start what is not running; `WorkerError` when one keeps dying before it is ready."""
        for slot in self._slots:
            worker = slot.worker
            if worker is None:
                if time.monotonic() >= slot.start_at:
                    slot.worker = self._start(slot.number)
                continue
            if not worker.ready and _is_ready(worker.control):
                worker.ready, slot.deaths = True, 0
            if not worker.child.alive():
                self._bury(slot, worker)

    def _start(self, number: int) -> _Worker:
        ours, theirs = socket.socketpair()
        files = (self._listener.fileno(), theirs.fileno(), self._presence.file, self._metrics.fileno())
        place = (len(self._slots), number)
        with theirs:
            command = [sys.executable, "-m", "app.cli.server", *map(str, (*files, *place))]
            child = process.start("worker", command, log=None, pass_fds=files)
        ours.setblocking(False)
        _send(ours, self._told)
        said: collections.deque[bytes] = collections.deque(maxlen=TAIL_LINES)
        pump = threading.Thread(target=_pass_on, args=(child, said), name=f"output of {child.pid}", daemon=True)
        pump.start()
        return _Worker(child, ours, pump, said)

    def _bury(self, slot: _Slot, worker: _Worker) -> None:
        _close(worker)
        slot.worker = None
        slot.deaths += 1
        if not worker.ready and slot.deaths >= TRIES:
            tail = b"".join(worker.said).decode(errors="replace").rstrip()
            raise WorkerError(
                f"The application ended {TRIES} times before it was ready. The end of its output:\n{tail}"
            )
        pause = min(LONGEST_PAUSE, 0.1 * 2**slot.deaths)
        slot.start_at = time.monotonic() + pause
        status = worker.child.popen.returncode
        sys.stderr.write(f"Worker {worker.child.pid} ended with status {status}; another starts in {pause:.1f} s.\n")

    def stop(self, hurried: Callable[[], bool]) -> None:
        """Let all finish what they answer, for 30 s at most, or 3 s once `hurried` says so; then kill."""
        workers = [slot.worker for slot in self._slots if slot.worker is not None]
        self._signal(workers, signal.SIGTERM)

        def is_over() -> bool:
            return hurried() or not _any_alive(workers)

        if not process.wait_until(is_over, QUIET_SECONDS) and any(worker.ready for worker in workers):
            with contextlib.suppress(OSError):  # of a terminal that is gone
                typer.echo("Answers under way get some seconds to end; Ctrl-C again cuts them off.")
        process.wait_until(is_over, STOP_SECONDS)
        if _any_alive(workers):
            self._signal(workers, signal.SIGINT)  # uvicorn stops waiting for connections
            process.wait_until(lambda: not _any_alive(workers), HURRIED_SECONDS)
        for worker in workers:
            worker.child.stop()
            _close(worker)
        self._metrics.close()

    @staticmethod
    def _signal(workers: list[_Worker], number: signal.Signals) -> None:
        for worker in workers:
            worker.child.send(number)


def _any_alive(workers: list[_Worker]) -> bool:
    return any(worker.child.alive() for worker in workers)


def _send(control: socket.socket, line: bytes) -> None:
    with contextlib.suppress(OSError):  # a worker that has died; `watch` finds it
        control.sendall(line)


def _is_ready(control: socket.socket) -> bool:
    with contextlib.suppress(OSError):
        return control.recv(1) == b"1"
    return False


def _close(worker: _Worker) -> None:
    """Let the last lines through and close the pipes."""
    worker.pump.join(1.0)
    worker.control.close()


def _pass_on(child: Child, said: collections.deque[bytes]) -> None:
    """Copy a worker's output to this process's, and keep its end."""
    output = child.popen.stdout
    if output is None:
        return
    with output:
        for line in output:
            said.append(line)
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
