"""A language model, as agents see it: something that streams chunks for messages, and the live answer it gives.

`generate` is the one method to implement. Every public verb of an LLM goes through `_open`, where the platform's own
LLM adds what a run needs.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NoReturn, Self, TypeAlias, TypeVar

import msgspec
from msgspec import Struct

from app.domain import ANSWER_TYPES, Chunk, Usage
from app.errors import LLMError
from app.llm.bridge import LoopThread, wait
from app.llm.messages import Messages, normalise
from app.llm.tokens import count, count_messages

T = TypeVar("T")

CLOSE_SECONDS = 1.0
"""How long closing an answer waits for a reader elsewhere to let go of it."""


class Finish(Struct, frozen=True):
    """The last thing a stream gives. `reason` is the upstream's own word, or `cut` when the stream broke off."""

    reason: str
    usage: Usage
    model: str | None = None


Items: TypeAlias = Sequence[Chunk | Finish]
"""What has come at once of an answer; the last of the last is its `Finish`."""


class ToolCall(Struct, frozen=True):
    """A model's wish to have a tool called. `arguments` are JSON as the model wrote it."""

    id: str
    name: str
    arguments: str = "{}"

    def to_openai(self) -> dict[str, Any]:
        """The call as the OpenAI protocol has it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


_call_decoder = msgspec.json.Decoder(ToolCall)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where other frameworks' clients of the OpenAI protocol find a language model."""

    base_url: str
    api_key: str = field(repr=False)
    model: str


class Completion(str):
    """A whole answer: its text, and what is known about it. Cannot be changed.

    `value` is what a schema, JSON or a post-processor made of the text; `error` is set where one of several calls failed.
    """

    __slots__ = ("error", "finish_reason", "reasoning", "usage", "value")
    reasoning: str
    finish_reason: str | None
    usage: Usage
    value: Any
    error: Exception | None

    def __new__(
        cls,
        text: str = "",
        *,
        reasoning: str = "",
        finish_reason: str | None = None,
        usage: Usage | None = None,
        value: Any = None,
        error: Exception | None = None,
    ) -> Completion:
        self = super().__new__(cls, text)
        put = object.__setattr__
        put(self, "error", error)
        put(self, "finish_reason", finish_reason)
        put(self, "reasoning", reasoning)
        put(self, "usage", usage or Usage())
        put(self, "value", value)
        return self

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Completion cannot be changed: {name}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _completion, (str(self), {name: getattr(self, name) for name in self.__slots__})


def _completion(text: str, known: Mapping[str, Any]) -> Completion:
    return Completion(text, **known)


class Reply:
    """A live answer. It may be read several times and by several readers at once: all see the same chunks.

    Whoever needs the next chunk fetches it, so there is no task behind a reply. A reader that is cancelled while
    fetching ends the answer. An answer that is not read to its end is ended by `close`.
    """

    schema: Any = None
    """What makes the `value` of the whole answer."""

    def __init__(self, source: AsyncIterator[Items]) -> None:
        self._source = source
        self._chunks: list[Chunk] = []
        self._finish: Finish | None = None
        self._error: Exception | None = None
        self._ended = False
        self._reader: asyncio.Task[Any] | None = None
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._ended

    @property
    def response(self) -> Completion:
        """The whole answer, once it has been read to its end; the call's error if it failed."""
        if not self._ended:
            raise RuntimeError("The answer has not been read to its end: use `await reply.text()`.")
        if self._error is not None:
            raise self._error
        text = "".join([chunk.content for chunk in self._chunks if chunk.content_type in ANSWER_TYPES])
        reasoning = "".join([chunk.content for chunk in self._chunks if chunk.content_type == "thinking"])
        finish = self._finish or Finish("stop", Usage())
        value = self._value(text)
        return Completion(text, reasoning=reasoning, finish_reason=finish.reason, usage=finish.usage, value=value)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls of tools that wait for their results, as far as the answer has been read."""
        last = takewhile(lambda chunk: chunk.content_type != "tool", reversed(self._chunks))
        found = [_call_decoder.decode(chunk.content) for chunk in last if chunk.content_type == "tool_call"]
        return found[::-1]

    @property
    def has_tool_calls(self) -> bool:
        """Whether there are any."""
        return bool(self.tool_calls)

    async def text(self) -> Completion:
        """Read to the end and give the whole answer."""
        at = 0
        while chunks := await self.since(at):
            at += len(chunks)
        return self.response

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        at = 0
        while chunks := await self.since(at):
            for chunk in chunks:
                yield chunk
            at += len(chunks)

    async def since(self, at: int) -> Sequence[Chunk]:
        """The chunks from position `at` on, waiting for one; none at the end. Raises the call's error."""
        while at >= len(self._chunks) and not self._ended:
            await (self._fetch() if self._reader is None else self._fetched())
        if at >= len(self._chunks) and self._error is not None:
            raise self._error
        return self._chunks[at:]

    async def close(self) -> None:
        """End the answer now, and with it the upstream's work. What was read stays readable."""
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                while self._reader is not None:
                    await self._fetched()
                if not self._ended:
                    self._end(LLMError("The answer was closed before its end."))
                    await _close(self._source)
        except TimeoutError:  # a source that swallows its cancellation keeps its reader, but not us
            self._end(LLMError("The answer was closed before its end."))

    async def _fetch(self) -> None:
        self._reader = asyncio.current_task()
        try:
            items = await anext(self._source)
        except StopAsyncIteration:
            self._end(None)
        except Exception as error:
            self._end(error)
        except BaseException:
            self._end(LLMError("The answer was abandoned before its end."))
            raise
        else:
            last = items[-1]
            if isinstance(last, Finish):
                self._finish, items = last, items[:-1]
            self._chunks += items  # type: ignore[arg-type]  # only the last is a finish
        finally:
            self._reader = None
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                if not each.done():
                    each.set_result(None)

    async def _fetched(self) -> None:
        """Wait until the one who fetches has done so."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        await done

    def _end(self, error: Exception | None) -> None:
        self._ended, self._error = True, error

    def _value(self, text: str) -> Any:
        if self.schema is None or self.has_tool_calls:
            return None
        from app.llm.reading import fit, read_json

        return fit(read_json(text), self.schema)


class LLM(ABC):
    """Something that streams chunks for messages.

    Options given by `use` hold unless a call gives its own. Messages may be a text, a `Message`, or a list of
    `Message`s and OpenAI dictionaries. `invoke` and `stream` are for synchronous code; the other verbs are awaited.
    """

    _defaults: Mapping[str, Any] = {}
    _loop: asyncio.AbstractEventLoop | None = None
    """The loop synchronous verbs run on; without one they start their own."""
    _thread: LoopThread | None = None

    def __init__(self, **given: Any) -> None:
        """A subclass without a constructor of its own has what it is made with as attributes."""
        vars(self).update(given)

    @abstractmethod
    def generate(self, messages: list[dict[str, Any]], **options: Any) -> Any:
        """Answer `messages`, which are OpenAI dictionaries.

        Either `async def … -> str` (or `Completion`), or an async generator of `str` and `Chunk`, at its end perhaps a
        `Finish`.
        """

    def begin(self, messages: Messages, **options: Any) -> Reply:
        """The live answer at once: nothing is asked before it is read.

        `tools` are dictionaries of the protocol, or have `to_openai`. With a `schema` (a pydantic model, another type, a
        JSON Schema) the model is asked for JSON, and the answer's `value` is what the schema makes of it.
        """
        given = {**self._defaults, **options}
        if (schema := given.pop("schema", None)) is not None:
            from app.llm.reading import response_format

            given["response_format"] = response_format(schema)
        if tools := given.get("tools"):
            given["tools"] = [tool.to_openai() if hasattr(tool, "to_openai") else tool for tool in tools]
        reply = self._open(messages, given)
        reply.schema = schema
        return reply

    async def acall(self, messages: Messages, **options: Any) -> Reply:
        """The live answer, returned at its first chunk, or with `tools` when complete. A call that fails before that raises here."""
        reply = self.begin(messages, **options)
        if options.get("tools") or self._defaults.get("tools"):
            await reply.text()
        else:
            await reply.since(0)
        return reply

    async def ainvoke(self, messages: Messages, **options: Any) -> Completion:
        """The whole answer."""
        return await (await self.acall(messages, **options)).text()

    async def astream(self, messages: Messages, **options: Any) -> AsyncIterator[Chunk]:
        """The chunks of the answer as they come; leaving the loop ends the call."""
        reply = self.begin(messages, **options)
        try:
            async for chunk in reply:
                yield chunk
        finally:
            await reply.close()

    def invoke(self, messages: Messages, **options: Any) -> Completion:
        """The whole answer, for synchronous code."""
        return self._wait(self.ainvoke(messages, **options))

    def stream(self, messages: Messages, **options: Any) -> Iterator[Chunk]:
        """The chunks of the answer as they come, for synchronous code."""
        reply, at = self._wait(self.acall(messages, **options)), 0
        try:
            while chunks := self._wait(reply.since(at)):
                yield from chunks
                at += len(chunks)
        finally:
            self._wait(reply.close())

    def use(self, alias: str | None = None, **defaults: Any) -> Self:
        """A new LLM like this one with other defaults: `llm.use("big", temperature=0)`."""
        other = copy.copy(self)
        other._defaults = {**self._defaults, **({"model": alias} if alias else {}), **defaults}
        return other

    def __add__(self, other: LLM) -> LLM:
        """A new LLM that balances over both: they are asked in turn, and each stands in for the other while it has said nothing."""
        from app.llm.balance import Balanced  # which is an LLM itself

        return Balanced(self, other)

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> list[list[float]]:
        """The embedding of each text, in order; `NotImplementedError` by an LLM that makes none."""
        raise NotImplementedError(f"{type(self).__name__} makes no embeddings")

    def endpoint(self) -> Endpoint:
        """Where a framework's own client reaches this model; `NotImplementedError` by an LLM that is on no server.

        On the platform its calls are those of the run: budgets, cache and journal know them, and the key ends with the run.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no endpoint: an LLM of the platform has one, and OpenAILike"
        )

    def _open(self, messages: Messages, options: dict[str, Any]) -> Reply:
        """Every verb's way to an answer: the one place to add to all of them. `options` are its own."""
        return Reply(self.items(normalise(messages), options))

    async def items(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> AsyncGenerator[Items, None]:
        """What `generate` gives, in whichever of its forms, as a stream that ends with a `Finish`."""
        answer = self.generate(messages, **options)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, str):
            yield _parts(messages, answer)
            return
        if not isinstance(answer, AsyncIterable):
            raise TypeError("generate must return a text, or be an async generator of texts and chunks")
        said, finish = [], None
        try:
            async for given in answer:
                item = Chunk(given) if isinstance(given, str) else given
                if isinstance(item, Finish):
                    finish = item
                else:
                    said.append(item.content)
                    yield (item,)
        finally:
            await _close(answer)
        yield (finish or _counted(messages, "".join(said)),)

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            self._thread = LoopThread()
            self._loop = self._thread.loop
        return wait(coroutine, self._loop)


def _parts(messages: list[dict[str, Any]], answer: str) -> Items:
    if not isinstance(answer, Completion):
        return Chunk(answer), _counted(messages, answer)
    thought = [Chunk(answer.reasoning, "thinking")] if answer.reasoning else []
    return *thought, Chunk(str(answer)), Finish(answer.finish_reason or "stop", answer.usage)


def _counted(messages: list[dict[str, Any]], said: str) -> Finish:
    return Finish("stop", Usage(count_messages(messages), count(said), estimated=True))


async def _close(source: object) -> None:
    close = getattr(source, "aclose", None) or getattr(source, "close", None)
    if close is not None:
        await close()
