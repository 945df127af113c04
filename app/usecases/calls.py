"""Calls of tools. Those of a request's own tools are for whoever sent it to carry out; any other is the agent's own affair."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from msgspec.structs import replace

from app.domain import Chunk, Message
from app.llm.llm import ToolCall

_decoder = json.JSONDecoder()


class Call(ToolCall, frozen=True, kw_only=True):
    """A call for whoever sent the request, the `index`th of the answer. `arguments` are JSON, as the agent or the model gave them."""

    index: int


class Calls:
    """Reads calls out of the chunks of a log, where they may have been joined or cut. The same log gives the same ids."""

    def __init__(self, run_id: UUID, tools: frozenset[str]) -> None:
        self._run_id = run_id
        self._tools = tools
        self._pending = ""
        self.count = 0

    def read(self, text: str) -> list[tuple[str, Call | None]]:
        """What is complete now: each piece of text, and the call it is, or None for what is the agent's own affair."""
        self._pending += text
        found = []
        while (bare := self._pending.lstrip()) != "":
            try:
                value, end = _decoder.raw_decode(bare)
            except (ValueError, RecursionError):
                if bare.startswith("{"):
                    break
                value, end = None, len(bare)
            end += len(self._pending) - len(bare)
            found.append((self._pending[:end], self._call(value)))
            self._pending = self._pending[end:]
        return found

    def _call(self, value: Any) -> Call | None:
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str) or name not in self._tools:
            return None
        given = value.get("arguments")
        arguments = given if isinstance(given, str) else json.dumps(given or {}, ensure_ascii=False)
        id = str(value.get("id") or f"call_{self._run_id.hex}_{self.count}")
        self.count += 1
        return Call(id, name, arguments, index=self.count - 1)


def names_of(tools: Iterable[Any] | None) -> frozenset[str]:
    """The names of a request's tools."""
    if not tools:  # as a rule
        return frozenset()
    functions = (tool.get("function") for tool in tools if isinstance(tool, dict))
    names = (function.get("name") for function in functions if isinstance(function, dict))
    return frozenset(name for name in names if isinstance(name, str))


def called(chunks: Iterable[Chunk], run_id: UUID, tools: frozenset[str]) -> list[dict[str, Any]]:
    """The calls among what was said, as the message that is stored has them."""
    calls = Calls(run_id, tools)
    read = [call for chunk in chunks if chunk.content_type == "tool_call" for _, call in calls.read(chunk.content)]
    return [call.to_openai() for call in read if call]


def made_in(messages: Iterable[Message]) -> set[str]:
    """The ids of the calls that these messages make."""
    return {str(call.get("id")) for message in messages for call in _calls(message)}


def answered_in(messages: Iterable[Message]) -> set[str]:
    """The ids of the calls whose results these messages are."""
    return {str(message.additional_kwargs.get("tool_call_id")) for message in messages if message.role == "tool"}


def paired(history: Sequence[Message]) -> Sequence[Message]:
    """The history without calls that were never answered and results whose calls are not in it, both of which servers refuse."""
    tied = [message for message in history if message.additional_kwargs or message.role == "tool"]
    made, answered = made_in(tied), answered_in(tied)
    if made == answered:
        return history
    kept = []
    for message in history:
        calls = _calls(message)
        left = [call for call in calls if str(call.get("id")) in answered]
        if message.role == "tool" and str(message.additional_kwargs.get("tool_call_id")) not in made:
            continue
        if calls and not left and not message.content:
            continue
        extra = message.additional_kwargs
        kept.append(replace(message, additional_kwargs={**extra, "tool_calls": left}) if calls else message)
    return kept or history[-1:]


def _calls(message: Message) -> Sequence[Mapping[str, Any]]:
    calls = message.additional_kwargs.get("tool_calls", ()) if message.role == "assistant" else ()
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list | tuple) else ()
