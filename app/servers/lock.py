"""One server per DATA_DIR: the folder is made private and locked, and the lock goes with the death of its holder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from app.errors import SettingsError
from app.servers.folders import make_private


class Lock:
    """An exclusive lock on a file, held until `release`, the end of the `with` block, or this process's death."""

    def __init__(self, file: int) -> None:
        self.file = file

    def release(self) -> None:
        """Let another process have it."""
        os.close(self.file)

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock_data_dir(data_dir: Path) -> Lock:
    """Make `data_dir` (0700) if need be, and lock it; `SettingsError` when it is not writable or another server's."""
    try:
        make_private(data_dir)
        lock = try_lock(data_dir / "serve.lock")
    except OSError as error:
        raise SettingsError(
            f"DATA_DIR {data_dir} cannot be written ({error.strerror}): set DATA_DIR to a folder of yours."
        ) from None
    if lock is None:
        holder = (data_dir / "serve.lock").read_text().strip()
        raise SettingsError(
            f"DATA_DIR {data_dir} is in use by another server (process {holder}): "
            "stop that one, or set DATA_DIR and PORT to start a second."
        )
    os.truncate(lock.file, 0)
    os.write(lock.file, str(os.getpid()).encode())
    return lock


def try_lock(path: Path) -> Lock | None:
    """The lock on `path`, or None while someone holds it. Children have it only if its `file` is passed to them."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    except BaseException:
        os.close(file)
        raise
    return Lock(file)
