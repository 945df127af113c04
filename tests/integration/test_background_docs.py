"""docs/background.md, done as it says."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest

from app.api.webhooks import Event
from app.store import beginnings, jobs
from app.store import webhooks as hooks
from app.usecases import courier, schedules, webhooks
from tests.engines import Engines
from tests.house import ADMIN_KEY, AGENTS, House

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/background.md").read_text()
(BASH,), (COMMAND,) = (
    re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for kind in ("bash", "text")
)


async def test_the_pages_shell_prints_what_it_says(house: House, tmp_path: Path) -> None:
    if not (shutil.which("bash") and shutil.which("curl")):
        pytest.skip("bash and curl are needed to follow the page")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/admin.key").write_text(f"{ADMIN_KEY}\n")
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euc", BASH.replace("http://127.0.0.1:8080", house.url)),
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert output.decode().split() == re.findall(r"^# → (.*)$", BASH, re.MULTILINE)


async def test_the_pages_worker_starts_and_ends(running: Engines, database_url: str, tmp_path: Path) -> None:
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "AGENTS_DIR": str(AGENTS)}
    given |= {"DATABASE_URL": database_url, "REDIS_URL": running.redis_url}
    words = [sys.executable, "-m", "app.cli", *COMMAND.split()[1:]]
    process = await asyncio.create_subprocess_exec(*words, cwd=tmp_path, env=given, stdout=asyncio.subprocess.PIPE)
    assert process.stdout
    assert await process.stdout.readline() == b"The worker does up to 20 jobs at once.\n"
    process.send_signal(signal.SIGTERM)
    assert await process.communicate() == (b"", None)
    assert process.returncode == 0


@pytest.mark.parametrize(("database", "sentence"), [("", "DATABASE_URL is not set"), ("postgres", "chattable migrate")])
async def test_a_worker_without_its_database_ends_with_a_sentence(
    running: Engines, tmp_path: Path, database: str, sentence: str
) -> None:
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "AGENTS_DIR": str(AGENTS)}
    given |= {"DATABASE_URL": running.database_url} if database else {}
    words = [sys.executable, "-m", "app.cli", "worker"]
    process = await asyncio.create_subprocess_exec(*words, cwd=tmp_path, env=given, stderr=asyncio.subprocess.PIPE)
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert sentence in errors.decode()
    assert len(errors.splitlines()) == 1


def test_the_pages_limits_are_those_of_the_code() -> None:
    assert (beginnings.MAX_BACKGROUND, beginnings.MAX_QUEUED, jobs.MAX_LOST) == (100, 20, 3)
    assert "100 background messages" in PAGE
    assert "20 messages in one session" in PAGE
    assert "three processes" in PAGE
    assert (schedules.MAX_SCHEDULES, webhooks.MAX_WEBHOOKS, hooks.KEPT_DAYS) == (100, 20, 30)
    waits = (5, 5 * 60, 30 * 60, *(hours * 3600 for hours in (2, 5, 10, 14, 20, 24)))
    assert courier.SEND_SECONDS == 10
    assert waits == webhooks.RETRY_SECONDS
    assert (hooks.FAILING, webhooks.REST_SECONDS, webhooks.RETRIED_SECONDS // 3600) == (5, 60, 75)


def test_the_page_names_every_event() -> None:
    listed = PAGE.partition("`events` are any of")[2].partition("Of runs,")[0]
    assert set(re.findall(r"`([a-z]+\.[a-z]+)`", listed)) == set(get_args(Event))


def test_the_pages_check_of_a_signature_is_right() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    defined: dict[str, Any] = {}
    exec(code, defined)  # noqa: S102 - the page's own
    at, body = int(time.time()), '{"x": 1}'
    headers = {"webhook-id": "1", "webhook-timestamp": str(at)}
    headers["webhook-signature"] = f"v1,other {courier.signature(b'secret', '1', at, body)}"
    assert defined["is_ours"](courier.shown_secret(b"secret"), headers, body.encode())
    assert not defined["is_ours"](courier.shown_secret(b"Secret"), headers, body.encode())
    assert not defined["is_ours"](courier.shown_secret(b"secret"), headers, b"{}")
