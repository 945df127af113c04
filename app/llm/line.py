"""Calls that wait at one endpoint, in fair order between their owners, interactive before batch."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import TypeAlias
from uuid import UUID

BATCH_EVERY = 20
"""Of so many turns one is a batch call's while batch calls wait: a batch ends some day, and 5 % is hardly felt."""

Owner: TypeAlias = UUID | str


class Turn:
    """One call that waits, or would if it had to. `granted` becomes true at its turn and false at its deadline."""

    __slots__ = ("batch", "granted", "owner", "tokens", "waits")
    granted: asyncio.Future[bool]

    def __init__(self, owner: Owner, tokens: int, batch: bool) -> None:
        self.owner = owner
        self.tokens = tokens
        self.batch = batch
        self.waits = False


class Line:
    """All calls that wait."""

    def __init__(self) -> None:
        self.tokens = 0
        """What they need together."""
        self._count = 0
        self._interactive, self._batch = _Round(), _Round()
        self._passed = 0

    def __len__(self) -> int:
        return self._count

    def of(self, owner: Owner) -> int:
        """How many of them are one owner's."""
        return self._interactive.of(owner) + self._batch.of(owner)

    def add(self, turn: Turn) -> None:
        """Join the line."""
        self._round(turn).add(turn)
        turn.granted, turn.waits = asyncio.get_running_loop().create_future(), True
        self._count += 1
        self.tokens += turn.tokens

    def remove(self, turn: Turn) -> None:
        """Leave it without a turn, unless that is done."""
        if turn.waits:
            self._round(turn).remove(turn)
            self._left(turn)

    def first(self) -> Turn | None:
        """Who is next."""
        batch = self._batch.first()
        if batch and self._passed >= BATCH_EVERY - 1:
            return batch
        return self._interactive.first() or batch

    def pop(self, turn: Turn) -> None:
        """Take out the one that `first` has just named."""
        self._passed = 0 if turn.batch or not self._batch.count else self._passed + 1
        self._round(turn).pop()
        self._left(turn)

    def _round(self, turn: Turn) -> _Round:
        return self._batch if turn.batch else self._interactive

    def _left(self, turn: Turn) -> None:
        turn.waits = False
        self._count -= 1
        self.tokens -= turn.tokens


class _Round:
    """Turns in the order of their owners: one each, again and again.

    An owner who was not in the round goes before all who were (as new flows do in RFC 8290, section 4.2), so that who calls now and then
    waits for one call to end, not for one of every owner. He stays in the round until it is his turn again, with or without a call:
    nobody can be new twice before everybody had a turn.
    """

    def __init__(self) -> None:
        self._new: OrderedDict[Owner, deque[Turn]] = OrderedDict()
        self._old: OrderedDict[Owner, deque[Turn]] = OrderedDict()
        self.count = 0

    def of(self, owner: Owner) -> int:
        return len(self._turns(owner) or ())

    def add(self, turn: Turn) -> None:
        turns = self._turns(turn.owner)
        if turns is None:
            turns = self._new[turn.owner] = deque()
        turns.append(turn)
        self.count += 1

    def remove(self, turn: Turn) -> None:
        if turns := self._turns(turn.owner):
            turns.remove(turn)
            self._left()

    def first(self) -> Turn | None:
        for owners in (self._new, self._old):
            while owners:
                if turns := next(iter(owners.values())):
                    return turns[0]
                owners.popitem(last=False)
        return None

    def pop(self) -> None:
        """Take out what `first` gave; its owner's next turn is after all others'."""
        owner, turns = (self._new or self._old).popitem(last=False)
        turns.popleft()
        self._old[owner] = turns
        self._left()

    def _turns(self, owner: Owner) -> deque[Turn] | None:
        found = self._old.get(owner)
        return self._new.get(owner) if found is None else found

    def _left(self) -> None:
        self.count -= 1
        if not self.count:
            self._new.clear()
            self._old.clear()
