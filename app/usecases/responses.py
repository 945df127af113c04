"""Responses: runs, as the Responses API of OpenAI sees them.

Without a conversation a response has a session that nothing lists. The next request continues it from this answer, in a branch of its
own where another answer follows already. Whoever answers, the session is the same: each run has its own agent.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

from msgspec.structs import replace

from app.domain import Message, Preset, Principal, Run, new_id
from app.errors import Conflict, NotFound, must_exist
from app.store import messages, runs, sessions
from app.store.operations import BeginRun
from app.usecases import messages as messages_usecase
from app.usecases import runs as runs_usecase
from app.usecases import sessions as sessions_usecase
from app.usecases.completions import (
    agent_of,
    check_params,
    check_results,
    for_preset,
    key_of,
    preset_of,
    stored_form,
    wish,
)
from app.usecases.conversations import get as get_conversation
from app.usecases.live import LiveRun
from app.usecases.platform import Platform
from app.usecases.windows import MAX_MESSAGES, MAX_TOKENS

EVERYTHING = 2**31 - 1
"""More tokens than any input has."""


async def begin(
    platform: Platform,
    principal: Principal,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    *,
    echo: Mapping[str, Any] | None,
    conversation_id: UUID | None = None,
    previous_id: UUID | None = None,
    key: str | None = None,
) -> LiveRun | Run:
    """Begin to answer the messages of a request in the form of chat completions, which follow the conversation or the previous response.

    `echo` is what the response is to repeat of its request when it is asked for later; None for one that is not kept: it leaves nothing
    in the session it follows. Requests with the same idempotency `key` are one.
    """
    session_id, leaf_id = await _place(platform, principal, conversation_id, previous_id)
    preset = await preset_of(platform, principal, body["model"])
    if echo is None:
        wanted = await _unkept(platform, principal, body, headers, leaf_id, preset)
    else:
        agent_id = preset.agent_id if preset else agent_of(platform, body["model"])
        if preset is None:
            check_params(platform, agent_id)
        body = for_preset(body, preset)
        *before, message = stored_form(body["messages"])
        wanted = BeginRun(
            principal,
            session_id or new_id(),
            new_id(),
            replace(message, parent_id=None if conversation_id else leaf_id),
            platform.agents.ids,
            at_leaf=previous_id is None,
            agent_id=agent_id,
            ephemeral=session_id is None,
            preset=preset,
            request={"body": body, "headers": headers},
            before=before,
            background=bool(echo.get("background")),
            echo={**echo, "messages": len(body["messages"])},
        )
        await check_results(platform, wanted, leaf_id)
    if key is not None:
        wanted = replace(wanted, key=key_of(wanted, key))
    return await messages_usecase.begin(platform, wanted)


async def _place(
    platform: Platform, principal: Principal, conversation_id: UUID | None, previous_id: UUID | None
) -> tuple[UUID | None, UUID | None]:
    """The session that a request continues, and the message that it follows."""
    if conversation_id is not None:
        return conversation_id, (await get_conversation(platform, principal, conversation_id)).leaf_id
    if previous_id is None:
        return None, None
    try:
        run, _ = await get(platform, principal, previous_id)
    except NotFound as error:
        raise NotFound("response", param="previous_response_id") from error
    if not run.status.is_final:
        raise Conflict("The previous response is not complete yet.", param="previous_response_id")
    async with platform.engine.connect() as db:
        answers = (await messages.of_runs(db, [run.id])).get(run.id, ())
    return run.session_id, answers[-1].id if answers else run.message_id


async def _unkept(
    platform: Platform,
    principal: Principal,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    leaf_id: UUID | None,
    preset: Preset | None,
) -> BeginRun:
    """A request whose history goes with it, so that nothing of it stays where it came from."""
    if leaf_id is not None:
        async with platform.engine.connect() as db:
            history = await messages.window(db, leaf_id, max_tokens=MAX_TOKENS, max_messages=MAX_MESSAGES)
        body = {**body, "messages": [*(message.to_openai() for message in history), *body["messages"]]}
    return wish(platform, principal, body, headers, None, preset)


async def get(platform: Platform, principal: Principal, id: UUID) -> tuple[Run, Mapping[str, Any]]:
    """A response of the caller, and what it repeats of its request."""
    async with platform.engine.connect() as db:
        return must_exist(await runs.get_response(db, id, owner=principal.owner), "response", param="response_id")


async def cancel(platform: Platform, principal: Principal, id: UUID) -> None:
    """End a response early; what it said so far is kept."""
    await get(platform, principal, id)
    await runs_usecase.cancel(platform, principal, id)


async def delete(platform: Platform, principal: Principal, id: UUID) -> None:
    """Forget a response, and cancel it if it goes on. Its messages stay in its conversation; without one they are erased with the last
    of the responses that continue each other.
    """
    run, _ = await get(platform, principal, id)
    if not run.status.is_final:
        await runs_usecase.cancel(platform, principal, id)
    async with platform.engine.begin() as db:
        must_exist(
            await sessions.get(db, run.session_id, owner=principal.owner, lock=True), "response", param="response_id"
        )
        is_last = await runs.forget_response(db, id, run.session_id)
    if is_last:
        await sessions_usecase.delete(platform, principal, run.session_id)


async def input_of(platform: Platform, principal: Principal, id: UUID) -> Sequence[Message]:
    """The messages of a response's own input. While it waits for its turn there are none yet."""
    run, echo = await get(platform, principal, id)
    async with platform.engine.connect() as db:
        return await messages.window(db, run.message_id, max_tokens=EVERYTHING, max_messages=echo["messages"])


async def find_messages(
    platform: Platform, principal: Principal, ids: Collection[UUID]
) -> tuple[Sequence[Message], Mapping[UUID, Run]]:
    """Messages of the caller by their own ids, and the answers of runs of the caller by those, with the runs."""
    async with platform.engine.connect() as db:
        own = await messages.by_ids(db, list(ids), owner=principal.owner)
        found = await runs.stored(db, list(ids))
        given = {id: run for id, run in found.items() if principal.owner in (None, run.user_id)}
        answers = await messages.of_runs(db, list(given))
    return [*own, *(message for said in answers.values() for message in said)], given
