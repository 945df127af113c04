"""What has to be done from time to time, by any replica, as often as one likes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
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
FAILED_SECONDS = 600.0
"""And after an error, such as a statement that took too long: it would soon be no better."""
SWEEPS = (
    credentials.sweep,
    invites.sweep,
    runs.sweep_keys,
    creations.sweep,
    budgets.sweep,
    jobs.sweep,
    llm_batches.sweep,
    memories.sweep,
    queue.sweep,
    webhooks.sweep,
)


class Keeping(NamedTuple):
    """For how many days things are kept; 0 is for ever. Of sessions it is the days since they were used, of steps it is by their kind."""

    sessions: int = 0
    steps: Mapping[str, int] = MappingProxyType({})
    audit: int = 0


FOR_EVER = Keeping()


async def once(engine: AsyncEngine, keeping: Keeping = FOR_EVER) -> None:
    """Make the coming months' partitions, and forget what has ended: tokens, old failed logins, keys, jobs, memories, unused sessions.

    And what is older than it is to be kept. A part that fails keeps no other from being done; their errors come together at the end.
    """
    errors: list[Exception] = []
    for part in _parts(keeping):
        try:
            await part(engine)
        except Exception as error:
            errors.append(error)
    if errors:
        raise ExceptionGroup("upkeep", errors)


def _parts(keeping: Keeping) -> Iterator[Callable[[AsyncEngine], Awaitable[None]]]:
    yield make_partitions
    yield from (partial(_all, sweep) for sweep in SWEEPS)
    if keeping.audit:
        yield partial(_all, partial(audit.sweep, days=keeping.audit))
    if keeping.steps:
        yield partial(_forget_steps, days=keeping.steps)
        yield _drop_past
    yield partial(_all, ephemeral.sweep)
    if keeping.sessions:
        yield partial(_all, partial(retention.erase_sessions, days=keeping.sessions))


async def _all(sweep: Callable[[AsyncConnection], Awaitable[bool | None]], engine: AsyncEngine) -> None:
    """Sweep in pieces, as long as there may be more."""
    more: bool | None = True
    while more:
        async with engine.begin() as db:
            more = await sweep(db)


async def _forget_steps(engine: AsyncEngine, days: Mapping[str, int]) -> None:
    place: partitions.Place | None = partitions.START
    while place:
        async with engine.begin() as db:
            place = await partitions.forget(db, days, place)


async def _drop_past(engine: AsyncEngine) -> None:
    await _unless_held(engine, partitions.drop_past, "old partitions are dropped at the next upkeep")


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


async def begin(engine: AsyncEngine) -> None:
    """Do what nobody can be served without. While the database is away nobody can, and it is done with the rest."""
    try:
        await make_partitions(engine)
    except Exception as error:
        if not is_passing(error):
            raise


async def attempt(engine: AsyncEngine, keeping: Keeping) -> float:
    """Do it `once`; gives the seconds after which to do it again: soon when the database is away, of which the heart tells."""
    try:
        await once(engine, keeping)
    except ExceptionGroup as group:
        told = [error for error in group.exceptions if isinstance(error, TimeoutError) or not is_passing(error)]
        for error in told:
            report(log, "a part of the upkeep failed; trying again", error)
        return FAILED_SECONDS if told else AWAY_SECONDS
    return PAUSE_SECONDS


async def keep(engine: AsyncEngine, keeping: Keeping) -> None:
    """Do it again and again. Belongs in a task."""
    while True:
        pause = await attempt(engine, keeping)
        await asyncio.sleep(pause)
