"""The LLM that an agent sees during one run: its calls take the call path and are recorded in the run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol

from app.domain import Chunk
from app.errors import InvalidInput
from app.journal.recorder import Recorder
from app.llm.call import CallPath
from app.llm.catalog import DEFAULT
from app.llm.llm import CLOSE_SECONDS, LLM, Endpoint, Reply
from app.llm.messages import Messages, Prompt
from app.llm.options import checked
from app.llm.stages import Caller
from app.llm.waits import Waits

CACHES = (None, "on", "off", "refresh")
MODES = ("realtime", "batch")


class Door(Protocol):
    """Where LLMs of runs are reached by the clients of other frameworks."""

    def open(self, llm: LLM, model: str) -> Endpoint:
        """Serve `llm` under a key of its own, and `model` where a request says so."""

    def shut(self, endpoint: Endpoint) -> None:
        """Its key is good for nothing any longer."""


class RunLLM(LLM):
    """An LLM of one run. Besides the options of the protocol a call takes `cache`, `accept` and `mode`."""

    def __init__(
        self,
        path: CallPath,
        recorder: Recorder,
        caller: Caller,
        *,
        model: str | None = None,
        temperature: float | None = None,
        cache: str | None = None,
        mode: str = "realtime",
        door: Door | None = None,
        waits: Waits | None = None,
    ) -> None:
        """Made on the run's event loop. `model`, `temperature`, `cache` and `mode` hold where a call gives none.

        `waits` are told of calls in mode batch, where that is no time of the run's.
        """
        self.waits = waits
        self._mode = mode
        self._door = door
        self._path = path
        self._recorder = recorder
        self._caller = caller
        self._cache = cache
        self._defaults = checked({"model": model, "temperature": temperature})
        self._loop = asyncio.get_running_loop()
        self._calls = _Calls()

    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> AsyncGenerator[Chunk, None]:
        """Take the call path, as every verb does."""
        async for chunk in self._open(messages, options):
            yield chunk

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> list[list[float]]:
        """The embeddings of texts, by the call path too."""
        self._check_open()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine always runs in a task
        self._calls.embedding.add(task)
        try:
            return await self._path.embed(texts, model, self._caller, self._recorder)
        finally:
            self._calls.embedding.discard(task)

    def endpoint(self) -> Endpoint:
        """Where a framework's own client reaches this model until the run ends. Every alias can be asked for there."""
        self._check_open()
        if self._door is None:
            return super().endpoint()
        endpoint = self._door.open(self, self._defaults.get("model", DEFAULT))
        self._calls.endpoints.append((self._door, endpoint))
        return endpoint

    async def close(self) -> None:
        """End the calls that are still open, and refuse new ones by `asyncio.CancelledError`: the run is over."""
        self._calls.closed = True
        for door, endpoint in self._calls.endpoints:
            door.shut(endpoint)
        left = [task for task in self._calls.embedding if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=CLOSE_SECONDS)
        if going := [reply for reply in self._calls.open if not reply.ended]:
            await asyncio.gather(*(reply.close() for reply in going))

    def _open(self, messages: Messages, options: dict[str, Any]) -> Reply:
        self._check_open()
        cache, accept = options.pop("cache", self._cache), options.pop("accept", None)
        mode = options.pop("mode", None) or self._mode
        if mode not in MODES:
            raise InvalidInput("mode must be realtime or batch.", param="mode")
        if cache not in CACHES:
            raise InvalidInput("cache must be on, off or refresh.", param="cache")
        if accept is not None and not callable(accept):
            raise InvalidInput("accept must be a function that takes a text.", param="accept")
        options = checked(options)
        model = options.pop("model", None)
        to_whom = self._caller, self._recorder
        batch = mode == "batch"
        answer = self._path.stream(
            Prompt.of(messages), options, *to_whom, model=model, cache=cache, accept=accept, batch=batch
        )
        reply = Reply(self.waits.over(answer) if batch and self.waits else answer)
        self._calls.open = [each for each in self._calls.open if not each.ended]
        self._calls.open.append(reply)
        return reply

    def _check_open(self) -> None:
        if self._calls.closed:
            raise asyncio.CancelledError("the run is over")


class _Calls:
    """The calls of a run, shared by its LLM and all that `use` makes of it."""

    def __init__(self) -> None:
        self.closed = False
        self.open: list[Reply] = []
        self.embedding: set[asyncio.Task[Any]] = set()
        self.endpoints: list[tuple[Door, Endpoint]] = []
