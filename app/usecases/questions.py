"""One question to an agent, in a session of its own that is in no list: what a call of an agent as a tool is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any
from uuid import UUID

from redis.exceptions import RedisError

from app.agent.loader import Listed
from app.domain import Message, Principal, Run, new_id
from app.errors import AppError, NotAllowed, NotFound
from app.llm.tokens import count
from app.store import redis
from app.store.operations import BeginRun
from app.usecases import agents, messages, runs
from app.usecases.live import LiveRun
from app.usecases.platform import Platform

log = logging.getLogger(__name__)


async def answerers(platform: Platform, principal: Principal) -> list[Listed]:
    """The agents of files that the caller may ask and that can answer, by id."""
    found = {each.id: each for each in await agents.list_all(platform, principal) if each.id and each.available}
    return [found[id] for id in sorted(found)]


@asynccontextmanager
async def asked(
    platform: Platform,
    principal: Principal,
    agent_id: str,
    content: str,
    params: Mapping[str, Any],
    *,
    name: str | None = None,
) -> AsyncIterator[LiveRun]:
    """The run that answers. It is cancelled when the block is left before its end, and by `cancel` under a `name` of the caller's.

    `NotFound` for an agent that there is not, or that the caller may not use; `InvalidInput` names the parameter at fault.
    """
    try:
        given = await agents.check(platform, principal.user, agent_id, params)
    except NotAllowed:
        raise NotFound("agent", param="agent.id") from None
    message = Message.user(content, id=new_id(), tokens=count(content))
    wanted = BeginRun(
        principal,
        new_id(),
        new_id(),
        message,
        platform.agents.ids,
        agent_id=agent_id,
        agent_params=given,
        ephemeral=True,
        background=False,
    )
    # In a task of its own, for a caller who leaves in this moment must not leave a run behind that nobody knows.
    beginning = platform.tasks.start(_begun(platform, wanted), name="question")
    try:
        begun = await asyncio.shield(beginning)
        if isinstance(begun, AppError):
            raise begun
        if name and platform.redis:
            await _named(platform.redis, _key(principal, name), begun.run.id, platform.run_timeout)
        yield begun
    finally:
        beginning.add_done_callback(_leave)


async def cancel(platform: Platform, principal: Principal, name: str) -> None:
    """End the run that the caller gave this name, whichever process conducts it. One that is not known is no error."""
    if platform.redis is None:
        return
    try:
        run_id = await redis.named_run(platform.redis, _key(principal, name))
        if run_id is not None:
            await runs.cancel(platform, principal, run_id)
    except (NotFound, RedisError, OSError, TimeoutError) as error:
        log.warning("a question could not be cancelled: %s", type(error).__name__)


def _key(principal: Principal, name: str) -> str:
    return sha256(f"{principal.user.id} {name}".encode()).hexdigest()


async def _named(client: redis.Client, key: str, run_id: UUID, seconds: float) -> None:
    try:
        await redis.name_run(client, key, run_id, seconds)
    except (RedisError, OSError, TimeoutError) as error:  # it can still be left
        log.warning("a question has no name: %s", type(error).__name__)


async def _begun(platform: Platform, wanted: BeginRun) -> LiveRun | AppError:
    try:
        live: LiveRun | Run = await messages.begin(platform, wanted)
    except AppError as error:  # for who asked, and not for the log of tasks
        return error
    assert isinstance(live, LiveRun)  # noqa: S101 - a new session is never busy
    return live


def _leave(beginning: asyncio.Task[LiveRun | AppError]) -> None:
    if beginning.cancelled() or beginning.exception():
        return
    begun = beginning.result()
    if isinstance(begun, LiveRun) and begun.log.outcome is None:
        begun.end("cancel")
