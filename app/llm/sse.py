"""Splits a stream of bytes into the data of server-sent events (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations

from app.errors import LLMError


class Events:
    """The `data` of each event, whatever the cuts between the pieces it is fed.

    Lines end with LF or CRLF. An event's `data` lines are joined by LF; comments and other fields are skipped.
    """

    def __init__(self, limit: int) -> None:
        """`limit` is the most bytes of a line, and of one event's data; more is an `LLMError`."""
        self._limit = limit
        self._pieces: list[bytes] = []
        self._line = 0
        self._data: list[bytes] = []
        self._event = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that `piece` completes."""
        self._pieces.append(piece)
        if b"\n" not in piece:
            self._line += len(piece)
            self._check(self._line)
            return []
        *lines, rest = b"".join(self._pieces).replace(b"\r\n", b"\n").split(b"\n")
        self._pieces, self._line = [rest], len(rest)
        self._check(self._line)
        return self._events(lines)

    def end(self) -> list[bytes]:
        """The event left open when the stream ended: some servers leave out the last blank line."""
        return self.feed(b"\n\n")

    def _events(self, lines: list[bytes]) -> list[bytes]:
        events = []
        for line in lines:
            if line[:5] == b"data:":
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
                self._event += len(line)
                self._check(self._event)
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data, self._event = [], 0
        return events

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise LLMError("The language model's server sent a line that is too long.")
