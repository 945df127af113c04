"""A way to PostgreSQL on which commits can go unheard: done there, while the connection breaks here. Or it is shut for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import make_url

COMMITTED = b"COMMIT\0"
"""The tag with which the server says so."""


class Way:
    """Passes bytes on. `lose(said)` breaks the next connection that has said this when its commit is told."""

    def __init__(self, host: str, port: int) -> None:
        self._to = host, port
        """A folder is that of a socket."""
        self._said: bytes | None = None
        self.lost = 0
        self._shut = asyncio.Event()

    def lose(self, said: bytes) -> None:
        self._said = said

    def shut(self) -> None:
        """Break all connections, and take no more until `open`."""
        self._shut.set()

    def open(self) -> None:
        self._shut.clear()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self._to
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await self._connect()
        is_doomed = False

        async def ask() -> None:
            nonlocal is_doomed
            while data := await reader.read(65_536):
                if self._said and self._said in data:
                    is_doomed, self._said = True, None
                forth.write(data)
                await forth.drain()

        async def answer() -> None:
            while data := await back.read(65_536):
                if is_doomed and COMMITTED in data:
                    self.lost += 1
                    return
                writer.write(data)
                await writer.drain()

        sides = [asyncio.ensure_future(each) for each in (ask(), answer(), self._shut.wait())]
        await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
        for side in sides:
            side.cancel()
        await asyncio.gather(*sides, return_exceptions=True)
        for stream in (writer, forth):
            stream.close()


@asynccontextmanager
async def way_to(database_url: str) -> AsyncIterator[tuple[Way, str]]:
    """Such a way to a database, and the address of the database over it."""
    url = make_url(database_url)
    way = Way(url.host or str(url.query["host"]), url.port or int(str(url.query.get("port", 5432))))
    async with await asyncio.start_server(way.serve, "127.0.0.1", 0) as server:
        over = url.set(host="127.0.0.1", port=server.sockets[0].getsockname()[1], query={})
        yield way, over.render_as_string(hide_password=False)
