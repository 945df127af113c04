"""In which line of a TOML text a key stands: `tomllib` tells lines of syntax errors only.

The text has been parsed before, so it is known to be valid, and the reader here need not check anything.
The grammar is that of TOML 1.0 (https://toml.io/en/v1.0.0).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

Keys = tuple[str | int, ...]
"""The way from the top of a file to a place in it: `("models", "small", "endpoints", 0, "weight")`."""

_TOKEN = re.compile(
    r'''[ \t\r]+ | \#[^\n]*
    | (?P<token>
        """(?:\\.|[^\\])*?"""(?!") | \'\'\'.*?\'\'\'(?!') | "(?:\\.|[^"\\])*" | '[^']*'
        | [\[\]{}=,.\n]
        | [^\s\#"'\[\]{}=,.]+
    )''',
    re.VERBOSE | re.DOTALL,
)
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_END = ""


def dotted(keys: Keys) -> str:
    """`keys` as TOML writes them, with positions in arrays from 0: `models.small.endpoints[0].weight`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{_shown(key[:64])}" for key in keys).removeprefix(".")


def _shown(key: str) -> str:
    return key if _BARE.fullmatch(key) else '"' + "".join(c if c.isprintable() else "?" for c in key) + '"'


def lines(text: str) -> dict[Keys, int]:
    """The line, from 1, of every key and every element of an array in `text`, which is valid TOML.

    `RecursionError` when it is nested too deeply.
    """
    reader = _Reader(text)
    reader.read()
    return reader.lines


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    line = 1
    for found in _TOKEN.finditer(text):
        if found["token"]:
            yield found["token"], line
        line += found[0].count("\n")
    yield _END, line


class _Reader:
    def __init__(self, text: str) -> None:
        self._rest = _tokens(text)
        self._now, self._line = next(self._rest)
        self._last: dict[Keys, int] = {}
        """The position of the newest table of each array of tables."""
        self.lines: dict[Keys, int] = {}

    def read(self) -> None:
        """All statements: headers, and pairs of the table whose header came last."""
        table: Keys = ()
        while (first := self._next_on_any_line()) != _END:
            if first == "[":
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> Keys:
        self._take()
        if is_array := self._now == "[":
            self._take()
        *above, last = self._key()
        path: Keys = ()
        for key in above:
            path = self._note((*path, key))
            if path in self._last:
                path = (*path, self._last[path])
        path = self._note((*path, last))
        if is_array:
            self._last[path] = self._last.get(path, -1) + 1
            path = self._note((*path, self._last[path]))
            self._take()
        self._take()
        return path

    def _pair(self, path: Keys) -> None:
        for key in self._key():
            path = self._note((*path, key))
        self._take()
        self._value(path)

    def _key(self) -> list[str]:
        parts = [_name(self._take())]
        while self._now == ".":
            self._take()
            parts.append(_name(self._take()))
        return parts

    def _value(self, path: Keys) -> None:
        if self._now == "[":
            self._take()
            index = 0
            while self._next_on_any_line() != "]":
                self._value(self._note((*path, index)))
                self._comma()
                index += 1
            self._take()
        elif self._now == "{":
            self._take()
            while self._next_on_any_line() != "}":
                self._pair(path)
                self._comma()
            self._take()
        else:
            self._take()
            while self._now not in (",", "]", "}", "\n", _END):
                self._take()

    def _comma(self) -> None:
        if self._next_on_any_line() == ",":
            self._take()

    def _next_on_any_line(self) -> str:
        while self._now == "\n":
            self._take()
        return self._now

    def _take(self) -> str:
        token = self._now
        self._now, self._line = next(self._rest)
        return token

    def _note(self, path: Keys) -> Keys:
        self.lines.setdefault(path, self._line)
        return path


def _name(token: str) -> str:
    return str(tomllib.loads(f"key = {token}")["key"]) if token[0] in "\"'" else token
