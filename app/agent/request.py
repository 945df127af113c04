"""A request of the OpenAI protocol, as the agent sees it that answers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, PrivateAttr

from app.domain import BESIDE, Message
from app.llm.options import NAMES
from app.llm.tokens import PER_ATTACHMENT, count

OPTIONS = tuple(name for name in NAMES if name not in ("model", "n"))
"""What of a request is an option of an LLM call, under the same name."""


class OpenAIRequest(BaseModel):
    """Model, messages and options of one request; `instructions` are a system message for it alone.

    Fields that are not declared are kept under their names.
    """

    model_config = ConfigDict(extra="allow")

    model: str = ""
    messages: list[dict[str, Any]] = []
    stream: bool = True
    session_id: str | None = None
    user: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    instructions: str | None = None
    _headers: dict[str, str] = PrivateAttr(default_factory=dict)

    def get_user_query(self) -> str:
        """The text of the last message of the user; empty when there is none."""
        asked = last_of_user(self.messages)
        return text_of(self.messages[asked].get("content")) if asked is not None else ""

    def get_header(self, key: str | None = None) -> Any:
        """A header by its name, in whatever case, or None; without a name all of them. Those that prove who calls are not among them."""
        return dict(self._headers) if key is None else self._headers.get(key.lower())

    def set_headers(self, headers: Mapping[str, str]) -> None:
        """Take these headers; for whoever serves the request."""
        self._headers = {name.lower(): value for name, value in headers.items()}

    def options(self) -> dict[str, Any]:
        """Sampling, tools and format of the answer, as `self.llm.begin(…, **self.request.options())` takes them."""
        given = {name: getattr(self, name, None) for name in OPTIONS}
        return {name: value for name, value in given.items() if value is not None}

    def said(self) -> list[Message]:
        """The messages of the request."""
        return [message_of(message) for message in self.messages]


def last_of_user(messages: Sequence[Mapping[str, Any]]) -> int | None:
    """Where the last message of the user stands."""
    for at in reversed(range(len(messages))):
        if messages[at].get("role") == "user":
            return at
    return None


def text_of(content: Any) -> str:
    """The text of a message's content, which may be a text, a list of parts, or nothing."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content or () if isinstance(part.get("text"), str))


def tokens_of(content: Any) -> int:
    """About how many tokens the content is."""
    if isinstance(content, str):
        return count(content)
    others = sum(not isinstance(part.get("text"), str) for part in content or ())
    return count(text_of(content)) + PER_ATTACHMENT * others


def message_of(body: Mapping[str, Any], id: UUID | None = None) -> Message:
    """One message of a request; with an `id` as it is to be stored."""
    content = body.get("content")
    return Message(
        body["role"],
        text_of(content),
        parts=() if isinstance(content, str) else tuple(content or ()),
        name=body.get("name"),
        id=id,
        additional_kwargs={key: body[key] for key in BESIDE.values() if key in body},
        tokens=tokens_of(content),
    )
