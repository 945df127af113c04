"""Items of the Responses API, and the messages of chat completions that they stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from app.agent.request import text_of
from app.api.fields import NOBODY
from app.api.openai_models import Json, messages_of
from app.api.responses_output import Output
from app.domain import MAX_TEXT, Message, Run
from app.errors import InvalidInput
from app.usecases.answers import stored_log
from app.usecases.calls import names_of

ITEM_ID = re.compile(r"(?:msg|rs|fc|fco)_([0-9a-f]{32})(?:_\d{1,6})?")
"""The id of a message or of the run that gave it, and which item of it."""


def id_in(prefix: str, text: str) -> UUID:
    """The id in `resp_…` or `conv_…`, or one that no object has."""
    start, _, hex = text.partition("_")
    return UUID(hex=hex) if start == prefix and re.fullmatch("[0-9a-f]{32}", hex) else NOBODY


def message_in(item_id: str) -> UUID:
    """Of which message, or of which run's answer, an item is; or an id that no object has."""
    found = ITEM_ID.fullmatch(item_id)
    return UUID(hex=found[1]) if found else NOBODY


# What comes in


def references(items: Iterable[Json]) -> set[UUID]:
    """The messages and runs that items refer to by id."""
    return {message_in(str(item.get("id"))) for item in items if _kind(item) == "item_reference"}


def to_messages(items: Sequence[Json], known: Mapping[str, Json], field: str) -> list[Json]:
    """The messages that items stand for; `InvalidInput` names the first bad one by its place in `field`.

    `known` are the items that may be referred to. Calls of tools belong to the message of the assistant before them. Reasoning is left
    out: models are not given it again.
    """
    messages: list[Json] = []
    try:
        for index, item in enumerate(items):
            named = known.get(str(item.get("id"))) if _kind(item) == "item_reference" else item
            if named is None:
                raise ValueError(f"[{index}].id: there is no such item")
            _add(messages, named, index)
        messages = messages_of(messages)
        if any(len(text_of(message["content"])) > MAX_TEXT for message in messages):
            raise ValueError(f": a message must have at most {MAX_TEXT} characters")
        return messages
    except ValueError as error:
        raise InvalidInput(f"{field}{error}.", param=field) from None


def _kind(item: Json) -> str:
    kind = item.get("type")
    return str(kind) if kind is not None else "message" if "role" in item else "item_reference"


def _add(messages: list[Json], item: Json, index: int) -> None:
    kind = _kind(item)
    if kind == "message":
        messages.append({"role": item.get("role"), "content": _content(item.get("content"), index)})
    elif kind == "function_call":
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        messages[-1].setdefault("tool_calls", []).append(_call(item, index))
    elif kind == "function_call_output":
        content = _content(item.get("output"), index)
        messages.append({"role": "tool", "tool_call_id": _text(item, "call_id", index), "content": content})
    elif kind != "reasoning":
        raise ValueError(
            f"[{index}].type must be message, function_call, function_call_output, item_reference or reasoning"
        )


def _call(item: Json, index: int) -> Json:
    if not isinstance(given := item.get("arguments"), str):
        raise ValueError(f"[{index}].arguments must be a text")
    function = {"name": _text(item, "name", index), "arguments": given}
    return {"id": _text(item, "call_id", index), "type": "function", "function": function}


def _text(item: Json, name: str, index: int) -> str:
    value = item.get(name)
    if not (isinstance(value, str) and 0 < len(value) <= 256):
        raise ValueError(f"[{index}].{name} must be a text of 1 to 256 characters")
    return value


def _content(content: Any, index: int) -> Any:
    if not isinstance(content, list):
        return content
    return [_part(part, index) for part in content]


def _part(part: Any, index: int) -> Json:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_text", "output_text", "text", "refusal"):
        return {"type": "text", "text": part.get("refusal" if kind == "refusal" else "text")}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        detail = {"detail": part["detail"]} if isinstance(part.get("detail"), str) else {}
        return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
    if kind == "input_file" and isinstance(part.get("file_data"), str):
        named = {"filename": part["filename"]} if isinstance(part.get("filename"), str) else {}
        return {"type": "file", "file": {"file_data": part["file_data"], **named}}
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        return {"type": "input_audio", "input_audio": part["input_audio"]}
    raise ValueError(
        f"[{index}]: a part is input_text, output_text, refusal, input_image with an image_url, input_file with file_data, or input_audio"
    )


# What goes out


def items_of(messages: Iterable[Message], runs: Mapping[UUID, Run]) -> list[Json]:
    """Messages as items, in order; the answers of these runs as the runs gave them."""
    return [item for message in messages for item in _items(message, runs)]


def _items(message: Message, runs: Mapping[UUID, Run]) -> list[Json]:
    run = runs.get(message.run_id) if message.run_id else None
    calls = message.additional_kwargs.get("tool_calls", ()) if message.role == "assistant" else ()
    if run is not None and not message.name:
        return answer_items(run, [message], names_of(calls))
    hex = message.id.hex if message.id else ""
    if message.role == "tool":
        output = _parts(message) if message.parts else message.content
        call_id = message.additional_kwargs.get("tool_call_id")
        made = {"id": f"fco_{hex}", "type": "function_call_output", "call_id": call_id, "output": output}
        return [{**made, "status": "completed"}]
    said = {"id": f"msg_{hex}", "type": "message", "role": message.role, "status": "completed"}
    items: list[Json] = [] if calls and not message.content else [{**said, "content": _parts(message)}]
    for number, call in enumerate(calls):
        about = {"id": f"fc_{hex}_{number}", "type": "function_call", "call_id": call["id"], "status": "completed"}
        items.append({**about, "name": call["function"]["name"], "arguments": call["function"]["arguments"]})
    return items


def answer_items(run: Run, answers: Sequence[Message], tools: frozenset[str]) -> list[Json]:
    """What a run gave, as items."""
    output = Output(run.id, tools)
    log = stored_log(run, answers)
    output.take(log.events)
    if log.outcome:
        output.end(log.outcome)
    return output.items


def _parts(message: Message) -> list[Json]:
    if message.role == "assistant":
        speaker = f"{message.name}: " if message.name and message.run_id else ""
        return [{"type": "output_text", "text": f"{speaker}{message.content}", "annotations": []}]
    if not message.parts:
        return [{"type": "input_text", "text": message.content}]
    return [_given_back(part) for part in message.parts]


def _given_back(part: Mapping[str, Any]) -> Json:
    kind = part.get("type")
    if kind == "text":
        return {"type": "input_text", "text": part.get("text")}
    if kind == "image_url":
        image = part["image_url"] if isinstance(part.get("image_url"), dict) else {"url": part.get("image_url")}
        return {"type": "input_image", "image_url": image.get("url"), "detail": image.get("detail", "auto")}
    if kind == "file" and isinstance(part.get("file"), dict):
        return {"type": "input_file", **part["file"]}
    return dict(part)
