"""What an agent's memory brings to a message, and what of it is to be stored with the answer: the difference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import NAMESPACE_OID, UUID, uuid5

import msgspec
from msgspec.structs import replace

from app.agent.plain import clean, plain
from app.domain import MemoryChange, Remembered
from app.errors import AgentFailed

if TYPE_CHECKING:
    from app.agent.meaning import Vectors
    from app.agent.memory import BaseMemory, Memory, MemoryManager

MAX_CHARACTERS = 4_000_000
"""How much one agent remembers of a session, and of a user, at most, in characters with what stands beside the text."""
OVERHEAD = 100
"""What each entry counts besides its text, as in `MemoryManager`."""
LATEST = 8e9
"""The end of time, in seconds since 1970: what expires later does not expire."""


class Recollection:
    """An agent's memories of the session's branch, and of the user, as they were stored before the message."""

    def __init__(self, stored: Iterable[Remembered] = (), vectors: Vectors | None = None) -> None:
        self.vectors = vectors
        self._stored = list(stored)
        self._manager: MemoryManager | None = None
        self._known: dict[bool, dict[str, Memory]] = {False: {}, True: {}}

    def fill(self, manager: BaseMemory) -> None:
        """Have the agent's memory begin with what is stored; what it was given when it was made comes after that.

        A memory of the author's own keeps what it remembers itself.
        """
        from app.agent.memory import MemoryManager

        if not isinstance(manager, MemoryManager):
            return
        self._manager = manager
        for of_user in (False, True):
            entries = [_memory(entry) for entry in self._stored if (entry.session_id is None) == of_user]
            self._known[of_user] = {entry.id: replace(entry) for entry in entries}
            if entries:
                scope = manager.user if of_user else manager
                scope.fill([*entries, *scope])

    def apply(self, changes: Iterable[MemoryChange], session_id: UUID) -> None:
        """What was changed since, and is not stored yet, was so before; to be done before `fill`."""
        known = {entry.id: entry for entry in self._stored}
        for change in changes:
            known.pop(change.id, None)
            if change.entry is not None:
                known[change.id] = replace(change.entry, session_id=None if change.of_user else session_id)
        self._stored = list(known.values())

    def changes(self) -> Sequence[MemoryChange]:
        """What is otherwise now; `AgentFailed` for what cannot be stored."""
        if self._manager is None:
            return []
        try:
            return [
                change
                for of_user, scope in enumerate(self._manager.scopes())
                for change in _changes(scope, self._known[bool(of_user)], bool(of_user))
            ]
        except (TypeError, ValueError, RecursionError) as error:
            raise AgentFailed("The agent's memory holds something that cannot be stored.") from error


def _changes(scope: MemoryManager, known: Mapping[str, Memory], of_user: bool) -> Iterator[MemoryChange]:
    now = {entry.id: entry for entry in scope}
    if sum(_size(entry) for entry in now.values()) > MAX_CHARACTERS:
        raise AgentFailed("The agent's memory is larger than this server keeps.")
    for id, entry in now.items():
        if known.get(id) != entry:
            yield MemoryChange(uuid_of(id), of_user, id in known, _remembered(entry))
    for id in known:
        if id not in now:
            yield MemoryChange(uuid_of(id), of_user, True)


def _size(entry: Memory) -> int:
    tags = sum(map(len, entry.tags))
    beside = len(msgspec.json.encode(plain(entry.beside))) if entry.beside else 0
    return len(entry.content) + len(entry.role) + len(entry.memory_id) + tags + beside + OVERHEAD


def uuid_of(id: str) -> UUID:
    """The id of an entry; one that is no UUID, of a memory from elsewhere, always becomes the same one."""
    try:
        return UUID(id)
    except ValueError:
        return uuid5(NAMESPACE_OID, clean(id))


def _memory(entry: Remembered) -> Memory:
    from app.agent.memory import Memory

    return Memory(
        str(entry.id),
        entry.role,
        entry.content,
        entry.memory_id,
        entry.score,
        entry.importance,
        tuple(entry.tags),
        entry.created_at.timestamp(),
        entry.used_at.timestamp(),
        entry.uses,
        entry.expires_at.timestamp() if entry.expires_at else None,
        "long" if entry.term == "long" else "short",
        entry.beside,
    )


def _remembered(entry: Memory) -> Remembered:
    return Remembered(
        uuid_of(entry.id),
        clean(entry.role),
        clean(entry.content),
        clean(entry.memory_id),
        _share(entry.score),
        _share(entry.importance),
        [clean(tag) for tag in entry.tags],
        _moment(entry.created_at),
        _moment(entry.used_at),
        min(max(int(entry.uses), 0), 2**31 - 1),
        _moment(entry.expires_at) if entry.expires_at is not None and entry.expires_at < LATEST else None,
        entry.term,
        plain(entry.beside),
    )


def _share(value: float) -> float:
    """A score as it may be stored: an agent can set an entry's to anything."""
    return float(value) if 0 <= value <= 1 else 0.5


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(min(max(seconds, 0.0), LATEST), UTC)
