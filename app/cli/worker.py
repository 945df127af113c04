"""`chattable worker`: a process without HTTP that does jobs, on any machine that reaches the database."""

from __future__ import annotations

import asyncio
import logging
import signal

import typer
import uvloop

from app.cli.serve import check_folder, check_schema
from app.errors import SettingsError
from app.main import DRAIN_SECONDS, opened, take_jobs
from app.settings import Settings
from app.usecases import runs


def run(settings: Settings, at_once: int) -> None:
    """Do jobs until a signal. What runs then gets the time to end that a server gives it, and is queued again; a second signal hurries."""
    check_folder(settings)
    if settings.database_url is None:
        raise SettingsError(
            "DATABASE_URL is not set: a worker does the jobs of servers that have a database of their own."
        )
    check_schema(settings)
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    uvloop.run(_work(settings, settings.database_url.get_secret_value(), at_once))


async def _work(settings: Settings, database_url: str, at_once: int) -> None:
    stopped, hurried = asyncio.Event(), asyncio.Event()

    def received() -> None:
        (hurried if stopped.is_set() else stopped).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, received)
    async with opened(settings, database_url) as platform:
        take_jobs(platform, settings, at_once)
        typer.echo(f"The worker does up to {at_once} jobs at once.")
        await stopped.wait()
        draining = platform.tasks.start(runs.drain(platform, DRAIN_SECONDS), name="drain")
        hurrying = platform.tasks.start(hurried.wait(), name="hurry")
        await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        await runs.drain(platform, 0)
