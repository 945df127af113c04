"""Objects as files of a local directory: opaque names in 256 folders, each there whole or not at all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar
from uuid import UUID

from app.errors import NotFound, SettingsError, Unavailable

P = ParamSpec("P")
T = TypeVar("T")
PIECE = 262_144
"""Bytes that are read at once."""
GATHERED = 1_048_576
"""Bytes that are written at once: what a network gives is smaller, and each call of a thread has its price."""
THREADS = 4


class Threads:
    """Threads for calls that block, of their own: a store that hangs holds up nobody else's calls."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="objects")

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result. A caller that is cancelled still waits: nobody may close what a thread is using."""
        result = self.begin(function, *args, **kwargs)
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            while not result.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([result])
            result.exception()
            raise

    def begin(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """The same for who does not want to wait for its end."""
        return asyncio.wrap_future(self._pool.submit(function, *args, **kwargs))

    def close(self) -> None:
        """End the threads when they have done what they do."""
        self._pool.shutdown(wait=True, cancel_futures=True)


async def gathered(chunks: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """The same bytes in pieces of exactly `size`, but for the last one; none when there are no bytes."""
    waiting = bytearray()
    async for chunk in chunks:
        waiting += chunk
        while len(waiting) >= size:
            with memoryview(waiting) as view:
                piece = bytes(view[:size])
            del waiting[:size]
            yield piece
            del piece
    if waiting:
        yield bytes(waiting)


class LocalObjects:
    """Objects in a folder of this machine, which other machines do not see. It is made when the first object comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._threads = Threads(THREADS)

    def _path(self, key: UUID) -> Path:
        return self._folder / key.hex[-2:] / key.hex  # the end of an id is random, its beginning is a time

    async def put(self, key: UUID, chunks: AsyncIterator[bytes]) -> int:
        """Write beside the final name, to the disk, and rename."""
        size = 0
        path = self._path(key)
        file = await self._call(_create, path)
        try:
            async for piece in gathered(chunks, GATHERED):
                await self._call(_write, file, piece)
                size += len(piece)
            await self._call(_finish, file, path)
        finally:
            file.close()
        return size

    async def get(self, key: UUID) -> AsyncGenerator[bytes, None]:
        """Read it piece by piece; one that is removed meanwhile is read to its end."""
        try:
            file = await self._call(_open, self._path(key))
        except FileNotFoundError:
            raise NotFound from None
        try:
            while piece := await self._call(file.read, PIECE):
                yield piece
        finally:
            file.close()

    async def delete(self, keys: Sequence[UUID], *, unfinished: bool = False) -> None:
        """Unlink them, and with `unfinished` what was written beside their names."""
        for key in keys:
            path = self._path(key)
            await self._call(path.unlink, missing_ok=True)
            if unfinished:
                await self._call(_beside(path).unlink, missing_ok=True)

    async def check(self) -> None:
        """Make the folder, and see whether it can be written to."""
        try:
            await asyncio.shield(self._threads.begin(_make_private, self._folder))
        except OSError as error:
            sentence = f"DATA_DIR: objects cannot be kept in {self._folder} ({error.strerror})."
            raise SettingsError(sentence) from None

    async def close(self) -> None:
        """End the threads."""
        await asyncio.to_thread(self._threads.close)

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await self._threads.call(function, *args, **kwargs)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Unavailable(f"The object store failed ({error.strerror}).", retry_after=10) from error


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(13, "it cannot be written to")


def _create(path: Path) -> BinaryIO:
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return open(os.open(_beside(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)


def _open(path: Path) -> BinaryIO:
    return open(path, "rb", buffering=0)


def _write(file: BinaryIO, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[file.write(rest) :]


def _finish(file: BinaryIO, path: Path) -> None:
    """The bytes are on the disk before the name is, and the name before anybody is told."""
    os.fsync(file.fileno())
    _beside(path).replace(path)
    for folder in (path.parent, path.parent.parent):
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
