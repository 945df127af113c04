"""PgQueuer's manager over one connection: it ends with the connection, and no failed statement leaves it half alive."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg

from app.store import queue

if TYPE_CHECKING:
    from pgqueuer.core.qm import QueueManager

POLL = timedelta(seconds=0.5)
"""How soon a full worker looks again; the end of one of its jobs wakes it up earlier."""


def open_manager(connection: asyncpg.Connection) -> QueueManager:
    """PgQueuer's manager over a connection of its own. It shuts down when the connection ends; one that failed is ended."""
    from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
    from pgqueuer.adapters.persistence.qb import (
        QueryBuilderEnvironment,
        QueryQueueBuilder,
        QuerySchedulerBuilder,
    )
    from pgqueuer.adapters.persistence.queries import Queries
    from pgqueuer.core.qm import QueueManager

    class Driver(AsyncpgDriver):
        async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
            try:
                return await super().fetch(query, *args)
            except Exception:
                connection.terminate()
                raise

    names = queue.load()
    queries = Queries(
        Driver(connection), QueryBuilderEnvironment(names), QueryQueueBuilder(names), QuerySchedulerBuilder(names)
    )
    made = QueueManager(queries, channel=names.channel)
    made.min_dequeue_poll_interval = POLL
    connection.add_termination_listener(lambda _: made.shutdown.set())
    return made
