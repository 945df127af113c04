"""What has to be done from time to time, by any replica, as often as one likes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.domain import now
from app.reports import report
from app.store import (
    audit,
    budgets,
    creations,
    credentials,
    ephemeral,
    invites,
    jobs,
    llm_batches,
    memories,
    partitions,
    queue,
    retention,
    runs,
    webhooks,
)
from app.store.database import is_passing

log = logging.getLogger(__name__)

PAUSE_SECONDS = 3600.0
AWAY_SECONDS = 1.0
"""How long to wait for a database that is away."""


class Keeping(NamedTuple):
    """For how many days things are kept; 0 is for ever. Of sessions it is the days since they were used, of steps it is by their kind."""

    sessions: int = 0
    steps: Mapping[str, int] = MappingProxyType({})
    audit: int = 0


FOR_EVER = Keeping()


async def once(engine: AsyncEngine, keeping: Keeping = FOR_EVER) -> None:
    """Make the coming months' partitions, and forget what has ended: tokens, old failed logins, keys, jobs, memories, unused sessions.

    And what is older than it is to be kept.
    """
    await make_partitions(engine)
    async with engine.begin() as db:
        await credentials.sweep(db)
        await invites.sweep(db)
        await runs.sweep_keys(db)
        await creations.sweep(db)
        await budgets.sweep(db)
        await jobs.sweep(db)
        await llm_batches.sweep(db)
        await memories.sweep(db)
        await queue.sweep(db)
        await webhooks.sweep(db)
        if keeping.audit:
            await audit.sweep(db, keeping.audit)
    async with engine.begin() as db:
        await partitions.forget(db, keeping.steps)
    if keeping.steps:
        await _unless_held(engine, partitions.drop_past, "old partitions are dropped at the next upkeep")
    more = True
    while more:
        async with engine.begin() as db:
            more = await ephemeral.sweep(db)
    more = bool(keeping.sessions)
    while more:
        async with engine.begin() as db:
            more = await retention.erase_sessions(db, keeping.sessions)


async def make_partitions(engine: AsyncEngine) -> None:
    """Make those of the coming months: so far ahead that the next time is soon enough when it cannot be now."""
    await _unless_held(engine, partial(partitions.ensure, moment=now()), "partitions are made at the next upkeep")


async def _unless_held(engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[None]], told: str) -> None:
    """Do what locks all of `steps`, in a transaction that does nothing else; not now when others hold it."""
    try:
        async with engine.begin() as db:
            await work(db)
    except DBAPIError as error:
        if not partitions.is_held(error):
            raise
        log.info("steps are in use; %s", told)


async def attempt(engine: AsyncEngine, keeping: Keeping) -> float:
    """Do it `once`; gives the seconds after which to do it again: soon when the database is away, of which the heart tells."""
    try:
        await once(engine, keeping)
    except Exception as error:
        if not is_passing(error):
            raise
        return AWAY_SECONDS
    return PAUSE_SECONDS


async def keep(engine: AsyncEngine, keeping: Keeping, pause: float) -> None:
    """Do it again and again, the first time after `pause` seconds. Belongs in a task."""
    while True:
        await asyncio.sleep(pause)
        try:
            pause = await attempt(engine, keeping)
        except Exception as error:
            report(log, "upkeep failed; trying again", error)
            pause = PAUSE_SECONDS
