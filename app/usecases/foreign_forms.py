"""What ChatGPT and Open WebUI export, read as one kind of tree: nodes that are said, stand beside what is said, or are nothing.

Neither publishes a schema. ChatGPT's `conversations.json` is a list of `{mapping: {id: {message, parent}}, current_node}`; Open WebUI's
is a list of `{chat: {history: {messages: {id: {parentId, role, content}}, currentId}}}`, or of older chats with a list of `messages`.
What is not looked for here may be as it likes; what is, has a type, and an error names where it has not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html import unescape
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct, field

Role = Literal["user", "assistant", "beside", "nothing"]
Name = Literal["chatgpt", "open-webui"]
THINKING, CALL, RESULT = "thinking", "tool_call", "tool_result"
MISSING = "[attachment]"
"""Stands for what was said without a word."""
UNSAID = frozenset({"reasoning_recap", "user_editable_context", "model_editable_context"})
"""Contents of ChatGPT's own: how long it thought, and what it is told of its user."""
_MARKS = re.compile("\ue200[^\ue200\ue201]*\ue201|[\ue000-\uf8ff]")
"""Where ChatGPT's page puts a citation, between characters that have no meaning elsewhere."""
_ATTRIBUTE = re.compile(r'([a-z_]{1,20})="([^"]*)"')
_SUMMARY_END = "</summary>"


class Node(NamedTuple):
    """A place in the tree of a chat. `asides` are pairs of content type and content; `lost` is what was there and is not taken."""

    parent: str | None
    role: Role
    content: str = ""
    asides: tuple[tuple[str, str], ...] = ()
    pictures: tuple[str, ...] = ()
    time: float | None = None
    model: str | None = None
    rating: int | None = None
    comment: str | None = None
    lost: int = 0


class Chat(NamedTuple):
    """A chat of another platform. Times are in seconds since 1970, of which some exports have thousandths."""

    id: str | None
    title: str | None
    nodes: Mapping[str, Node]
    current: str | None
    created: float | None
    updated: float | None
    is_archived: bool


# ChatGPT


class _Author(Struct):
    role: str = ""
    name: str | None = None


class _Thought(Struct):
    content: str | None = None
    summary: str | None = None


class _Content(Struct):
    content_type: str = "text"
    parts: list[Any] | None = None
    text: str | None = None
    result: str | None = None
    thoughts: list[_Thought] | None = None


class _About(Struct):
    is_visually_hidden_from_conversation: bool | None = None
    model_slug: str | None = None
    attachments: list[Any] | None = None


class _Said(Struct):
    author: _Author = field(default_factory=_Author)
    content: _Content | None = None
    create_time: float | None = None
    weight: float | None = None
    recipient: str | None = None
    metadata: _About | None = None


class _Place(Struct):
    message: _Said | None = None
    parent: str | None = None


class _Conversation(Struct):
    mapping: dict[str, _Place]
    id: str | None = None
    conversation_id: str | None = None
    title: str | None = None
    create_time: float | None = None
    update_time: float | None = None
    current_node: str | None = None
    is_archived: bool | None = None


def chatgpt(raw: msgspec.Raw) -> Chat:
    """A conversation of ChatGPT's export; `msgspec.ValidationError` where it is none."""
    given = msgspec.json.decode(raw, type=_Conversation)
    nodes = {id: _of_chatgpt(place) for id, place in given.mapping.items()}
    times = given.create_time, given.update_time
    id = given.conversation_id or given.id
    return Chat(id, given.title, nodes, given.current_node, *times, bool(given.is_archived))


def _of_chatgpt(place: _Place) -> Node:
    said = place.message
    if said is None or said.content is None:
        return Node(place.parent, "nothing")
    about = said.metadata or _About()
    kind, role = said.content.content_type, said.author.role
    if kind == "thoughts":
        thoughts = [each.content or each.summary or "" for each in said.content.thoughts or ()]
        return Node(place.parent, "beside", asides=_aside(THINKING, "\n\n".join(filter(None, thoughts))))
    hidden = about.is_visually_hidden_from_conversation or said.weight == 0
    if hidden or kind in UNSAID or role not in ("user", "assistant", "tool"):
        return Node(place.parent, "nothing")
    text, lost = _text(said.content)
    if role == "tool":
        return Node(place.parent, "beside", asides=_aside(RESULT, text), lost=lost)
    if role == "assistant" and said.recipient not in (None, "all"):
        call = msgspec.json.encode({"name": said.recipient, "arguments": {"input": text}}).decode()
        return Node(place.parent, "beside", asides=_aside(CALL, call), lost=lost)
    lost += len(about.attachments or ()) if role == "user" and kind == "text" else 0
    kept: Role = "user" if role == "user" else "assistant"
    if not text:
        text, kept = (MISSING, kept) if lost else ("", "nothing")
    return Node(place.parent, kept, text, time=said.create_time, model=about.model_slug or "ChatGPT", lost=lost)


def _text(content: _Content) -> tuple[str, int]:
    """What can be read of a content, and how many pictures, sounds and files it has, which are not in the export."""
    found, lost = [], 0
    for part in content.parts or ():
        if isinstance(part, str):
            found.append(part)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):  # what was spoken, written down
            found.append(part["text"])
        else:
            lost += 1
    found += [each for each in (content.text, content.result) if each]
    text = _MARKS.sub("", "\n\n".join(filter(None, found)))
    return (f"```\n{text}\n```" if content.content_type == "code" and text else text), lost


def _aside(kind: str, content: str) -> tuple[tuple[str, str], ...]:
    return ((kind, content),) if content.strip() else ()


# Open WebUI


class _Opinion(Struct):
    rating: Any = None
    comment: str | None = None


class _Entry(Struct):
    role: str
    content: Any = ""
    id: str | None = None
    parent: str | None = field(default=None, name="parentId")
    time: float | None = field(default=None, name="timestamp")
    model: str | None = None
    files: list[Any] | None = None
    annotation: _Opinion | None = None


class _History(Struct):
    messages: dict[str, _Entry]
    current: str | None = field(default=None, name="currentId")


class _Body(Struct):
    title: str | None = None
    history: _History | None = None
    messages: list[_Entry] | None = None
    timestamp: float | None = None


class _WebChat(Struct):
    chat: _Body
    id: str | None = None
    title: str | None = None
    created_at: float | None = None
    updated_at: float | None = None
    archived: bool | None = None


def open_webui(raw: msgspec.Raw) -> Chat:
    """A chat of Open WebUI's export; `msgspec.ValidationError` where it is none."""
    given = msgspec.json.decode(raw, type=_WebChat)
    body = given.chat
    if body.history:
        nodes = {id: _of_open_webui(entry, entry.parent) for id, entry in body.history.messages.items()}
        current = body.history.current
    else:
        rows = body.messages or []
        nodes = {str(at): _of_open_webui(entry, str(at - 1) if at else None) for at, entry in enumerate(rows)}
        current = str(len(rows) - 1)
    created = given.created_at or body.timestamp
    return Chat(given.id, given.title or body.title, nodes, current, created, given.updated_at, bool(given.archived))


def _of_open_webui(entry: _Entry, parent: str | None) -> Node:
    if entry.role not in ("user", "assistant"):
        return Node(parent, "nothing")
    text, asides = _unfolded(entry.content if isinstance(entry.content, str) else _written(entry.content))
    pictures, lost = [], 0
    for file in entry.files or ():
        url = file.get("url") if isinstance(file, dict) else None
        if entry.role == "user" and isinstance(url, str) and url.startswith("data:image/"):
            pictures.append(url)
        else:
            lost += 1
    if entry.role == "user":
        text = text or ("" if pictures else MISSING)
        return Node(parent, "user", text, pictures=tuple(pictures), time=entry.time, lost=lost)
    opinion = entry.annotation or _Opinion()
    rating = opinion.rating if opinion.rating in (1, -1) and not isinstance(opinion.rating, bool) else None
    comment = (opinion.comment or "")[:4000] or None
    return Node(
        parent,
        "assistant" if text or asides else "nothing",
        text,
        asides,
        time=entry.time,
        model=entry.model or "Open WebUI",
        rating=rating,
        comment=comment,
        lost=lost,
    )


def _written(content: Any) -> str:
    parts = content if isinstance(content, list) else []
    found = (part.get("text") for part in parts if isinstance(part, dict))
    return "\n\n".join(text for text in found if isinstance(text, str))


def _unfolded(text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The text of an answer, and what Open WebUI has folded into it: thoughts, and calls of tools with their results."""
    rest, asides = [], list[tuple[str, str]]()
    for piece, is_fold in _folds(text):
        given = dict(_ATTRIBUTE.findall(piece[: piece.find(">")])) if is_fold else {}
        if given.get("type") == "reasoning":
            inner = piece[piece.find(">") + 1 : piece.rfind("<")]
            inner = inner[inner.find(_SUMMARY_END) + len(_SUMMARY_END) :] if _SUMMARY_END in inner else inner
            lines = (line.removeprefix("> ").removeprefix(">") for line in unescape(inner).strip().split("\n"))
            asides += _aside(THINKING, "\n".join(lines))
        elif given.get("type") == "tool_calls":
            call = {"name": given.get("name", ""), "arguments": {"input": unescape(given.get("arguments", ""))}}
            asides += _aside(CALL, msgspec.json.encode(call).decode())
            asides += _aside(RESULT, unescape(given.get("result", "")))
        else:
            rest.append(piece)
    return ("".join(rest).strip() if asides else text), tuple(asides)


def _folds(text: str) -> Iterator[tuple[str, bool]]:
    """The text in pieces, and which of them are folds; each character is looked at once."""
    at, end_mark = 0, "</details>"
    while (begin := text.find('<details type="', at)) >= 0 and (end := text.find(end_mark, begin)) >= 0:
        yield text[at:begin], False
        at = end + len(end_mark)
        yield text[begin:at], True
    yield text[at:], False


READERS = {"chatgpt": chatgpt, "open-webui": open_webui}
