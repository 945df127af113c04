"""What every store of objects can do: keep bytes under a key that was made here, and never under a name that came from outside."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Protocol
from uuid import UUID


class ObjectStore(Protocol):
    """A local directory, or a bucket. Its failures are `Unavailable`."""

    async def put(self, key: UUID, chunks: AsyncIterator[bytes]) -> int:
        """Keep what comes, whole or not at all; gives its size in bytes. What a failed one leaves is for `delete` with `unfinished`."""
        ...

    def get(self, key: UUID) -> AsyncGenerator[bytes, None]:
        """What is kept, in pieces; `NotFound` before the first when there is nothing. To be closed by who does not read to the end."""
        ...

    async def delete(self, keys: Sequence[UUID], *, unfinished: bool = False) -> None:
        """Remove objects, those too that are not there; with `unfinished` also what uploads that were broken off left of them."""
        ...

    async def check(self) -> None:
        """Make sure that the store can be used; a `SettingsError` names the setting at fault."""
        ...

    async def close(self) -> None:
        """Let go of what is open. What runs ends first."""
        ...
