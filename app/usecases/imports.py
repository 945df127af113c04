"""Chats that were exported by ChatGPT or Open WebUI become sessions of the caller, each once.

A chat keeps its branches, times and title. What stood beside an answer (thoughts, calls of tools and their results) stands beside it here
too, so that no model is sent a tool's result that it has not called for. Instructions and what is hidden there are left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Literal, NamedTuple
from uuid import UUID

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from app.domain import Principal, SessionParams, new_id, now
from app.errors import InvalidInput
from app.journal.log import MAX_BYTES as MAX_ANSWER
from app.store import imports
from app.usecases import agents, copies, sessions
from app.usecases.foreign_forms import READERS, Chat, Name, Node
from app.usecases.platform import Platform
from app.usecases.session_form import (
    EARLIEST,
    MAX_MESSAGES,
    AgentPart,
    Document,
    MessagePart,
    SessionPart,
    sentence,
)

MAX_CHATS = 1000
MAX_TITLE = 200
MILLISECONDS = 1e11
"""A time above is not in seconds: it would be after the year 5000."""
Link = tuple["Link | None", tuple[tuple[str, str], ...]]
"""What stood beside, latest first: a list that branches share."""


class Outcome(Struct, frozen=True):
    """What became of the chat at `index` of the file. `left_out` counts the pictures, sounds and files that the export does not have."""

    index: int
    status: Literal["made", "known", "empty", "refused"]
    title: str | None = None
    session_id: UUID | None = None
    left_out: int = 0
    error: str | None = None
    param: str | None = None


class _Probe(Struct):
    """What tells the platforms' chats from each other, not yet decoded."""

    mapping: Raw = Raw()
    chat: Raw = Raw()

    @property
    def name(self) -> Name | None:
        """Whose chat it is."""
        return "chatgpt" if bytes(self.mapping) else "open-webui" if bytes(self.chat) else None


class _Known(Exception):
    """Another request has made a session of the chat meanwhile."""


def is_session(body: bytes) -> bool:
    """Whether a body is to be read as a session's own document, and not as chats of another platform. Any object is, but one chat."""
    first = body.lstrip()[:1]
    if first != b"{":
        return first != b"["
    try:
        probe = msgspec.json.decode(body, type=_Probe)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return True
    return probe.name is None


async def take(
    platform: Platform, principal: Principal, body: bytes, *, agent: str | None, form: Name | None
) -> tuple[Name, Sequence[Outcome]]:
    """Sessions of the caller with `agent`, made of an export's chats; the platform it is of, and what became of each chat.

    A chat that was imported before stays as it is here. Each is stored whole or not at all, and one that cannot be read holds up no
    other. `InvalidInput` when nothing of the file can be; errors of the agent as for any session.
    """
    pieces, name = await asyncio.to_thread(_split, body, form)
    if agent is None:
        raise InvalidInput("agent: name the agent that is to go on with the chats.", param="agent")
    params = SessionParams()
    chosen = await agents.choose(platform, principal.user, agent, {}, params, sees_all=principal.owner is None)
    found = []
    for index, piece in enumerate(pieces):
        try:
            found.append(await _one(platform, principal, chosen, index, piece, name))
        except InvalidInput as error:
            found.append(Outcome(index, "refused", error=error.message, param=error.param))
    return name, found


def _split(body: bytes, form: Name | None) -> tuple[Sequence[Raw], Name]:
    """The chats of a file, each still as text, and whose they are."""
    try:
        pieces = msgspec.json.decode(body, type=list[Raw]) if body.lstrip()[:1] == b"[" else [Raw(body)]
        probe = msgspec.json.decode(pieces[0], type=_Probe) if pieces else _Probe()
    except RecursionError:
        raise InvalidInput("The body is nested too deep.") from None
    except msgspec.ValidationError as error:
        raise sentence(str(error), "[0]") from None
    except (msgspec.MsgspecError, UnicodeError):
        raise InvalidInput("The body is not valid JSON.") from None
    if len(pieces) > MAX_CHATS:
        raise InvalidInput(f"body: at most {MAX_CHATS} chats are taken at once.", param="body")
    name = form or probe.name
    if name is None:
        raise InvalidInput("body: it is an export neither of ChatGPT nor of Open WebUI.", param="body")
    return pieces, name


async def _one(
    platform: Platform, principal: Principal, chosen: agents.Choice, index: int, piece: Raw, name: Name
) -> Outcome:
    chat = await asyncio.to_thread(_read, piece, name, f"[{index}]")
    user, moment = principal.user, now()
    key = chat.id.encode(errors="replace") if chat.id else sha256(piece).digest()
    digest = sha256(name.encode() + b"\0" + key).digest()
    title = _title(chat.title)
    async with platform.engine.connect() as db:
        known = await imports.find(db, user.id, digest)
    if known:
        return Outcome(index, "known", title, known)
    document, left_out = await asyncio.to_thread(_document, chat, f"[{index}]", chosen.agent_id, moment)
    if not document.messages:
        return Outcome(index, "empty", title, left_out=left_out)
    last = max(message.created_at for message in document.messages)
    session = replace(
        sessions.new(user, chosen, title),
        created_at=document.session.created_at,
        updated_at=_time(chat.updated, last, moment),
        archived_at=moment if chat.is_archived else None,
    )
    rows = await asyncio.to_thread(copies.rows_of, document, session, moment)
    try:
        async with platform.engine.begin() as db:
            await copies.add(db, session, rows)
            if not await imports.claim(db, user.id, digest, session.id):
                raise _Known
    except _Known:
        async with platform.engine.connect() as db:
            return Outcome(index, "known", title, await imports.find(db, user.id, digest))
    return Outcome(index, "made", title, session.id, left_out)


def _read(piece: Raw, name: Name, place: str) -> Chat:
    try:
        return READERS[name](piece)
    except RecursionError:
        raise InvalidInput(f"{place}: it is nested too deep.", param=place) from None
    except msgspec.ValidationError as error:
        raise sentence(str(error), place) from None
    except (msgspec.MsgspecError, UnicodeError):
        raise InvalidInput(f"{place}: it is not valid JSON.", param=place) from None


def _title(given: str | None) -> str | None:
    return " ".join("".join(each if each.isprintable() else " " for each in given or "").split())[:MAX_TITLE] or None


def _time(given: float | None, otherwise: datetime, moment: datetime) -> datetime:
    """A time of a file, in seconds since 1970 or in thousandths of them, no later than `moment`."""
    if given is None or given <= 0:
        return otherwise
    while given > MILLISECONDS:
        given /= 1000
    return min(max(datetime.fromtimestamp(given, UTC), EARLIEST), moment)


# The tree


class _Growing(NamedTuple):
    """The end of a branch while a chat is walked: its last message, and what stood beside since."""

    message: MessagePart | None
    beside: Link | None


def _document(chat: Chat, place: str, agent_id: str, moment: datetime) -> tuple[Document, int]:
    """The chat as a session's document, and how much of it is left out. `InvalidInput` names what is too large."""
    begun = _time(chat.created, moment, moment)
    ends: dict[str, _Growing] = {}
    messages: list[MessagePart] = []
    left_out, room = len(chat.nodes), copies.MAX_BYTES
    for id, node in _walked(chat):
        left_out += node.lost - 1
        end = ends.get(node.parent or "", _Growing(None, None))
        if node.role in ("nothing", "beside"):
            ends[id] = _Growing(end.message, (end.beside, node.asides) if node.asides else end.beside)
            continue
        made = _message(node, end, begun, moment)
        size = len(made.content) + sum(len(aside["content"]) for aside in made.additional_kwargs.get("asides", ()))
        room -= size + sum(map(len, node.pictures))
        if len(made.content) > MAX_ANSWER or room < 0 or len(messages) == MAX_MESSAGES:
            raise InvalidInput(f"{place}: what is said at {id[:100]} is too long, or too much.", param=place)
        messages.append(made)
        ends[id] = _Growing(made, None)
    leaf = ends[chat.current].message if chat.current in ends else None
    leaf = leaf or (messages[-1] if messages else None)
    session = SessionPart(AgentPart(agent_id), begun, leaf_id=leaf.id if leaf else None)
    return Document("chattable.session", 1, session, messages, []), left_out


def _walked(chat: Chat) -> Iterator[tuple[str, Node]]:
    """Every node after its parent, branch by branch; one whose parent is not there begins a tree. What is in a circle is not met."""
    below: dict[str | None, list[str]] = {}
    for id, node in chat.nodes.items():
        below.setdefault(node.parent if node.parent in chat.nodes else None, []).append(id)
    waiting = below.pop(None, [])[::-1]
    while waiting:
        id = waiting.pop()
        yield id, chat.nodes[id]
        waiting += below.pop(id, [])[::-1]


def _message(node: Node, end: _Growing, begun: datetime, moment: datetime) -> MessagePart:
    content = node.content.replace("\x00", "")
    is_answer = node.role == "assistant"
    asides = [*_together(end.beside), *node.asides] if is_answer else []
    said = [{"content_type": kind, "content": text.replace("\x00", "")} for kind, text in asides]
    beside = [{"type": "text", "text": content}] if content else []
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in node.pictures]
    return MessagePart(
        new_id(),
        "assistant" if is_answer else "user",
        content,
        _time(node.time, end.message.created_at if end.message else begun, moment),
        end.message.id if end.message else None,
        parts=[*beside, *pictures] if pictures else [],
        additional_kwargs={"asides": said} if said else {},
        agent_id=_title(node.model) if is_answer else None,
        rating=1 if node.rating == 1 else -1 if node.rating else None,
        comment=node.comment.replace("\x00", "") if node.comment and is_answer else None,
    )


def _together(link: Link | None) -> Sequence[tuple[str, str]]:
    found: list[tuple[tuple[str, str], ...]] = []
    while link:
        link, asides = link
        found.append(asides)
    return [aside for asides in reversed(found) for aside in asides]


def tally(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many chats became what."""
    return {status: sum(each.status == status for each in outcomes) for status in ("made", "known", "empty", "refused")}
