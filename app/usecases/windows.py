"""The newest messages of sessions that this process has answered in, so that the next one need not be read back."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from uuid import UUID

from app.domain import Message

MAX_TOKENS = 6000
"""How much history an agent is given, in estimated tokens: what fits a small local model's context of 8,192 with room to answer."""
MAX_MESSAGES = 200
CACHE_CHARACTERS = 20_000_000
"""The size of the whole cache, in characters of content."""
MAX_PAUSES = 10_000
NOTHING: tuple[Sequence[Message], int] = ((), 0)


def trim(branch: Sequence[Message]) -> list[Message]:
    """As many of the newest messages as fit, but always the last one; and the first of all where it has a summary."""
    if len(branch) > 1 and (summary := branch[0].summary):
        return [branch[0], *_trimmed(branch[1:], MAX_TOKENS - summary.tokens)]
    return _trimmed(branch, MAX_TOKENS)


def _trimmed(branch: Sequence[Message], room: int) -> list[Message]:
    first, last = max(0, len(branch) - MAX_MESSAGES), len(branch) - 1
    room -= sum([message.tokens for message in branch[first:]])
    while room < 0 and first < last:
        room += branch[first].tokens
        first += 1
    while 0 < first < len(branch) and branch[first].role == "tool":  # a result needs its call
        first -= 1
    return list(branch[first:])


class Windows:
    """One window of each session, the least recently used forgotten first.

    Messages never change, so a window is right for whoever asks for the branch that ends with its last message.
    """

    def __init__(self, max_characters: int = CACHE_CHARACTERS) -> None:
        self._windows: OrderedDict[UUID, tuple[Sequence[Message], int]] = OrderedDict()
        self._room = max_characters

    def get(self, session_id: UUID, leaf_id: UUID) -> Sequence[Message] | None:
        """The window that ends with this message, if it is the one at hand."""
        window, _ = self._windows.get(session_id, NOTHING)
        return window if window and window[-1].id == leaf_id else None

    def put(self, session_id: UUID, window: Sequence[Message]) -> None:
        """Keep a branch's newest messages instead of what was kept for the session; nothing where there is more than text to it."""
        self.forget(session_id)
        lengths = [len(message.content) for message in window if not message.parts]
        if len(lengths) < len(window):  # images are large, and no count of tokens tells how
            return
        size = sum(lengths) + 500 * len(window)
        self._windows[session_id] = window, size
        self._room -= size
        while self._room < 0:
            self._room += self._windows.popitem(last=False)[1][1]

    def forget(self, session_id: UUID) -> None:
        """Keep nothing of a session."""
        if kept := self._windows.pop(session_id, None):
            self._room += kept[1]


class Pauses:
    """Sessions whose summaries failed a while ago, and when they are tried again, by the monotonic clock."""

    def __init__(self) -> None:
        self._until: OrderedDict[UUID, float] = OrderedDict()

    def __contains__(self, session_id: UUID) -> bool:
        return self._until.get(session_id, 0.0) > time.monotonic()

    def add(self, session_id: UUID, seconds: float) -> None:
        """Try no more for so long."""
        self._until[session_id] = time.monotonic() + seconds
        while len(self._until) > MAX_PAUSES:
            self._until.popitem(last=False)
