"""`chattable worker`: a process without HTTP that does jobs, on any machine that reaches the database."""

from __future__ import annotations

import asyncio
import signal

import typer
import uvloop
from pydantic import SecretStr

from app.cli import garbage
from app.cli.keys import secret_key
from app.cli.serve import check_folder, check_schema
from app.errors import SettingsError
from app.logs import configure
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
    url = settings.database_url.get_secret_value()
    if settings.secret_key is None and (settings.data_dir / "secret.key").is_file():  # of the server on this machine
        settings = settings.model_copy(update={"secret_key": SecretStr(secret_key(settings.data_dir))})
    configure(settings.log_level, as_json=settings.log_format == "json")
    uvloop.run(_work(settings, url, at_once))


async def _work(settings: Settings, database_url: str, at_once: int) -> None:
    stopped, hurried = asyncio.Event(), asyncio.Event()

    def received() -> None:
        (hurried if stopped.is_set() else stopped).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, received)
    async with opened(settings, database_url) as platform:
        garbage.settle()
        take_jobs(platform, settings, at_once)
        typer.echo(f"The worker does up to {at_once} jobs at once.")
        await stopped.wait()
        draining = platform.tasks.start(runs.drain(platform, DRAIN_SECONDS), name="drain")
        hurrying = platform.tasks.start(hurried.wait(), name="hurry")
        await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        await runs.drain(platform, 0)
