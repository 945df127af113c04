"""Takes jobs as PgQueuer's tickets wake it up, and does so many at once. It outlives its connection, and every job."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg

from app.jobs.kinds import Work
from app.jobs.manager import open_manager
from app.reports import report
from app.store import jobs, queue
from app.store.database import is_passing
from app.usecases.platform import Platform

if TYPE_CHECKING:
    from pgqueuer.core.qm import QueueManager
    from pgqueuer.domain.models import Job as Ticket

log = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0
"""Between two connections."""
LISTEN_SECONDS = timedelta(seconds=10)
"""How often it is looked whether notifications arrive, and how long one may take."""


class Consumer:
    """One for the process; `run()` does the work and belongs in a task. It ends when the platform drains."""

    def __init__(
        self,
        platform: Platform,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        kinds: Mapping[str, Work],
        at_once: int,
    ) -> None:
        self._platform = platform
        self._connect = connect
        self._kinds = kinds
        self._at_once = at_once
        self._room = asyncio.Semaphore(at_once)

    async def run(self) -> None:
        """Take jobs until the platform drains, over one connection after another."""
        await asyncio.to_thread(queue.load)
        while not self._platform.draining.is_set():
            try:
                await self._consume()
            except Exception as error:
                if not is_passing(error):
                    report(log, "jobs cannot be taken; trying again", error)
                else:
                    log.debug("no jobs can be taken (%s)", type(error).__name__)  # the heart has told why
            await asyncio.sleep(PAUSE_SECONDS)

    async def _consume(self) -> None:
        """Take jobs until the platform drains or the connection ends."""
        connection = await self._connect()
        manager = open_manager(connection)
        for kind, work in self._kinds.items():
            manager.entrypoint(kind, accepts_context=False)(partial(self._take, manager, work))
        tasks = self._platform.tasks
        watching = [
            tasks.start(self._until_draining(manager), name="drained jobs"),
            tasks.start(_check_listening(manager, connection), name="listener of jobs"),
        ]
        try:
            await manager.run(
                batch_size=1, max_concurrent_tasks=max(2, self._at_once), log_aggregation_interval=timedelta(0)
            )
        finally:
            for task in watching:
                task.cancel()
            connection.terminate()

    async def _until_draining(self, manager: QueueManager) -> None:
        await self._platform.draining.wait()
        manager.shutdown.set()

    async def _take(self, manager: QueueManager, work: Work, ticket: Ticket) -> None:
        """Do a job, in a task that outlives the connection. The ticket is done with when the job is, or when its manager ends."""
        assert ticket.payload  # noqa: S101 - `store/queue.py` wrote it
        tasks = self._platform.tasks
        working = tasks.start(self._work(work, UUID(bytes=ticket.payload)), name="job")
        ending = tasks.start(manager.shutdown.wait(), name="job's ticket")
        await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()

    async def _work(self, work: Work, id: UUID) -> None:
        async with self._room:
            if self._platform.draining.is_set():
                return
            try:
                async with self._platform.engine.connect() as db:
                    job = await jobs.get(db, id)
                if job is not None:
                    await work(self._platform, job)
            except Exception as error:
                if not is_passing(error):  # the job is queued still, and gets another ticket
                    report(log, f"job {id} failed", error)


async def _check_listening(manager: QueueManager, connection: asyncpg.Connection) -> None:
    """End a connection over which no notification arrives: the other side may be gone without a word."""
    while True:
        await asyncio.sleep(LISTEN_SECONDS.total_seconds())
        try:
            await manager.listener_healthy(LISTEN_SECONDS)
        except Exception:
            connection.terminate()
            return
