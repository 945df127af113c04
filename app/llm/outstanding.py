"""What processes know of one another's batches: the calls that wait, and the batches that were sent for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import UUID


class Sought(NamedTuple):
    """What a call asks (`key` is a digest of all that can change the answer), and for whom."""

    key: bytes
    owner_id: UUID
    session_id: UUID | None
    run_id: UUID


class Outstanding(NamedTuple):
    """A batch that was, or is being, sent to the server of an endpoint."""

    id: UUID
    endpoint: str
    deadline_at: datetime
    provider_id: str | None = None


class Item(NamedTuple):
    """A call of a batch: the HTTP status and body of its answer, when it has one. `is_over`: it will have none."""

    id: UUID
    batch_id: UUID
    status: int | None = None
    answer: bytes | None = None
    is_over: bool = False


class BatchStore(Protocol):
    """Where outstanding batches are known, to all processes."""

    async def adopt(self, sought: Sought) -> Item | None:
        """A call that asks the same for the same user, and whose process is gone: from now on it is this one's."""

    async def add(self, batch: Outstanding, calls: Mapping[UUID, Sought]) -> None:
        """A batch that this process is about to send, and what is in it."""

    async def submitted(self, id: UUID, provider_id: str) -> None:
        """What its server calls a batch."""

    async def take(self, id: UUID) -> Outstanding | None:
        """Look after a batch whose process is gone; None when it is not, or the batch is over."""

    async def awaited(self, id: UUID) -> int:
        """How many calls of a batch wait for an answer."""

    async def answer(self, answers: Sequence[tuple[UUID, int, bytes]]) -> None:
        """What became of calls; the first answer stays."""

    async def end(self, id: UUID, *, unsent: bool = False) -> None:
        """A batch is over; one that was never sent is forgotten with its calls, which go into another."""

    async def look(self, id: UUID) -> Item | None:
        """A call as it stands; None when it is forgotten."""

    async def release(self, ids: Collection[UUID]) -> None:
        """This process is about to end: others may take these calls, and look after their batches."""

    async def forget(self, ids: Collection[UUID]) -> None:
        """Erase calls that nobody waits for any more."""
