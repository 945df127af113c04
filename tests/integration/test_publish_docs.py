"""docs/publish.md, done as it says."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fakes.upstream import FakeUpstream
from tests.publishing import ROOT, answers, free_port, uvicorn_with

PAGE = (ROOT / "docs/publish.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def off_loop(work: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(work)


async def test_the_page_does_what_it_says(fake: FakeUpstream, tmp_path: Path) -> None:
    agent, client, alone = (block for kind, block in BLOCKS if kind == "python")
    (shell,) = (block for kind, block in BLOCKS if kind == "bash")
    (tmp_path / "served_agent.py").write_text(agent.replace("https://api.openai.com/v1", fake.base_url))
    port = free_port()

    def do() -> None:
        server = uvicorn_with(tmp_path, port, 1)
        try:
            answers(f"http://127.0.0.1:{port}", server)
            said = [
                output(command)
                for command in (
                    ["bash", "-euc", shell.replace(":8000", f":{port}")],
                    [sys.executable, "-c", client.replace(":8000", f":{port}")],
                    [sys.executable, "-c", alone],
                )
            ]
        finally:
            server.terminate()
            server.communicate(timeout=30)
        assert '"content":"hello"' in said[0]
        assert "".join(said[1:]).splitlines() == re.findall(r"^# → (.*)$", client + alone, re.MULTILINE)

    await off_loop(do)
