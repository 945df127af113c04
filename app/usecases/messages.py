"""Messages: send, edit, regenerate, list, rate, search."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec
from msgspec.structs import replace

from app.agent.request import text_of, tokens_of
from app.domain import Message, Page, Principal, Run, RunStatus, new_id
from app.errors import InvalidInput, NotFound, Unavailable, must_exist
from app.llm.tokens import count
from app.store import messages, sessions
from app.store.operations import AnswerRun, Asks, BeginRun, IdempotencyKey, Repeated
from app.usecases import conduct
from app.usecases.live import LiveRun
from app.usecases.platform import Platform


async def send(
    platform: Platform,
    principal: Principal,
    session_id: UUID,
    content: str,
    *,
    parts: Sequence[Mapping[str, Any]] = (),
    additional_kwargs: Mapping[str, Any] | None = None,
    parent_id: UUID | None = None,
    at_leaf: bool = True,
    key: str | None = None,
    background: bool | None = None,
    batch: bool | None = None,
) -> LiveRun | Run:
    """Store a message and begin to answer it. When this returns both are on disk.

    A message follows the active branch's last one. With `at_leaf` false it follows `parent_id` instead (None: it begins the
    conversation anew), which is how a message is edited: its new version becomes a sibling.

    What goes along with the text is in `parts`, in OpenAI's form. Those that have text themselves are the whole message.

    A `background` message, or one in a session of that mode, is left to a job; with `batch` so that its calls of language models are in
    mode batch.

    Gives the run that is conducted here; or one to follow, which waits its turn in a busy session or for a worker, or which the
    idempotency `key` stands for already.
    """
    extra = additional_kwargs or {}
    message = Message.user(content, id=new_id(), parent_id=parent_id, tokens=count(content), additional_kwargs=extra)
    if parts or not content:
        message = _with_parts(message, parts)
    ids = platform.agents.ids
    wanted = BeginRun(
        principal, session_id, new_id(), message, ids, at_leaf=at_leaf, background=background, batch=batch
    )
    if key is not None:
        wanted = replace(wanted, key=IdempotencyKey(key, _fingerprint(wanted)))
    return await begin(platform, wanted)


def _with_parts(message: Message, parts: Sequence[Mapping[str, Any]]) -> Message:
    """The message with its parts, whose text is its content."""
    if not parts:
        raise InvalidInput("content: it may be empty only beside parts.", param="content")
    if any(part["type"] == "text" for part in parts):
        content = message.content or text_of(parts)
        if content != text_of(parts):
            raise InvalidInput(
                "parts: they have another text than content; leave it out of one of them.", param="parts"
            )
    else:
        content = message.content
        parts = [{"type": "text", "text": content}, *parts] if content else parts
    if all(part["type"] == "text" for part in parts):
        parts = ()
    return replace(message, content=content, parts=parts, tokens=tokens_of(parts or content))


def _fingerprint(wanted: BeginRun) -> bytes:
    """What makes two requests the same."""
    message = wanted.message
    said = [wanted.session_id, message.content, message.additional_kwargs, message.parent_id, wanted.at_leaf]
    beside = ["again"] if wanted.again else [message.parts] if message.parts else []
    return hashlib.sha256(msgspec.json.encode([*said, *beside], order="sorted")).digest()


async def regenerate(
    platform: Platform, principal: Principal, message_id: UUID, *, key: str | None = None
) -> LiveRun | Run:
    """Answer a message once more; the new answer becomes a sibling. An answer's id stands for the message it answers.

    Requests with the same idempotency `key` are one answer.
    """
    async with platform.engine.connect() as db:
        message = await messages.get(db, message_id, owner=principal.owner)
        while message is not None and message.role == "assistant" and message.parent_id is not None:
            message = await messages.get(db, message.parent_id, owner=principal.owner)
    if message is None or message.session_id is None:
        raise NotFound("message", param="message_id")
    wanted = BeginRun(principal, message.session_id, new_id(), message, platform.agents.ids, again=True)
    if key is not None:
        wanted = replace(wanted, key=IdempotencyKey(key, _fingerprint(wanted)))
    return await begin(platform, wanted)


async def begin(platform: Platform, wanted: BeginRun, work: conduct.Work | None = None) -> LiveRun | Run:
    """Store the beginning of a run, and begin to answer it; as `send`. `work` is what there is to do, if not an agent's."""
    if platform.draining.is_set():
        raise Unavailable("The server is shutting down.", retry_after=1)
    if len(platform.live) >= (platform.max_runs // 2 if wanted.principal.gives_way else platform.max_runs):
        raise Unavailable("The server is answering as many messages as it can.", retry_after=1)
    begun = await platform.writer.begin(wanted)
    if isinstance(begun, Asks):
        if wanted.message.parts:
            raise InvalidInput("parts: the agent asks something, and the answer to it is a text.", param="parts")
        given = AnswerRun(wanted.session_id, begun.run_id, wanted.message.content, wanted.key)
        return await conduct.answer_question(platform, given)
    if isinstance(begun, Repeated):
        return begun.run
    if begun.interrupts:
        conduct.stop_all(platform, [begun.interrupts])
    return conduct.start(platform, begun, work) if begun.run.status is RunStatus.RUNNING else begun.run


async def list_page(
    platform: Platform,
    principal: Principal,
    session_id: UUID,
    *,
    after: UUID | None,
    limit: int,
    newest_first: bool = False,
) -> Page[Message]:
    """A session's messages, every branch, oldest first unless the newest are to be."""
    async with platform.engine.connect() as db:
        must_exist(await sessions.get(db, session_id, owner=principal.owner), "session", param="session_id")
        return await messages.list_page(db, session_id, after=after, limit=limit, newest_first=newest_first)


async def get(platform: Platform, principal: Principal, id: UUID) -> Message:
    """A message of the caller."""
    async with platform.engine.connect() as db:
        return must_exist(await messages.get(db, id, owner=principal.owner), "message", param="message_id")


async def rate(platform: Platform, principal: Principal, id: UUID, changes: Mapping[str, Any]) -> Message:
    """Set `rating` (1, -1 or None) and `comment` of an answer; what is not among the changes stays."""
    if not changes:
        raise InvalidInput("Give a rating, a comment, or both.", param="rating")
    async with platform.engine.begin() as db:
        return must_exist(
            await messages.rate(db, id, owner=principal.owner, changes=changes), "answer", param="message_id"
        )


async def find(
    platform: Platform, principal: Principal, query: str, *, after: UUID | None, limit: int
) -> Page[Message]:
    """The caller's messages that have every word of the query, newest first."""
    async with platform.engine.connect() as db:
        return await messages.find(db, principal.user.id, query, after=after, limit=limit)
