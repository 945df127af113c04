"""The folders of DATA_DIR that are this user's alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

from app.errors import SettingsError

SOCKET_PATH_LIMIT = 103  # bytes of sun_path without its final zero: 107 on Linux, 103 on macOS
LONGEST_SOCKET_NAME = "/.s.PGSQL.5432"


def make_private(folder: Path) -> None:
    """Make `folder` for this user alone. One that exists keeps its mode, for it may be shared on purpose."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not folder.is_dir():
        raise NotADirectoryError(20, "it is not a folder", str(folder))


def socket_folder(data_dir: Path) -> Path:
    """A private folder for sockets: DATA_DIR/run, or one elsewhere when that is too long or too odd for an URL."""
    folder = data_dir / "run"
    fits = len(os.fsencode(str(folder) + LONGEST_SOCKET_NAME)) <= SOCKET_PATH_LIMIT
    if not fits or set(str(folder)) & set(',:"\\\n'):
        digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
        folder = Path(tempfile.gettempdir(), f"chattable-{os.geteuid()}-{digest}")
    make_private(folder)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
        raise SettingsError(
            f"The folder {folder} must be this user's alone: remove it, or set DATA_DIR to a shorter path."
        )
    return folder


def leave_socket_folder(data_dir: Path) -> None:
    """Remove the socket folder if it is not in DATA_DIR and no other engine uses it."""
    folder = socket_folder(data_dir)
    if folder.parent != data_dir:
        with contextlib.suppress(OSError):
            folder.rmdir()
