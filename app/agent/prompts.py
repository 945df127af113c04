"""Prompts: a template, its values, and the call of the language model with what they come to."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from app.agent.plain import canonical
from app.agent.postprocess import BasePostprocess, Flow
from app.domain import ANSWER_TYPES, Chunk, Message, Usage
from app.errors import AgentFailed
from app.llm.llm import Completion
from app.llm.reading import fit, read_json, written

if TYPE_CHECKING:
    from app.agent.base import BaseAgent
    from app.agent.parallel import ParallelPrompt

MAX_CONTINUATIONS = 8
"""How often `long_response` asks for more."""
CONTINUE = "Continue exactly where you stopped. Repeat nothing, and add no introduction."

QUICK = 4_000
"""JSON of so many characters is read on the event loop: to repair it takes 3 µs a character."""
Send = Callable[[str, str], Awaitable[None]]
"""Takes a content type and a piece."""


def read_template(folder: Path, path: str | Path) -> str:
    """The text of a template's file, which must be in `folder` or below, whatever links lead to it."""
    root = folder.resolve()
    file = (root / path).resolve()
    if not file.is_relative_to(root):
        raise AgentFailed("A template must be inside the folder of the agent's file.")
    if not file.is_file():
        raise AgentFailed(f"There is no template {Path(path).name[:100]} in the folder of the agent's file.")
    from app.agent.templates import MAX_TEMPLATE

    with file.open(encoding="utf-8") as opened:
        return opened.read(MAX_TEMPLATE + 1)


class Prompt:
    """A template and its values; made by `BaseAgent.create_prompt`, and called any number of times, also at once."""

    def __init__(
        self,
        agent: BaseAgent,
        template: str | None,
        *,
        description: str = "",
        content_type: str = "text",
        system_prompt: str | None = None,
        memory_id: str | None = None,
        max_history_rounds: int = 5,
    ) -> None:
        if template is not None:
            from app.agent.templates import check  # and with it Jinja2, which instructions alone do not need

            check(template)
        self.template = template
        self.description = description
        self.content_type = content_type
        self.system_prompt = system_prompt
        self._agent = agent
        self._values: dict[str, Any] = {}
        self._memory_id = memory_id
        self._rounds = max_history_rounds

    def update_placeholder(self, **values: Any) -> Self:
        """Set values of the template; those it does not ask for do no harm."""
        self._values.update(values)
        return self

    def __or__(self, other: Prompt | ParallelPrompt) -> ParallelPrompt:
        """Both at once."""
        from app.agent.parallel import ParallelPrompt

        return ParallelPrompt([self]) | other

    @overload
    async def acall(
        self, query: str | Message | None = None, *, return_generator: Literal[True], **options: Any
    ) -> AsyncIterator[Chunk]: ...
    @overload
    async def acall(
        self,
        query: str | Message | None = None,
        *,
        is_stream: bool = False,
        content_type: str | None = None,
        postprocessor: BasePostprocess | None = None,
        return_generator: Literal[False] = False,
        force_json: bool = False,
        long_response: bool = False,
        system_prompt: str | None = None,
        schema: Any = None,
        **options: Any,
    ) -> Completion: ...
    async def acall(
        self,
        query: str | Message | None = None,
        *,
        return_generator: bool = False,
        is_stream: bool = False,
        **options: Any,
    ) -> Completion | AsyncIterator[Chunk]:
        """Render the template, ask the language model, and process its answer.

        A query that the template has no place for follows it as a message of its own. `is_stream` sends the answer to
        the agent's stream as it comes, with its thoughts; `return_generator` gives its chunks instead. The text is
        processed the same either way. `force_json` repairs the answer to JSON, which is then sent whole; `schema` asks
        for JSON of a pydantic model or another type; either is the `value`. `long_response` asks for more when the answer
        was cut for its length, up to `MAX_CONTINUATIONS` times. Other options are those of an LLM call.
        """
        call = self._call(query, **options)
        if return_generator:
            return self._chunks(call)
        async with aclosing(self._chunks(call)) as chunks:
            async for chunk in chunks:
                if is_stream:
                    await call.send(chunk.content_type, chunk.content)
        return call.completion

    @overload
    def call(
        self, query: str | Message | None = None, *, return_generator: Literal[True], **options: Any
    ) -> Iterator[Chunk]: ...
    @overload
    def call(
        self, query: str | Message | None = None, *, return_generator: Literal[False] = False, **options: Any
    ) -> Completion: ...
    def call(
        self, query: str | Message | None = None, *, return_generator: bool = False, **options: Any
    ) -> Completion | Iterator[Chunk]:
        """`acall` for synchronous code, which does not run on an event loop."""
        if return_generator:
            return self._pull(self._chunks(self._call(query, **options)))
        answer: Completion = self._agent.llm._wait(self.acall(query, **options))
        return answer

    def _call(
        self,
        query: str | Message | None,
        *,
        content_type: str | None = None,
        postprocessor: BasePostprocess | None = None,
        force_json: bool = False,
        long_response: bool = False,
        system_prompt: str | None = None,
        schema: Any = None,
        send: Send | None = None,
        **options: Any,
    ) -> _Call:
        steps = [_Json(schema)] if force_json or schema is not None else []
        return _Call(
            query.content if isinstance(query, Message) else query,
            content_type or self.content_type,
            Flow(*steps, *([postprocessor] if postprocessor else [])),
            send or self._agent.stream.send,
            self.system_prompt if system_prompt is None else system_prompt,
            MAX_CONTINUATIONS if long_response else 0,
            options if schema is None else {**options, "schema": schema},
        )

    async def _chunks(self, call: _Call) -> AsyncGenerator[Chunk, None]:
        """The processed answer as it comes; `call` knows the rest when it has ended."""
        messages = await self._messages(call)
        async with aclosing(self._answer(messages, call)) as answer:
            async for chunk in answer:
                if chunk.content_type not in ANSWER_TYPES:
                    yield chunk
                elif said := call.add(chunk.content):
                    yield Chunk(said, call.content_type)
        if said := await self._processed(call):
            yield Chunk(said, call.content_type)
        await self._remember(call)

    async def _answer(self, messages: list[Message], call: _Call) -> AsyncGenerator[Chunk, None]:
        """What the model says, asked for more as often as the call allows."""
        if not hasattr(self._agent, "llm"):
            raise AgentFailed("The agent has no language model: make it with llm=….")
        while True:
            reply = self._agent.llm.begin(messages, **call.options)
            reply.schema = None  # the whole is read, once it is whole
            try:
                async for chunk in reply:
                    yield chunk
            finally:
                await reply.close()
            said = reply.response
            call.told(said)
            if said.finish_reason != "length" or call.continuations == 0 or not said:
                return
            call.continuations -= 1
            messages = [*messages, Message.assistant(str(said)), Message.user(CONTINUE)]

    async def _messages(self, call: _Call) -> list[Message]:
        """What the model is sent: instructions, what is remembered, the prompt, and a query it has no place for."""
        messages = [Message.system(call.system_prompt)] if call.system_prompt else []
        names: frozenset[str] = frozenset()
        if self.template is not None:
            from app.agent.templates import names_in

            names = await names_in(self.template)
        values = {**self._values, **({} if call.query is None else {"query": call.query})}
        if self._memory_id is not None:
            history = await self._history(self._memory_id)
            if "history" not in names:
                messages += history if isinstance(history, list) else [Message.system(str(history))] if history else []
            values.setdefault("history", history)
        said = []
        if self.template is not None:
            said.append(await self._rendered({name: value for name, value in values.items() if name in names}))
        if call.query is not None and "query" not in names:
            said.append(call.query)
        if not said:
            raise AgentFailed("The prompt is empty: it has neither a template nor a query.")
        call.asked = said[0] if call.query is None else call.query
        return [*messages, *map(Message.user, said)]

    async def _rendered(self, values: Mapping[str, Any]) -> str:
        from app.agent.templates import render

        template = self.template or ""
        shown = {name: value if canonical(value) else str(value) for name, value in values.items()}
        given = canonical({"template": template, "values": shown})
        with self._agent._recorder.step("prompt", self.description or "prompt", input=given) as step:
            text = await render(str(step.changes.get("prompt", template)), values) if step.served is None else ""
            step.done(canonical(text))
        return text if step.served is None else str(json.loads(step.served))

    async def _processed(self, call: _Call) -> str:
        """The end of the answer, and what the whole came to."""
        if not call.flow.members:
            call.completion = call.whole("".join(call.said), None)
            return ""
        raw = "".join(call.raw)
        name = " >> ".join(type(member).__name__.lstrip("_") for member in call.flow.members)
        with self._agent._recorder.step("postprocess", name, input=canonical(raw)) as step:
            left = await call.flow.close()
            call.completion = call.whole("".join([*call.said, left]), call.flow.value)
            step.output = canonical(str(call.completion))
        return left

    async def _history(self, memory_id: str) -> Any:
        given: Any = self._agent.memory.build_history(memory_id=memory_id, max_round=self._rounds)
        return await given if inspect.isawaitable(given) else given

    async def _remember(self, call: _Call) -> None:
        if self._memory_id is None:
            return
        for role, content in (("user", call.asked), ("assistant", str(call.completion))):
            if content:
                given = self._agent.memory.add_memory(content=content, role=role, memory_id=self._memory_id)
                if inspect.isawaitable(given):
                    await given

    def _pull(self, chunks: AsyncGenerator[Chunk, None]) -> Iterator[Chunk]:
        """An asynchronous iterator for synchronous code."""
        wait = self._agent.llm._wait

        async def following() -> Chunk | None:
            return await anext(chunks, None)

        try:
            while (chunk := wait(following())) is not None:
                yield chunk
        finally:
            wait(chunks.aclose())


@dataclass(slots=True)
class _Call:
    """One call of a prompt, and what has come of it."""

    query: str | None
    content_type: str
    flow: Flow
    send: Send
    system_prompt: str | None
    continuations: int
    options: dict[str, Any]
    asked: str = ""
    """What is remembered as the user's words: the query, or else the prompt."""
    raw: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    finish_reason: str | None = None
    completion: Completion = field(default_factory=Completion)

    def add(self, text: str) -> str:
        """Take a piece of the model's text: what may be said of it now."""
        self.raw.append(text)
        said = self.flow.feed(text)
        self.said.append(said)
        return said

    def told(self, answer: Completion) -> None:
        """Take what is known about one of the model's answers."""
        self.reasoning.append(answer.reasoning)
        self.usage += answer.usage
        self.finish_reason = answer.finish_reason

    def whole(self, text: str, value: Any) -> Completion:
        """The whole answer."""
        return Completion(
            text, reasoning="".join(self.reasoning), finish_reason=self.finish_reason, usage=self.usage, value=value
        )


class _Json(BasePostprocess):
    """Makes an answer into JSON, of a schema where there is one; the text is repaired only if it must be."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema

    async def process(self, content: str, **_: Any) -> Completion:
        found = read_json(content) if len(content) < QUICK else await asyncio.to_thread(read_json, content)
        value = found if self._schema is None else fit(found, self._schema)
        return Completion(written(content, found), value=value)
