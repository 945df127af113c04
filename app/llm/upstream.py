"""One OpenAI-compatible server: its pool of connections, its deadlines, and its faults in our words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import aiohttp
import msgspec
from yarl import URL

from app.errors import InvalidInput, LLMError, LLMUnavailable
from app.llm.answer import Answer
from app.llm.llm import Items
from app.llm.refusals import UpstreamLate, refusal
from app.tasks import Deadline

OPENAI = "https://api.openai.com/v1"
"""The base URL where none is given."""
MAX_ERROR_BODY = 64_000
"""How much of a refusal is read, in bytes."""
MAX_LIST = 4_000_000
"""How much of a list of models is read, in bytes."""
TRANSFER_SECONDS = 600.0
"""How long one request about a file may take, its content included."""
TOTAL_SECONDS = 600
"""How long a call may take altogether, and so how long to its first token at most."""
END_SECONDS = 0.2
"""How long an answered call waits for the end of its HTTP response, so that the connection can be used again."""


class _Embedding(msgspec.Struct):
    embedding: list[float]
    index: int = 0


class _EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int | None = None


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]
    usage: _EmbeddingUsage | None = None


class _Named(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Named]


_embeddings = msgspec.json.Decoder(_Embeddings)
_listed = msgspec.json.Decoder(_Models)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds a call may take: to connect; from its start to the first token; between two pieces; altogether."""

    connect: float = 10
    first_token: float = 60
    idle: float = 60
    total: float = TOTAL_SECONDS


class Upstream:
    """Sends requests to one server under one key, over connections kept open between calls.

    Connections belong to the event loop that made them: they are closed by `close`, or when their loop shuts down.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        deadlines: Deadlines | None = None,
        max_bytes: int = 64_000_000,
        max_line: int = 1_000_000,
    ) -> None:
        """`max_bytes` and `max_line` bound an answer and each line of it as they come over the wire."""
        self._base_url = checked_url(base_url or OPENAI)
        self._chat_url = URL(f"{self._base_url}/chat/completions")
        self._embed_url = URL(f"{self._base_url}/embeddings")
        self._headers = {
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
            **_checked_headers(headers or {}),
        }
        if api_key:
            self._headers.update(_checked_headers({"Authorization": f"Bearer {api_key}"}))
        self._deadlines = deadlines or Deadlines()
        self._max_bytes, self._max_line = max_bytes, max_line
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"Upstream({self._base_url!r})"

    async def stream(self, body: Mapping[str, Any], *, first_token: float | None = None) -> AsyncGenerator[Items, None]:
        """The chunks of the answer to `body`, a chat completion request, as many at once as have come; then its `Finish`.

        `first_token` is in place of that of the deadlines, for this call.
        Raises `LLMUnavailable`, `LLMRejected` or `LLMError`. A stream that breaks off after its first token ends with
        `Finish("cut")`; one that hangs raises. Closing the generator closes the connection.
        """
        call = _Call(self._deadlines, first_token)
        answer = Answer(
            body.get("messages", ()), body.get("tools", ()), max_bytes=self._max_bytes, max_line=self._max_line
        )
        response = await self._post(self._chat_url, _encode_chat(body), call)
        try:
            while not answer.done and (piece := await call.read(response.content)):
                chunks = answer.feed(piece)
                call.began, call.said = answer.seen, bool(answer.said)
                if chunks and not answer.done:
                    yield chunks
                if answer.error:
                    raise answer.error
            yield [*(chunks if answer.done else answer.end()), answer.finish()]
            if answer.done and not response.content.at_eof():
                await _reach_end(response)
        finally:
            call.close()
            response.close()  # does nothing to a connection whose response was read to its end

    async def embed(
        self,
        model: str,
        texts: Sequence[str],
        options: Mapping[str, Any] | None = None,
        *,
        first_token: float | None = None,
    ) -> tuple[list[list[float]], int | None]:
        """The embedding of each text, in order, and how many tokens they were, if it says; deadline and errors as of `stream`."""
        call = _Call(self._deadlines, first_token)
        data = encode({"model": model, "input": texts, "encoding_format": "float", **(options or {})})
        response = await self._post(self._embed_url, data, call)
        try:
            body = b"".join([piece async for piece in call.rest(response.content, self._max_bytes)])
            found = _embeddings.decode(body)
        except ValueError:
            raise LLMError("The language model's server sent what is not of the OpenAI protocol.") from None
        finally:
            call.close()
            response.close()
        vectors = [each.embedding for each in sorted(found.data, key=lambda each: each.index)]
        if len(vectors) != len(texts):
            raise LLMError("The language model's server sent fewer embeddings than it was given texts.")
        return vectors, found.usage.prompt_tokens if found.usage else None

    @asynccontextmanager
    async def sent(
        self, method: str, path: str, data: bytes | aiohttp.FormData | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to any other request of the protocol, JSON if it has bytes; errors as of `stream`, while it is read too."""
        session = await self._session()
        body = aiohttp.BytesPayload(data, content_type="application/json") if isinstance(data, bytes) else data
        limits = aiohttp.ClientTimeout(
            total=TRANSFER_SECONDS, sock_connect=self._deadlines.connect, sock_read=self._deadlines.idle
        )
        try:
            async with session.request(
                method, f"{self._base_url}{path}", data=body, allow_redirects=False, timeout=limits
            ) as response:
                if response.status != 200:
                    raise await _refused(response)
                yield response
        except (aiohttp.ClientError, OSError) as error:
            raise LLMUnavailable(_sentence(error)) from error

    async def models(self) -> list[str]:
        """The names of the models that the server lists; `LLMUnavailable` when it does not."""
        session = await self._session()
        try:
            async with (
                asyncio.timeout(self._deadlines.connect),
                session.get(f"{self._base_url}/models", allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise await _refused(response)
                call = _Call(self._deadlines)
                body = b"".join([piece async for piece in call.rest(response.content, MAX_LIST)])
                call.close()
                return [each.id for each in _listed.decode(body).data]
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise LLMUnavailable(_sentence(error)) from error

    async def ping(self) -> bool:
        """Whether the server lists its models for this key."""
        session = await self._session()
        try:
            async with (
                asyncio.timeout(self._deadlines.connect),
                session.get(f"{self._base_url}/models", allow_redirects=False) as response,
            ):
                return response.status == 200
        except (aiohttp.ClientError, OSError, ValueError):
            return False

    async def close(self) -> None:
        """Close the connections of this event loop."""
        if pool := self._pools.pop(asyncio.get_running_loop(), None):
            await pool.opened.aclose()

    async def _post(self, url: URL, data: bytes, call: _Call) -> aiohttp.ClientResponse:
        session = await self._session()
        try:
            with Deadline(call.limit()):
                response = await session.post(
                    url,
                    data=aiohttp.BytesPayload(data, content_type="application/json"),
                    allow_redirects=False,
                )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            is_late = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError)
            raise (UpstreamLate if is_late else LLMUnavailable)(_sentence(error)) from error
        if response.status != 200:
            raise await _refused(response)
        return response

    async def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            opened = self._open()
            pool = self._pools[loop] = _Pool(await anext(opened), opened)
        return pool.session

    # An asynchronous generator, because an event loop closes those that are left when it shuts down.
    async def _open(self) -> AsyncGenerator[aiohttp.ClientSession, None]:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._deadlines.connect),
            trust_env=False,
        ) as session:
            yield session


@dataclass(frozen=True, slots=True)
class _Pool:
    session: aiohttp.ClientSession
    opened: AsyncGenerator[aiohttp.ClientSession, None]


class _Call:
    """The deadlines of one call. They bind only while it waits for the server, not while its caller is busy.

    One timer serves all waits of a call: it looks when it is due whether the wait it was set for is over.
    """

    def __init__(self, deadlines: Deadlines, first_token: float | None = None) -> None:
        self._deadlines = deadlines
        self._first_token = first_token or deadlines.first_token
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._waiting_until: float | None = None
        self.began = False
        """Whether anything of the protocol has come."""
        self.said = False
        """Whether anything of the answer has."""

    def limit(self) -> float:
        """The loop's time until which the next piece may take."""
        patience = self._loop.time() + self._deadlines.idle if self.began else self._started + self._first_token
        return min(patience, self._started + self._deadlines.total)

    async def read(self, content: aiohttp.StreamReader) -> bytes:
        """The next bytes; none at the end, and none when the connection breaks."""
        try:
            if piece := content.read_nowait():
                return piece
            limit = self._waiting_until = self.limit()
            if self._timer is None or self._timer.when() > limit:
                self._set(content, limit)
            return await content.readany()
        except TimeoutError:
            raise UpstreamLate(
                "The language model's server stopped in the middle of its answer."
                if self.said
                else "The language model's server did not begin to answer in time."
            ) from None
        except (aiohttp.ClientError, OSError):
            return b""
        finally:
            self._waiting_until = None

    async def rest(self, content: aiohttp.StreamReader, max_bytes: int) -> AsyncGenerator[bytes, None]:
        """All that comes, in pieces; `LLMError` when it is more than `max_bytes`."""
        while piece := await self.read(content):
            max_bytes -= len(piece)
            if max_bytes < 0:
                raise LLMError("The language model's answer is too long.")
            yield piece

    def close(self) -> None:
        """Wait for nothing more."""
        if self._timer:
            self._timer.cancel()

    def _set(self, content: aiohttp.StreamReader, when: float) -> None:
        self.close()
        self._timer = self._loop.call_at(when, self._look, content)

    def _look(self, content: aiohttp.StreamReader) -> None:
        self._timer = None
        if self._waiting_until is None:
            return
        if self._loop.time() < self._waiting_until:
            self._set(content, self._waiting_until)
        else:
            content.set_exception(TimeoutError())


async def _reach_end(response: aiohttp.ClientResponse) -> None:
    with suppress(aiohttp.ClientError, OSError):  # a timeout too is an OSError
        async with asyncio.timeout(END_SECONDS):
            await response.content.readany()


async def _refused(response: aiohttp.ClientResponse) -> LLMError:
    body = b""
    with suppress(aiohttp.ClientError, OSError):
        async with asyncio.timeout(5):
            while len(body) < MAX_ERROR_BODY and (piece := await response.content.readany()):
                body += piece
    response.close()
    return refusal(response.status, response.headers, body)


_SENTENCES: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ClientConnectorDNSError, "has no such host name: check its address, base_url or OPENAI_BASE_URL."),
    (aiohttp.ClientSSLError, "has no valid certificate: check its address, base_url or OPENAI_BASE_URL."),
    (
        aiohttp.ConnectionTimeoutError,
        "could not be connected to in time: check its address, base_url or OPENAI_BASE_URL.",
    ),
    (TimeoutError, "did not begin to answer in time."),
    (aiohttp.ClientConnectorError, "refused the connection: check its address, base_url or OPENAI_BASE_URL."),
    (ValueError, "cannot be addressed: check its address, base_url or OPENAI_BASE_URL."),
)


def _sentence(error: Exception) -> str:
    said = (sentence for kind, sentence in _SENTENCES if isinstance(error, kind))
    return f"The language model's server {next(said, 'closed the connection without an answer.')}"


def _encode_chat(body: Mapping[str, Any]) -> bytes:
    return encode({**body, "stream": True, "stream_options": {"include_usage": True}})


def encode(body: Mapping[str, Any]) -> bytes:
    """A request as JSON; `InvalidInput` for what JSON cannot express."""
    try:
        return msgspec.json.encode(body)
    except (TypeError, ValueError, RecursionError):
        raise InvalidInput("messages hold what JSON cannot express.", param="messages") from None


def checked_url(url: str) -> str:
    """The address of an API without a slash at its end; `InvalidInput` for what is none."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.username and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise InvalidInput("base_url must be an address such as https://api.openai.com/v1.", param="base_url")
    return url.rstrip("/")


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not (name.isascii() and name.isprintable() and value.isascii() and value.isprintable()):
            place = "api_key" if name == "Authorization" else "header"
            raise InvalidInput(f"{place} must be printable ASCII.", param=place)
    return dict(headers)
