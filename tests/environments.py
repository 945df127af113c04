"""Python environments beside the tests' own, for programs whose pins are not ours: `tests/NAME.lock` names what `.venv-NAME` holds."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(name: str) -> Path:
    """The folder of the environment's programs, installed from hashes where it is missing."""
    lock, folder = ROOT / f"tests/{name}.lock", ROOT / f".venv-{name}"
    with installing(lock, folder) as is_missing:
        if is_missing:
            _install(lock, folder)
    return folder / "bin"


@contextmanager
def installing(lock: Path, folder: Path) -> Iterator[bool]:
    """Whether `folder` lacks what `lock` names, as its copy there says, until the end of the block. One process at a time."""
    copy = folder / f".of-{lock.name}"
    with lock.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        wanted = held.read()
        yield not (copy.is_file() and copy.read_bytes() == wanted)
        copy.write_bytes(wanted)


def _install(lock: Path, folder: Path) -> None:
    python = folder / "bin/python"
    if uv := shutil.which("uv"):
        make = [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)]
        fill = [uv, "pip", "install", "--quiet", "--python", str(python)]
    else:
        make = [sys.executable, "-m", "venv", "--clear", str(folder)]
        fill = [str(python), "-m", "pip", "install", "--quiet", "--quiet", "--disable-pip-version-check"]
    subprocess.run(make, check=True)
    subprocess.run([*fill, "--require-hashes", "-r", str(lock)], check=True)
