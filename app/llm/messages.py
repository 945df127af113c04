"""Whatever a call is given as messages, made once into the dictionaries of the OpenAI protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.domain import Message
from app.errors import InvalidInput

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})

Messages = str | Message | Sequence[Message | Mapping[str, Any]]
"""What the verbs of an LLM accept: a text is one message of the user."""


def normalise(messages: Messages) -> list[dict[str, Any]]:
    """`messages` as dictionaries; `InvalidInput` names the place of the first bad one, such as `messages[2].role`."""
    if isinstance(messages, str):
        return [{"role": "user", "content": str(messages)}]
    if isinstance(messages, Message):
        messages = [messages]
    if not isinstance(messages, Sequence):
        raise InvalidInput("messages must be a text, a message or a list of messages.", param="messages")
    if not messages:
        raise InvalidInput("messages must not be empty.", param="messages")
    return [_checked(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _checked(message: Any, place: str) -> dict[str, Any]:
    if isinstance(message, Message):
        body = message.to_openai()
    elif isinstance(message, Mapping):
        body = dict(message)
    else:
        raise InvalidInput(f"{place} must be a message or a dictionary.", param=place)
    role = body.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidInput(f"{place}.role must be one of {', '.join(sorted(ROLES))}.", param=f"{place}.role")
    _check_content(body, f"{place}.content")
    return body


def _check_content(body: Mapping[str, Any], place: str) -> None:
    content = body.get("content")
    if isinstance(content, str) or (content is None and body.get("tool_calls")):
        return
    if isinstance(content, Sequence) and content and all(isinstance(part, Mapping) for part in content):
        return
    raise InvalidInput(f"{place} must be a text or a list of parts.", param=place)
