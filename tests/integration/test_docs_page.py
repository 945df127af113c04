"""The pages that show the API need nothing from elsewhere, and hold nobody up."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.house import House

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_page_and_all_it_loads_come_from_here(shared: House) -> None:
    client = await shared.client()
    page = await client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {"docs/swagger-ui-bundle.js", "docs/swagger-ui.css", "docs/start.js", "openapi.json"} <= set(loaded)
    for address in loaded:
        assert not re.match(r"\w+://|//", address)
        if not address.startswith("data:"):
            answer = await client.get(f"/{address}")
            assert answer.status_code == 200, address
            assert len(answer.content) > 100
    assert "://" not in (await client.get("/docs/start.js")).text


async def test_the_page_runs_only_scripts_of_this_server(shared: House) -> None:
    page = await (await shared.client()).get("/docs")
    rules = dict(rule.strip().split(" ", 1) for rule in page.headers["content-security-policy"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["connect-src"] == "'self'"
    assert re.findall(r"<script>|\son\w+=", page.text) == []


async def test_scripts_and_styles_have_their_types(shared: House) -> None:
    client = await shared.client()
    for name, kind in (
        ("start.js", "text/javascript"),
        ("swagger-ui-bundle.js", "text/javascript"),
        ("swagger-ui.css", "text/css"),
    ):
        answer = await client.get(f"/docs/{name}")
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_the_first_look_at_the_document_holds_nobody_up(shared: House) -> None:
    shared.app.openapi_schema = None
    client = await shared.client()
    looks = [asyncio.create_task(client.get("/openapi.json")) for _ in range(3)]
    turns = 0
    while not all(look.done() for look in looks):
        await asyncio.sleep(0.001)
        turns += 1
    documents = [look.result() for look in looks]
    assert {document.status_code for document in documents} == {200}
    assert len({document.content for document in documents}) == 1
    assert documents[0].json() == shared.app.openapi()
    assert turns > 2, "it is made in a thread: the loop goes on meanwhile"
