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


class Window(list[Message]):
    """As many of a branch's newest messages as fit, but always the last one; and the first of all where it has a summary.

    It knows what its messages come to, so that a turn costs a look at those that come and go, and not at all of them.
    """

    tokens = 0
    size = 0
    """In characters: of the contents, and 500 for whatever else there is to a message."""
    others = 0
    """How many of them are more than text."""

    def grown(self, said: Sequence[Message]) -> Window:
        """The window when this has been said too."""
        grown = Window(self)
        grown.extend(said)
        grown.tokens, grown.size, grown.others = self.tokens, self.size, self.others
        grown._count(said, 1)
        grown._trim()
        return grown

    def _count(self, messages: Sequence[Message], sign: int) -> None:
        for message in messages:
            self.tokens += sign * message.tokens
            self.size += sign * (len(message.content) + 500)
            self.others += sign * bool(message.parts)

    def _trim(self) -> None:
        begin, room, last = 0, MAX_TOKENS - self.tokens, len(self) - 1
        if last > 0 and (summary := self[0].summary):
            begin, room = 1, room + self[0].tokens - summary.tokens
        first = begin
        while first < last and (room < 0 or last - first >= MAX_MESSAGES):
            room += self[first].tokens
            first += 1
        while begin < first and self[first].role == "tool":  # a result needs its call
            first -= 1
        if begin < first:
            self._count(self[begin:first], -1)
            del self[begin:first]


def trim(branch: Sequence[Message]) -> Window:
    """The window at the end of a branch."""
    return Window().grown(branch)


class Windows:
    """One window of each session, the least recently used forgotten first.

    Messages never change, so a window is right for whoever asks for the branch that ends with its last message.
    """

    def __init__(self, max_characters: int = CACHE_CHARACTERS) -> None:
        self._windows: OrderedDict[UUID, Window] = OrderedDict()
        self._room = max_characters

    def get(self, session_id: UUID, leaf_id: UUID) -> Window | None:
        """The window that ends with this message, if it is the one at hand."""
        window = self._windows.get(session_id)
        return window if window and window[-1].id == leaf_id else None

    def put(self, session_id: UUID, branch: Sequence[Message], said: Sequence[Message] = ()) -> None:
        """Keep a branch's newest messages, with what was `said` then, instead of what was kept for the session; nothing where there is
        more than text to it.
        """
        self.forget(session_id)
        window = (branch if isinstance(branch, Window) else trim(branch)).grown(said)
        if window.others:  # images are large, and no count of tokens tells how
            return
        self._windows[session_id] = window
        self._room -= window.size
        while self._room < 0:
            self._room += self._windows.popitem(last=False)[1].size

    def forget(self, session_id: UUID) -> None:
        """Keep nothing of a session."""
        if window := self._windows.pop(session_id, None):
            self._room += window.size


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
