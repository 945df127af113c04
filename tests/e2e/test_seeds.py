"""The curl commands of seed 003, as its document shows them, under `AUTH=open`."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

from tests.fakes.upstream import FakeUpstream
from tests.house import open_house

DOCUMENT = Path(__file__).parents[3] / "shared/seeds/003_eecf6e02a5ae584d.txt"
EQUIVALENT = """
```shell
curl --location '127.0.0.1:8080/CreateSession' \\
--header 'Content-Type: application/json' \\
--data '{"user_id": 1, "agent": {"id": "simple_openai_agent"}}'
```
```shell
curl --location '127.0.0.1:8080/ListSessions' \\
--header 'Content-Type: application/json' \\
--data '{"user_id": 1}'
```
```shell
curl --location '127.0.0.1:8080/SendMessage' \\
--header 'Content-Type: application/json' \\
--data '{"session_id": "b36a53ea-b37d-4ea4-9c56-47a4195eb88f", "content": "What was the first thing I said?"}'
```
"""


def commands() -> list[str]:
    text = DOCUMENT.read_text() if DOCUMENT.exists() else EQUIVALENT
    return re.findall(r"```shell\n(.*?)```", text, re.DOTALL)


async def run(command: str, address: str) -> dict[str, object]:
    command = command.replace("127.0.0.1:8080", address).replace("curl ", "curl -sS --noproxy '*' ", 1)
    process = await asyncio.create_subprocess_exec("bash", "-c", command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return dict(json.loads(output))


async def test_the_seeds_curl_commands_work(database_url: str, fake: FakeUpstream) -> None:
    create, list_sessions, send = commands()
    async with open_house(database_url, auth="open", openai_base_url=fake.base_url) as house:
        address = house.url.removeprefix("http://")
        made = await run(create, address)
        assert made.keys() == {"id"}
        listed = await run(list_sessions, address)
        (item,) = listed["items"]  # type: ignore[misc]
        assert (item["id"], item["user_id"]) == (made["id"], 1)
        unknown = await run(send, address)
        assert (unknown["status"], unknown["code"]) == (404, "not_found")
        answer = await run(send.replace("b36a53ea-b37d-4ea4-9c56-47a4195eb88f", str(made["id"])), address)
        assert answer["type"] == "ai"
        assert answer["content"] == "What was the first thing I said?"
        assert "create_at" in answer["additional_kwargs"]  # type: ignore[operator]
