"""Whether this process is the only worker of its server: without Redis several would each remember a part."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import sys
import tempfile
import zlib
from pathlib import Path

from app.errors import SettingsError

REFUSAL = "Several workers need REDIS_URL, where they keep their sessions together: set it, or start this agent with one worker."
_SPACE = 1 << 32


class OnlyWorker:
    """Holds the place of one worker under its parent process, until `close` or the process's end."""

    def __init__(self, name: str) -> None:
        """`SettingsError` when a worker of the same agent and parent holds it. `name` is the agent's."""
        self._file: int | None = None
        if multiprocessing.parent_process() is None and "gunicorn.arbiter" not in sys.modules:
            return
        path = Path(tempfile.gettempdir()) / f"chattable-publish-{os.getuid()}.lock"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        place = os.getppid() * _SPACE + zlib.crc32(name.encode())
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError:
            self.close()
            raise SettingsError(REFUSAL) from None

    def close(self) -> None:
        """Give the place back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
