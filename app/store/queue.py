"""What the house uses of PgQueuer: its tables and its statements.

A ticket carries the id of a job and wakes one worker up; which jobs there are, and who does them, the table `jobs` alone tells. So a
ticket that is lost, or taken twice, does no harm.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

if TYPE_CHECKING:
    from pgqueuer.domain.settings import DBSettings

NAMES = {
    "queue_table": "pgqueuer",
    "queue_table_log": "pgqueuer_log",
    "statistics_table": "pgqueuer_statistics",
    "schedules_table": "pgqueuer_schedules",
    "queue_status_type": "pgqueuer_status",
    "function": "fn_pgqueuer_changed",
    "trigger": "tg_pgqueuer_changed",
    "channel": "ch_pgqueuer",
}
LATER = {"batch_shard": -1, "webhook": -1}
"""Of lower priority: one batch or webhook has hundreds of them, and others' jobs need not wait for all."""
RETURN = "DELETE FROM pgqueuer WHERE dedupe_key = ANY($1::text[])"
SWEEP = "DELETE FROM pgqueuer_log WHERE created < now() - interval '1 day'"


@cache
def load() -> DBSettings:
    """Import PgQueuer, which takes a third of a second: call it first in a thread. Gives its settings, whatever the environment says.

    What it logs of lost connections the consumer tells better.
    """
    from pgqueuer.core import qm  # noqa: F401 - loaded for `app/jobs/manager.py`
    from pgqueuer.domain.settings import DBSettings, Durability

    logging.getLogger("pgqueuer").setLevel(logging.CRITICAL)
    return DBSettings(prefix="", db_schema=None, durability=Durability.balanced, widen_id=True, **NAMES)  # type: ignore[arg-type]  # all names are text


def install_script() -> str:
    """The statements that make PgQueuer's tables, as its locked version wants them."""
    from pgqueuer.adapters.persistence.qb import QueryBuilderEnvironment

    return QueryBuilderEnvironment(load()).build_install_query()


@cache
def _enqueue() -> str:
    from pgqueuer.adapters.persistence.qb import QueryQueueBuilder

    return QueryQueueBuilder(load()).build_enqueue_query(on_conflict="skip")


def _tickets(kinds: Sequence[str], ids: Sequence[UUID], after: float = 0) -> tuple[Any, ...]:
    """The arguments of PgQueuer's statement; there is one ticket of a job at a time. It wakes nobody up for `after` seconds."""
    count = len(ids)
    keys = [str(id) for id in ids]
    return (
        [LATER.get(kind, 0) for kind in kinds],
        list(kinds),
        [id.bytes for id in ids],
        [timedelta(seconds=after)] * count,
        keys,
        [None] * count,
    )


async def issue(db: asyncpg.Connection, kinds: Sequence[str], ids: Sequence[UUID]) -> None:
    """Give each of these jobs a new ticket in place of any older one, whose taker may be dead."""
    if ids:
        await db.execute(RETURN, [str(id) for id in ids])
        await db.execute(_enqueue(), *_tickets(kinds, ids))


async def issue_in(db: AsyncConnection, kinds: Sequence[str], ids: Sequence[UUID], after: float = 0) -> None:
    """The same through SQLAlchemy, for so many seconds later."""
    if ids:
        await db.exec_driver_sql(RETURN, ([str(id) for id in ids],))
        await db.exec_driver_sql(_enqueue(), _tickets(kinds, ids, after))


async def sweep(db: AsyncConnection) -> None:
    """Forget what PgQueuer logged more than a day ago."""
    await db.exec_driver_sql(SWEEP)
