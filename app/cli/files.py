"""Files that commands write: that they can be is known before the work whose results they take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from app.errors import SettingsError


def check_writable(*paths: Path | None) -> None:
    """`SettingsError` for the first that cannot be written. Makes and changes none of them."""
    for path in filter(None, paths):
        if os.path.isdir(path):
            raise SettingsError(f"{path} cannot be written: it is a folder.")
        if not (os.access(path, os.W_OK) if os.path.exists(path) else os.access(path.parent, os.W_OK | os.X_OK)):
            raise SettingsError(f"{path} cannot be written: is there a folder {path.parent} that you may write to?")


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """The file, made anew; `SettingsError` when it cannot be, or not to its end, as on a disk that is full."""
    try:
        with path.open("wb") as file:
            yield file
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}.") from None
