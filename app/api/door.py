"""The way of other frameworks to the LLM of the run they work in: `/v1` on the loopback address, under keys that end with their runs.

The process that conducts the run is the one to ask, whichever of many answers at the public address; a worker for jobs has no other
address at all. A call made here is one of the run's own: neither the call path nor the journal knows a difference.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from msgspec.structs import replace
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from app.agent.request import OpenAIRequest
from app.api import openai, openai_wire, problems
from app.api.gate import KEEP_ALIVE_SECONDS, Receive, Send, bounded, whole_body
from app.api.wire import left
from app.domain import Message, Outcome, Run, RunStatus, new_id
from app.errors import AppError, InvalidInput, LLMError, NotAuthenticated, NotFound
from app.journal.log import Log, LogFull
from app.llm.llm import LLM, Completion, Endpoint, Reply
from app.llm.tokens import count
from app.tasks import Tasks
from app.usecases.live import LiveRun
from app.usecases.logins import digest

CLOSE_SECONDS = 1
"""How long connections have to end when the server does."""
OVER = "This key is of no run that goes on."


@dataclass(slots=True)
class _Asked:
    """A request, and the calls it has made."""

    llm: LLM
    headers: Headers
    receive: Receive
    content: bytes
    replies: list[Reply] = field(default_factory=list)

    async def close(self) -> None:
        """End the calls that are not at their end: nobody reads them."""
        for reply in self.replies:
            await reply.close()

    async def close_when_left(self) -> None:
        """The same as soon as the client has gone."""
        await left(self.receive)
        await self.close()


class RunDoor:
    """Listens from the first time that an agent asks for an endpoint."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._llms: dict[bytes, LLM] = {}
        self._opening = threading.Lock()
        self._url: str | None = None
        self._server: _Server | None = None
        self._tasks = Tasks()
        self._routes: Mapping[tuple[str, str], Callable[[_Asked], Awaitable[Response]]] = {
            ("POST", "/v1/chat/completions"): self._complete,
            ("POST", "/v1/embeddings"): self._embed,
        }

    def open(self, llm: LLM, model: str) -> Endpoint:
        """Serve `llm` under a new key until it is shut; may be called in any thread."""
        key = f"run_{secrets.token_urlsafe(32)}"
        with self._opening:
            self._url = self._url or self._listen()
        self._llms[digest(key)] = llm
        return Endpoint(self._url, key, model)

    def shut(self, endpoint: Endpoint) -> None:
        """Let nobody in with this key any longer."""
        self._llms.pop(digest(endpoint.api_key), None)

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.should_exit = True
            await self._server.ended.wait()
        await self._tasks.close()

    def _listen(self) -> str:
        """Take a free port at once. It is served from the loop, in no context of the agent that happened to ask first."""
        listener = socket.create_server(("127.0.0.1", 0))
        self._loop.call_soon_threadsafe(self._serve, listener, context=Context())
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

    def _serve(self, listener: socket.socket) -> None:
        config = uvicorn.Config(
            self,
            http="h11",  # whose heads are bounded
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )
        self._server = _Server(config)
        self._tasks.start(self._server.serve(sockets=[listener]), name="endpoints of runs")

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve (ASGI)."""
        asked: _Asked | None = None
        try:
            asked = await self._admit(scope, bounded(receive))
            response = await self._answer(scope, asked)
            await response(scope, asked.receive, send)
        except ClientDisconnect:
            return
        except AppError as error:
            await problems.from_exception(error, scope["path"])(scope, receive, send)
        finally:
            if asked:
                await asked.close()

    async def _admit(self, scope: Any, receive: Receive) -> _Asked:
        headers = Headers(scope=scope)
        self._llm_of(headers)
        content = await whole_body(receive)
        return _Asked(self._llm_of(headers), headers, receive, content)

    def _llm_of(self, headers: Headers) -> LLM:
        kind, _, key = headers.get("authorization", "").partition(" ")
        llm = self._llms.get(digest(key.strip())) if kind.lower() == "bearer" else None
        if llm is None:
            raise NotAuthenticated(OVER)
        return llm

    async def _answer(self, scope: Any, asked: _Asked) -> Response:
        route = self._routes.get((scope["method"], scope["path"]))
        if route is None:
            raise NotFound("route")
        watching = self._tasks.start(asked.close_when_left(), name="client of an endpoint")
        try:
            return await route(asked)
        finally:
            watching.cancel()

    async def _complete(self, asked: _Asked) -> Response:
        body = openai.chat_of(asked.headers, asked.content)
        request = OpenAIRequest.model_validate(body.request())
        llm = asked.llm.use(body.model)
        asked.replies = [llm.begin(request.said(), **request.options()) for _ in range(body.n or 1)]
        calls = [LiveRun(_run(), Log(new_id())) for _ in asked.replies]
        for reply, call in zip(asked.replies, calls, strict=True):
            self._tasks.start(_say(reply, call), name="call of an endpoint")
        response = await openai_wire.respond(None, calls, openai.form_of(body), stream=bool(body.stream))
        for name in ("x-session-id", "x-run-id"):  # a call is none
            if name in response.headers:
                del response.headers[name]
        return response

    async def _embed(self, asked: _Asked) -> Response:
        body = openai.embeddings_of(asked.headers, asked.content)
        if body.dimensions is not None:
            raise InvalidInput("dimensions: the embeddings of a run are as long as its model's.", param="dimensions")
        embedding = self._tasks.start(_embedded(asked.llm, body.input, body.model), name="embeddings of an endpoint")
        await asyncio.wait([embedding])
        if embedding.cancelled():  # with the run
            raise NotAuthenticated(OVER)
        vectors = embedding.result()
        if isinstance(vectors, AppError):
            raise vectors
        return openai.embeddings(body, vectors, sum(map(count, body.input)))


async def _embedded(llm: LLM, texts: list[str], model: str) -> list[list[float]] | AppError:
    try:
        return await llm.embed(texts, model=model)
    except NotImplementedError:
        return InvalidInput("model: this one makes no embeddings.", param="model")
    except AppError as error:
        return error


def _run() -> Run:
    """What an answer on the wire is of: a call has no other id."""
    id = new_id()
    return Run(id, id, id, "", id)


async def _say(reply: Reply, call: LiveRun) -> None:
    """Have a call say what the reply says, to its end, whichever it is."""
    error: AppError | None = LLMError("The run has ended.")
    said = Completion()
    try:
        async for chunk in reply:
            call.log.append(chunk)
        said, error = reply.response, None
    except Exception as raised:
        error = problems.known(raised)
    finally:
        call.log.close(_outcome(call.run, said, error))


def _outcome(run: Run, said: Completion, error: AppError | None) -> Outcome:
    status = RunStatus.PARTIAL if isinstance(error, LogFull) or said.finish_reason == "cut" else RunStatus.COMPLETED
    if error is not None and status is RunStatus.COMPLETED:
        status = RunStatus.FAILED
    last = Message.assistant("", additional_kwargs={"finish_reason": said.finish_reason})
    return Outcome(replace(run, status=status, usage=said.usage, error=error.to_dict() if error else None), (last,))


class _Server(uvicorn.Server):
    """A server beside the process's own, whose affair the signals are."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ended = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        try:
            yield
        finally:
            self.ended.set()
