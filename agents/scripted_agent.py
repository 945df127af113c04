"""Does exactly what it is told, without a language model, so that clients and tests need no key.

A message is a command:

- `repeat: TEXT` answers TEXT, streamed word by word
- `chunks: N` streams N numbered chunks, one a line, at most 100000
- `sleep: SECONDS` answers "asleep and awake", with the pause after the first word
- `think: TEXT` sends TEXT as thinking, then answers "done"
- `count` answers how many messages the history has
- `call: TOOL {json}` sends the call of TOOL as a tool_call chunk, and answers with its arguments
- `fill: {json schema}` answers the smallest JSON that the schema describes
- `fail: TEXT` raises an error
- `state: TEXT` keeps TEXT, and answers what was kept before
- `param` answers its parameters as JSON

A request of the OpenAI protocol is followed too, as by a language model that takes everything literally:

- the result of a tool is answered with `The tool said: RESULT`
- a tool is called that `tool_choice` asks for, or that shares a word of five letters with the message
- a `response_format` is filled

Arguments and formats are filled from the message: a number is its first, a text what stands in quotation marks, or all of it.

Anything else is repeated.
"""

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from app.agent import Chattable, Chunk, Message

MAX_DEPTH = 50
MAX_LENGTH = 1000


class Params(BaseModel):
    """Parameters that do nothing but come back."""

    greeting: str = Field("", max_length=1000, description="any text")
    number: int | None = Field(None, ge=0, le=1_000_000, description="any number")


class Kept(BaseModel):
    """What `state:` keeps."""

    text: str = ""


class ScriptedAgent(Chattable):
    id = "scripted_agent"
    params: Params
    state: Kept

    async def chat(self, message: Message) -> AsyncIterator[str | Chunk]:
        name, _, rest = message.content.partition(":")
        command = self.commands().get(name.strip())
        last = self.history[-1]
        answer = command(rest.removeprefix(" ")) if command and last.role == "user" else self.follow(last.content)
        async for chunk in answer:
            yield chunk

    def commands(self) -> dict[str, Callable[[str], AsyncIterator[str | Chunk]]]:
        """The commands by name."""
        verbs = (self.repeat, self.chunks, self.sleep, self.think, self.count, self.call, self.fill, self.fail)
        return {"state": self.keep, "param": self.param} | {verb.__name__: verb for verb in verbs}

    async def repeat(self, text: str) -> AsyncIterator[str]:
        for word in re.findall(r"\s*\S+|\s+", text) or [""]:
            yield word

    async def chunks(self, number: str) -> AsyncIterator[str]:
        for at in range(min(int(number), 100_000)):
            yield f"{at + 1}\n"

    async def sleep(self, seconds: str) -> AsyncIterator[str]:
        yield "asleep"
        await asyncio.sleep(float(seconds))
        yield " and awake"

    async def think(self, text: str) -> AsyncIterator[str | Chunk]:
        yield Chunk(text, "thinking")
        yield "done"

    async def count(self, _: str) -> AsyncIterator[str]:
        yield str(len(self.history))

    async def call(self, text: str) -> AsyncIterator[str | Chunk]:
        tool, _, arguments = text.partition(" ")
        given = json.dumps(json.loads(arguments or "{}"), ensure_ascii=False)
        yield Chunk(json.dumps({"name": tool, "arguments": given}, ensure_ascii=False), "tool_call")
        yield given

    async def fill(self, text: str) -> AsyncIterator[str]:
        schema = json.loads(text)
        yield json.dumps(Filling(schema).value(schema), ensure_ascii=False)

    async def follow(self, text: str) -> AsyncIterator[str | Chunk]:
        request, messages = self.request, [message.to_openai() for message in self.history]
        if request and (call := called(request.tools or (), request.tool_choice, text, used(messages))):
            name, arguments = call
            yield Chunk(json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False), "tool_call")
        elif request and (given := formatted(request.response_format or {}, text)) is not None:
            yield json.dumps(given, ensure_ascii=False)
        else:
            async for word in self.repeat(f"The tool said: {text}" if messages[-1]["role"] == "tool" else text):
                yield word

    async def fail(self, text: str) -> AsyncIterator[str]:
        for word in "":  # which makes this a generator like the others
            yield word
        raise RuntimeError(*([text] if text else []))

    async def keep(self, text: str) -> AsyncIterator[str]:
        before, self.state.text = self.state.text, text
        yield before

    async def param(self, _: str) -> AsyncIterator[str]:
        yield self.params.model_dump_json()


def used(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the tools that were called since the last message of the user."""
    last = max((at for at, message in enumerate(messages) if message["role"] == "user"), default=-1)
    return [call["function"]["name"] for message in messages[last + 1 :] for call in message.get("tool_calls") or ()]


def called(
    tools: Sequence[Mapping[str, Any]], choice: Any, text: str, used: Collection[str]
) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of the call that a request asks for, if it does.

    A call that is required, of a tool that neither the choice nor the text names, is of the first that was not `used`.
    """
    functions = [tool["function"] for tool in tools]
    fresh = [function for function in functions if function["name"] not in used]
    if isinstance(choice, Mapping):
        meant = [function for function in fresh if function["name"] == choice["function"]["name"]]
    elif choice == "required":
        meant = [function for function in fresh if is_meant(function["name"], text)] or fresh or functions
    else:
        meant = [] if used or choice == "none" else [each for each in functions if is_meant(each["name"], text)]
    if not meant:
        return None
    schema = meant[0].get("parameters") or {"type": "object"}
    return meant[0]["name"], Filling(schema, text).value(schema)


def is_meant(tool: str, text: str) -> bool:
    """Whether the name of a tool, or a word of it, is in the text."""
    words = [tool, *re.findall(r"[a-zA-Z]{5,}", tool)]
    return any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in words)


def formatted(form: Mapping[str, Any], text: str) -> Any:
    """What fills a `response_format`; None when it asks for nothing. Any JSON has what is in quotation marks as its keys."""
    if form.get("type") == "json_schema":
        schema = form["json_schema"].get("schema", {})
        return Filling(schema, text).value(schema)
    if form.get("type") == "json_object":
        return dict.fromkeys(quoted(text), text)
    return None


def quoted(text: str) -> list[str]:
    """What stands in quotation marks."""
    return [double or single for double, single in re.findall(r'"([^"]*)"|\B\'([^\']*)\'\B', text)]


class Filling:
    """Fills JSON Schemas: with numbers and texts that are taken from `text`, or with the smallest values."""

    def __init__(self, root: Any, text: str = "") -> None:
        """`root` is where `$ref`s begin."""
        self._root = root
        self._numbers: list[int] = [
            json.loads(number) for number in re.findall(r"(?<![\w.])-?(?:0|[1-9]\d*)(?![\w.])", text)
        ]
        self._text = (quoted(text) or [text])[0]

    def value(self, schema: Any, depth: int = 0) -> Any:
        """A value that the schema describes."""
        schema = self._resolved(schema, depth)
        if "const" in schema:
            return schema["const"]
        if "default" in schema:
            return schema["default"]
        if "enum" in schema:
            return schema["enum"][0]
        kind = schema.get("type", "object" if "properties" in schema else "null")
        return self._of_type(kind[0] if isinstance(kind, list) else kind, schema, depth)

    def _resolved(self, schema: Any, depth: int) -> dict[str, Any]:
        """The schema itself: references followed, parts merged, the first of several choices taken."""
        if depth > MAX_DEPTH:
            raise ValueError("the schema has no end")
        if not isinstance(schema, dict):
            return {}
        for key in ("$ref", "allOf", "anyOf", "oneOf"):
            if key in schema:
                given = schema[key]
                parts = [self._target(given)] if key == "$ref" else given if key == "allOf" else given[:1]
                merged = {name: value for name, value in schema.items() if name != key}
                for part in parts:
                    merged = self._resolved(part, depth + 1) | merged
                return self._resolved(merged, depth + 1)
        return schema

    def _of_type(self, kind: str, schema: dict[str, Any], depth: int) -> Any:
        if kind == "object":
            properties = schema.get("properties", {})
            return {name: self.value(properties.get(name, {}), depth + 1) for name in schema.get("required", ())}
        if kind == "array":
            first = schema.get("prefixItems", [])
            rest = [schema.get("items", {})] * (min(schema.get("minItems", 0), MAX_LENGTH) - len(first))
            return [self.value(item, depth + 1) for item in [*first, *rest]]
        if kind == "string":
            text = self._text[: schema.get("maxLength")]
            return text.ljust(min(schema.get("minLength", 0), MAX_LENGTH), "a")
        if kind in ("integer", "number"):
            return self._number(schema, schema.get("multipleOf", 1 if kind == "integer" else 0))
        return False if kind == "boolean" else None

    def _number(self, schema: dict[str, Any], step: float) -> float:
        """The text's first number within the schema's bounds, or the one that is nearest to zero."""
        above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
        least, most = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        for number in self._numbers:
            if above < number < below and least <= number <= most and not (step and number % step):
                return number
        gap = step or (1 if math.inf in (-above, below) else (below - above) / 2)
        value: float = max(least, above + gap, 0) or min(most, below - gap, 0)
        outward = math.ceil if value > 0 else math.floor
        return outward(value / step) * step if step else value

    def _target(self, ref: str) -> Any:
        """The schema that a reference inside the same document names."""
        found = self._root
        for key in filter(None, ref.removeprefix("#").split("/")):
            found = found[key.replace("~1", "/").replace("~0", "~")]
        return found
