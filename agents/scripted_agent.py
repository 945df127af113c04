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

Anything else is repeated.
"""

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Callable
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
        answer = command(rest.removeprefix(" ")) if command else self.repeat(message.content)
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
        yield json.dumps(smallest(schema, schema), ensure_ascii=False)

    async def fail(self, text: str) -> AsyncIterator[str]:
        if text:
            raise RuntimeError(text)
        raise RuntimeError
        yield  # which makes this a generator like the others

    async def keep(self, text: str) -> AsyncIterator[str]:
        before, self.state.text = self.state.text, text
        yield before

    async def param(self, _: str) -> AsyncIterator[str]:
        yield self.params.model_dump_json()


def smallest(schema: Any, root: Any, depth: int = 0) -> Any:
    """A minimal value that a JSON Schema describes; `root` is where its `$ref`s begin."""
    schema = resolved(schema, root, depth)
    if "const" in schema:
        return schema["const"]
    if "default" in schema:
        return schema["default"]
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object" if "properties" in schema else "null")
    return by_type(kind[0] if isinstance(kind, list) else kind, schema, root, depth)


def resolved(schema: Any, root: Any, depth: int) -> dict[str, Any]:
    """The schema itself: references followed, parts merged, the first of several choices taken."""
    if depth > MAX_DEPTH:
        raise ValueError("the schema has no end")
    if not isinstance(schema, dict):
        return {}
    for key in ("$ref", "allOf", "anyOf", "oneOf"):
        if key in schema:
            given = schema[key]
            parts = [target(given, root)] if key == "$ref" else given if key == "allOf" else given[:1]
            merged = {name: value for name, value in schema.items() if name != key}
            for part in parts:
                merged = resolved(part, root, depth + 1) | merged
            return resolved(merged, root, depth + 1)
    return schema


def by_type(kind: str, schema: dict[str, Any], root: Any, depth: int) -> Any:
    """A minimal value of one type."""
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: smallest(properties.get(name, {}), root, depth + 1) for name in schema.get("required", ())}
    if kind == "array":
        first = schema.get("prefixItems", [])
        rest = [schema.get("items", {})] * (min(schema.get("minItems", 0), MAX_LENGTH) - len(first))
        return [smallest(item, root, depth + 1) for item in [*first, *rest]]
    if kind == "string":
        return "a" * min(schema.get("minLength", 0), MAX_LENGTH)
    if kind in ("integer", "number"):
        return nearest_to_zero(schema, schema.get("multipleOf", 1 if kind == "integer" else 0))
    return False if kind == "boolean" else None


def nearest_to_zero(schema: dict[str, Any], step: float) -> float:
    """The number within the schema's bounds that is nearest to zero."""
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    gap = step or (1 if above is None or below is None else (below - above) / 2)
    low = schema.get("minimum", 0 if above is None else above + gap)
    high = schema.get("maximum", 0 if below is None else below - gap)
    value: float = max(low, 0) or min(high, 0)
    outward = math.ceil if value > 0 else math.floor
    return outward(value / step) * step if step else value


def target(ref: str, root: Any) -> Any:
    """The schema that a reference inside the same document names."""
    found = root
    for key in filter(None, ref.removeprefix("#").split("/")):
        found = found[key.replace("~1", "/").replace("~0", "~")]
    return found
