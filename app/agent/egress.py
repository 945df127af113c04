"""HTTP to addresses that are checked: a name is resolved once, every address of it looked at, and a checked one connected to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from ipaddress import ip_address

import httpx2

from app.agent.addresses import is_public

MAX_BODY = 8_000_000
"""The longest answer that is no stream of events, in bytes."""
MAX_ADDRESSES = 4
"""How many addresses of a name are tried."""


class Egress(httpx2.AsyncHTTPTransport):
    """A transport without proxies and redirects. With `private`, any address will do.

    Connections are told apart by address: without `keep_alive` it may serve names of different owners, who may share one.
    """

    def __init__(self, *, private: bool = False, keep_alive: bool = True) -> None:
        limits = httpx2.Limits(max_connections=100, max_keepalive_connections=20 if keep_alive else 0)
        super().__init__(trust_env=False, limits=limits)
        self._private = private

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; `httpx2.ConnectError` when it would go where it may not."""
        host = request.url.host
        addresses = await self._checked(host, request.url.port or 443)
        request.extensions = {**request.extensions, "sni_hostname": host}
        response = await self._sent(request, addresses)
        if response.is_redirect:
            await response.aclose()
            raise httpx2.RemoteProtocolError("redirects are not followed", request=request)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            response.stream = _Bounded(response.stream)
        return response

    async def _sent(self, request: httpx2.Request, addresses: list[str]) -> httpx2.Response:
        """The answer of the first address that takes the connection."""
        for address in addresses[:MAX_ADDRESSES]:
            request.url = request.url.copy_with(host=address)  # the header Host keeps the name
            try:
                return await super().handle_async_request(request)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                refused = error
        raise refused

    async def _checked(self, host: str, port: int) -> list[str]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            raise httpx2.ConnectError("the name is not known") from None
        addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
        if not self._private and not all(is_public(ip_address(each)) for each in addresses):
            raise httpx2.ConnectError("the address is not public")
        return addresses


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: object) -> None:
        assert isinstance(stream, httpx2.AsyncByteStream)  # noqa: S101 - of an asynchronous transport
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        room = MAX_BODY
        async for piece in self._stream:
            room -= len(piece)
            if room < 0:
                raise httpx2.RemoteProtocolError("the answer is too long")
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()
