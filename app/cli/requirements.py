"""What agents' files need: the dependencies of their inline metadata (PEP 723)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from app.errors import SettingsError

BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
"""The block of metadata, as the specification "Inline script metadata" of packaging.python.org gives it."""


def of(file: Path) -> list[str]:
    """The dependencies a file names; `SettingsError` for a block that cannot be read."""
    blocks = [found for found in BLOCK.finditer(file.read_text(encoding="utf-8")) if found["type"] == "script"]
    if not blocks:
        return []
    if len(blocks) > 1:
        raise SettingsError(f"{file.name} has more than one block of inline metadata.")
    lines = (line[2:] if line.startswith("# ") else line[1:] for line in blocks[0]["content"].splitlines())
    try:
        needs = tomllib.loads("\n".join(lines)).get("dependencies", [])
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file.name}: its inline metadata is no TOML: {error}.") from None
    if not (
        isinstance(needs, list) and all(isinstance(need, str) and re.match(r"[A-Za-z0-9]", need) for need in needs)
    ):
        raise SettingsError(f"{file.name}: dependencies must be a list of requirements.")
    return needs


def of_folder(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every agent's file or package that names dependencies, with them."""
    for path in sorted(folder.iterdir()):
        file = path / "__init__.py" if path.is_dir() else path
        if not path.name.startswith(("_", ".")) and file.suffix == ".py" and file.is_file() and (needs := of(file)):
            yield path, needs


def command(needs: list[str], python: str, uv: str | None) -> list[str]:
    """What installs them into the environment of `python`."""
    first = [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]
    return [*first, "--", *needs]
