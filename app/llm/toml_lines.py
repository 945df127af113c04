"""In which line of a TOML text a key is given: `tomllib` tells lines of syntax errors only."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from contextlib import suppress
from typing import Any

Keys = tuple[str | int, ...]
"""The way from the top of a file to a place in it: `("models", "small", "endpoints", 0, "weight")`."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def dotted(keys: Keys) -> str:
    """`keys` as TOML writes them, with positions in arrays from 0: `models.small.endpoints[0].weight`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{_shown(key[:64])}" for key in keys).removeprefix(".")


def _shown(key: str) -> str:
    return key if _BARE.fullmatch(key) else '"' + "".join(c if c.isprintable() else "?" for c in key) + '"'


def line_of(text: str, keys: Keys) -> int | None:
    """The line, from 1, that gives `keys`, or the nearest place around it, in `text`, which is valid TOML.

    It is the last of the shortest beginning of the text that has it.
    """
    rows = text.split("\n")
    while keys and not _has(tomllib.loads(text), keys):
        keys = keys[:-1]
    return bisect_left(range(len(rows)), True, key=lambda end: _has(_begun(rows, end), keys)) if keys else None


def _begun(rows: list[str], end: int) -> Any:
    """The first `end` lines, parsed, an array that they leave open closed; and more lines if a statement needs them."""
    while True:
        for closing in ("", "]"):
            with suppress(tomllib.TOMLDecodeError):
                return tomllib.loads("\n".join([*rows[:end], closing]))
        end += 1


def _has(tables: Any, keys: Keys) -> bool:
    for key in keys:
        try:
            tables = tables[key]
        except (KeyError, IndexError, TypeError):
            return False
    return True
