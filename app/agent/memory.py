"""What an agent remembers beyond the session's own messages.

A `MemoryManager` is a loaded window: its verbs are synchronous and see every limit at once. `export` and `load` carry it
as plain JSON; `changes` tells which entries are new, altered or forgotten since they were last asked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, overload

import msgspec
from msgspec import Struct

from app.agent.history import History, newest, paired, rounds
from app.domain import MESSAGE_TYPES, Message, new_id
from app.errors import InvalidInput
from app.llm.llm import Completion, Reply

if TYPE_CHECKING:
    from app.agent.meaning import Meaning

DEFAULT = "default"
"""The memory that is meant when none is named."""
WINDOW = 200
"""How many entries of one memory are short-term."""
LONG_TERM = 1000
"""How many entries are long-term, over all memories."""
MAX_CHARACTERS = 2_000_000
"""How much text is remembered, over all memories; each entry counts `OVERHEAD` more."""
OVERHEAD = 100
MAX_TAGS = 32
EARNED = 0.7
"""A score or an importance from here on makes an entry long-term when it leaves the window."""
OFTEN = 3
"""So does being found so often."""
HALF_LIFE = 86_400.0
"""Seconds in which an entry's recency falls to a half."""
WEIGHTS = (0.5, 0.3, 0.2)
"""Of score, importance and recency in an entry's rank."""

ROLES = {"human": "user", "ai": "assistant"}
"""The roles of seed 003 in the words of the OpenAI protocol."""


class Memory(Struct):
    """One entry. Scores and importance are from 0 to 1, times in seconds since 1970."""

    id: str
    role: str
    content: str
    memory_id: str = DEFAULT
    score: float = 0.5
    importance: float = 0.5
    tags: tuple[str, ...] = ()
    created_at: float = 0.0
    used_at: float = 0.0
    uses: int = 0
    expires_at: float | None = None
    term: Literal["short", "long"] = "short"
    beside: Mapping[str, Any] = {}
    """The calls of an assistant's message, or the id of the call that a tool's answers."""

    def to_message(self) -> Message:
        """The entry as a message; a role that the protocol does not know is a user of that name."""
        role = ROLES.get(self.role, self.role)
        if role in MESSAGE_TYPES:
            return Message(role, self.content, additional_kwargs=self.beside)
        return Message("user", self.content, name=self.role)


class Changes(NamedTuple):
    """What has happened to a memory: entries to save, and ids of those forgotten."""

    saved: Sequence[Memory]
    forgotten: Sequence[str]


def loose(method: Callable[..., Any]) -> Callable[..., Any]:
    """Types a method so that subclasses choose their own parameters, and whether they are async."""
    return method


class BaseMemory:
    """A memory of one's own: both methods sync or async, called by keyword."""

    @loose
    def add_memory(self, content: str, role: str = "user", **kwargs: Any) -> Any:
        """Remember something that was said."""
        raise NotImplementedError(f"{type(self).__name__} has no add_memory")

    @loose
    def build_history(self, **kwargs: Any) -> Any:
        """What was said, as a list of messages or a text; asked with `memory_id` and `max_round`."""
        raise NotImplementedError(f"{type(self).__name__} has no build_history")


class MemoryManager(BaseMemory):
    """Memories in process: each `memory_id` has a window of its newest entries, and what earned it is kept beyond.

    An entry that leaves its window becomes long-term if its score, its importance or its use is high, and is forgotten
    if not. Of too many long-term ones the lowest in rank is forgotten.
    """

    meaning: Meaning | None = None
    """What finds entries by what they mean; for who gives an agent its language model."""

    def __init__(
        self,
        *,
        ttl: float | None = None,
        window: int = WINDOW,
        long_term: int = LONG_TERM,
        max_characters: int = MAX_CHARACTERS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`ttl` is how many seconds an entry lives that is given no other."""
        self._ttl, self._window, self._long_term, self._room = ttl, window, long_term, max_characters
        self._clock = clock
        self._entries: dict[str, Memory] = {}
        self._size = 0
        self._changed: dict[str, Memory | None] = {}
        self._user: Self | None = None

    @property
    def user(self) -> Self:
        """The memory over all of the user's sessions."""
        if self._user is None:
            self._user = type(self)(ttl=self._ttl, clock=self._clock)
        self._user.meaning = self.meaning
        return self._user

    def add_memory(
        self,
        content: str,
        role: str = "user",
        *,
        score: float = 0.5,
        importance: float = 0.5,
        tags: Iterable[str] = (),
        ttl: float | None = None,
        memory_id: str = DEFAULT,
        **beside: Any,
    ) -> Memory:
        """Remember something. `ttl` is in seconds; `score` and `importance` are from 0 to 1."""
        now = self._clock()
        for name, value in (("score", score), ("importance", importance)):
            if not 0 <= value <= 1:
                raise InvalidInput(f"{name} must be from 0 to 1.", param=name)
        tags = tuple(dict.fromkeys(tags))
        if len(content) + OVERHEAD > self._room or len(tags) > MAX_TAGS:
            raise InvalidInput("A memory must fit into what is remembered in all.", param="content")
        seconds = self._ttl if ttl is None else ttl
        expires_at = None if seconds is None else now + seconds
        entry = Memory(
            str(new_id()),
            role,
            str(content),
            memory_id,
            score,
            importance,
            tags,
            now,
            now,
            0,
            expires_at,
            beside=beside,
        )
        self._put(entry)
        self._shrink(entry)
        return entry

    def add_user(self, content: str | Message, **fields: Any) -> Memory:
        """Remember what the person said."""
        return self.add_memory(content.content if isinstance(content, Message) else content, "user", **fields)

    def add_assistant(self, content: str | Message | Completion | Reply, **fields: Any) -> Memory:
        """Remember what was answered, and of a `Reply`, which must have been read, the tools it called."""
        if isinstance(content, Reply):
            if calls := content.tool_calls:
                fields["tool_calls"] = [call.to_openai() for call in calls]
            content = content.response
        elif isinstance(content, Message):
            fields = {**content.additional_kwargs, **fields} if "tool_calls" in content.additional_kwargs else fields
            content = content.content
        return self.add_memory(content, "assistant", **fields)

    def add_tool_result(self, results: Any, **fields: Any) -> list[Memory]:
        """Remember what tools answered: a `ToolResult`, or a list of them."""
        found = results if isinstance(results, list | tuple) else [results]
        return [self.add_memory(result.content, "tool", tool_call_id=result.id, **fields) for result in found]

    @overload
    def build_history(
        self,
        *,
        memory_id: str = ...,
        max_round: int | None = ...,
        max_length: int | None = ...,
        format: Literal["text"],
    ) -> str: ...
    @overload
    def build_history(
        self,
        *,
        memory_id: str = ...,
        max_round: int | None = ...,
        max_length: int | None = ...,
        format: Literal["messages"] = ...,
    ) -> History: ...
    def build_history(
        self,
        *,
        memory_id: str = DEFAULT,
        max_round: int | None = None,
        max_length: int | None = None,
        format: str = "messages",
    ) -> History | str:
        """The window of a memory, oldest first: its last rounds, of at most `max_length` characters.

        A round is what a user said and all up to his next words; none is cut. Calls of tools and their results are
        there in pairs only. `format="text"` gives the transcript, which is also what `str` makes of the history.
        """
        if format not in ("messages", "text"):
            raise InvalidInput("format must be messages or text.", param="format")
        messages = [entry.to_message() for entry in self._alive(memory_id) if entry.term == "short"]
        cut = rounds(messages)
        cut = cut[max(len(cut) - max_round, 0) :] if max_round is not None else cut
        history = History(paired(message for round in newest(cut, max_length) for message in round))
        return str(history) if format == "text" else history

    def get_top_memories(self, memory_id: str | None = None, top_n: int = 5) -> list[Memory]:
        """The entries of the highest rank, the highest first; of every memory if none is named."""
        return self._found(self._alive(memory_id), top_n)

    async def search(
        self,
        query: str = "",
        *,
        tags: Iterable[str] = (),
        after: float | None = None,
        before: float | None = None,
        memory_id: str | None = None,
        top_n: int = 10,
        by: Literal["words", "meaning"] = "words",
    ) -> list[Memory]:
        """The entries that hold all words of `query`, have all `tags`, and were made in a time; by rank.

        By `meaning` the words are not looked for: of the others the entries come that mean what is nearest to `query`, the
        nearest first. They and the query are embedded as by `self.embed`, each entry once.
        """
        if by not in ("words", "meaning"):
            raise InvalidInput("by must be words or meaning.", param="by")
        words, wanted = query.casefold().split() if by == "words" else [], set(tags)
        fitting = [
            entry
            for entry in self._alive(memory_id)
            if wanted.issubset(entry.tags)
            and (after is None or entry.created_at >= after)
            and (before is None or entry.created_at < before)
            and all(word in entry.content.casefold() for word in words)
        ]
        if by == "words":
            return self._found(fitting, top_n)
        if self.meaning is None:
            from app.agent.meaning import NO_MODEL

            raise InvalidInput(NO_MODEL, param="by")
        return self._used(await self.meaning.nearest(query, fitting, top_n))

    def forget(self, id: str) -> bool:
        """Forget one entry: whether there was one."""
        if id not in self._entries:
            return False
        self._drop(self._entries[id])
        return True

    def clear(self, memory_id: str | None = None) -> None:
        """Forget all of one memory, or everything."""
        for entry in self._alive(memory_id):
            self._drop(entry)

    def rank(self, entry: Memory) -> float:
        """How much an entry is worth now, from 0 to 1: its score, importance and recency."""
        recency = 0.5 ** (max(self._clock() - entry.used_at, 0.0) / HALF_LIFE)
        return math.fsum(
            weight * part for weight, part in zip(WEIGHTS, (entry.score, entry.importance, recency), strict=True)
        )

    def export(self) -> dict[str, Any]:
        """Everything, as plain JSON."""
        return {"version": 1, "entries": msgspec.to_builtins(self._alive(None))}

    def load(self, exported: Mapping[str, Any]) -> None:
        """Take what `export` gave, in place of what is there; what has expired meanwhile is left out."""
        try:
            entries = msgspec.convert(exported["entries"], list[Memory]) if exported["version"] == 1 else None
        except (KeyError, msgspec.ValidationError):
            entries = None
        if entries is None:
            raise InvalidInput("This is no exported memory.", param="exported")
        self.fill(entries)

    def fill(self, entries: Iterable[Memory]) -> None:
        """Hold these entries, oldest first, and no others, within the limits; for who stores them elsewhere."""
        self._entries, self._size = {}, 0
        self._changed = {}
        last: dict[str, Memory] = {}
        for entry in list(entries):
            self._put(entry)
            last[entry.memory_id] = entry
        for entry in last.values():
            if entry.id in self._entries:
                self._shrink(entry)
        self._changed = {id: None for id, entry in self._changed.items() if entry is None}

    def scopes(self) -> Sequence[Self]:
        """This memory, and that of the user if it was looked at."""
        return [self, self._user] if self._user is not None else [self]

    def __iter__(self) -> Iterator[Memory]:
        """The entries of every memory, oldest first."""
        return iter(self._alive(None))

    def changes(self) -> Changes:
        """What has changed since this was last asked."""
        self._alive(None)
        changed, self._changed = self._changed, {}
        return Changes(
            [entry for entry in changed.values() if entry], [id for id, entry in changed.items() if entry is None]
        )

    def _alive(self, memory_id: str | None) -> list[Memory]:
        """The entries of one memory, or all, oldest first; those whose time is over are forgotten now."""
        now = self._clock()
        for entry in [
            entry for entry in self._entries.values() if entry.expires_at is not None and entry.expires_at <= now
        ]:
            self._drop(entry)
        return [entry for entry in self._entries.values() if memory_id in (None, entry.memory_id)]

    def _found(self, entries: Iterable[Memory], top_n: int) -> list[Memory]:
        return self._used(sorted(entries, key=self.rank, reverse=True)[: max(top_n, 0)])

    def _used(self, entries: Iterable[Memory]) -> list[Memory]:
        found = [entry for entry in entries if entry.id in self._entries]
        for entry in found:
            entry.uses += 1
            entry.used_at = self._clock()
            self._changed[entry.id] = entry
        return found

    def _shrink(self, new: Memory) -> None:
        """Hold the limits, now that there is one more."""
        window = [entry for entry in self._alive(new.memory_id) if entry.term == "short"]
        for entry in window[: max(len(window) - self._window, 0)]:
            self._leave(entry)
        kept = [entry for entry in self._entries.values() if entry.term == "long"]
        if len(kept) > self._long_term:
            for entry in sorted(kept, key=self.rank)[: len(kept) - self._long_term]:
                self._drop(entry)
        while self._size > self._room:
            others = (entry for entry in self._entries.values() if entry is not new)
            self._drop(min(others, key=lambda entry: (entry.term == "long", entry.created_at)))

    def _leave(self, entry: Memory) -> None:
        """An entry leaves its window: it has earned its place, or is forgotten."""
        if max(entry.score, entry.importance) >= EARNED or entry.uses >= OFTEN:
            entry.term = "long"
            self._changed[entry.id] = entry
        else:
            self._drop(entry)

    def _put(self, entry: Memory) -> None:
        self._entries[entry.id] = self._changed[entry.id] = entry
        self._size += len(entry.content) + OVERHEAD

    def _drop(self, entry: Memory) -> None:
        del self._entries[entry.id]
        self._changed[entry.id] = None
        self._size -= len(entry.content) + OVERHEAD
