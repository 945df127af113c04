"""What the cache holds: whole answers and vectors, as values, as bytes, and as the newest of them in this process."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from itertools import islice
from typing import Literal, NamedTuple, TypeAlias

import msgspec
from msgspec.structs import replace

from app.domain import Chunk
from app.llm.llm import Finish

COMPLETE = frozenset({"stop", "tool_calls"})
"""The finishes that are cached: the model said all it had to say.

`length` may come of a budget that clamped the call, so the same request could get more another time; `content_filter`
and words we do not know are verdicts of the moment; what was cut, cancelled or failed is no answer at all.
"""
STREAMED = frozenset({"text", "thinking"})
"""The content types whose neighbouring pieces are one text; every other chunk is a whole thing of its own."""
OVERHEAD = 1000
"""Bytes that an entry takes in this process besides its own."""
REMEMBERED = 1000
"""How many erasures are remembered, for what was asked before them and comes after."""


class CachedAnswer(msgspec.Struct, frozen=True, array_like=True, tag="answer"):
    """A whole answer of a chat model, with its finish as it was counted when the upstream gave it."""

    chunks: tuple[Chunk, ...]
    finish: Finish

    @classmethod
    def of(cls, chunks: Iterable[Chunk], finish: Finish) -> CachedAnswer | None:
        """What was streamed as an entry; none if it is not complete."""
        return cls(tuple(_joined(chunks)), finish) if finish.reason in COMPLETE else None

    @property
    def tokens(self) -> int:
        """What it took to make, so what a hit saves."""
        return self.finish.usage.total

    def items(self) -> Iterator[Chunk | Finish]:
        """The same stream again. Its usage has the counts under which the answer was made, at no cost."""
        yield from self.chunks
        yield replace(self.finish, usage=replace(self.finish.usage, cost=Decimal(0)))


class CachedVector(msgspec.Struct, frozen=True, array_like=True, tag="vector"):
    """The embedding of one text, in the bytes its maker chose; `tokens` is what it took to make."""

    numbers: bytes
    tokens: int


Entry: TypeAlias = CachedAnswer | CachedVector


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """An entry and what ends it: its time (`expires`, in Unix seconds), or the erasure of whom it was made for."""

    version: Literal[1]
    expires: float
    owner: str
    session: str
    entry: Entry


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Kept)


def encode(kept: Kept) -> bytes | None:
    """The bytes of an entry; none if it holds what cannot be written, such as half a surrogate pair."""
    try:
        return _encoder.encode(kept)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None


def decode(data: bytes) -> Kept | None:
    """The entry of these bytes; none if they are broken, foreign or of another version."""
    try:
        return _decoder.decode(data)
    except (ValueError, RecursionError):
        return None


class Erasure(NamedTuple):
    """Which entries go: those that fit all that is given. `owner` is whom an entry was made for, whoever may share it."""

    owner: str | None = None
    agent: str | None = None
    session: str | None = None

    def covers(self, owner: str, agent: str, session: str) -> bool:
        """Whether an entry made for these goes."""
        return self.owner in (None, owner) and self.agent in (None, agent) and self.session in (None, session)


class _Item(NamedTuple):
    kept: Kept
    agent: str
    size: int


class Recent:
    """The entries this process used last, up to a number of bytes."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._items: OrderedDict[str, _Item] = OrderedDict()
        self.bytes = 0
        self.erasures = 0
        """How many there were: what was read from elsewhere before one that covers it may not be put here after it."""
        self._erased: deque[Erasure] = deque(maxlen=REMEMBERED)

    def get(self, key: str) -> Entry | None:
        """A living entry, which is the newest by this."""
        item = self._items.get(key)
        if item is None:
            return None
        if item.kept.expires <= self._clock():
            self._drop(key)
            return None
        self._items.move_to_end(key)
        return item.kept.entry

    def put(self, key: str, kept: Kept, agent: str, size: int) -> None:
        """Hold an entry of `size` bytes; the oldest go for it. One larger than all the room is not held."""
        self._drop(key)
        if size + OVERHEAD > self._max_bytes:
            return
        self._items[key] = _Item(kept, agent, size + OVERHEAD)
        self.bytes += size + OVERHEAD
        while self.bytes > self._max_bytes:
            self._drop(next(iter(self._items)))

    def erase(self, erasures: Iterable[Erasure]) -> int:
        """Drop what these cover; how many that were."""
        wanted = list(erasures)
        if not wanted:
            return 0
        self.erasures += len(wanted)
        self._erased.extend(wanted)
        gone = [
            key
            for key, item in self._items.items()
            if any(erasure.covers(item.kept.owner, item.agent, item.kept.session) for erasure in wanted)
        ]
        for key in gone:
            self._drop(key)
        return len(gone)

    def erased_since(self, erasures: int, owner: str, agent: str, session: str) -> bool:
        """Whether what was made for these may have been erased since there were so many `erasures`."""
        missed = self.erasures - erasures
        last = islice(reversed(self._erased), missed)
        return missed > len(self._erased) or any(erasure.covers(owner, agent, session) for erasure in last)

    def _drop(self, key: str) -> None:
        if item := self._items.pop(key, None):
            self.bytes -= item.size


def _joined(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    texts: list[str] = []
    kind = ""
    for chunk in chunks:
        if texts and (chunk.content_type != kind or kind not in STREAMED):
            yield Chunk("".join(texts), kind)
            texts = []
        kind = chunk.content_type
        texts.append(chunk.content)
    if texts:
        yield Chunk("".join(texts), kind)
