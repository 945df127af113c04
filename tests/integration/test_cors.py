"""Pages of other origins, which browsers let read what they are told they may."""

from __future__ import annotations

from tests.engines import Engines
from tests.house import open_house

ORIGIN = "https://page.example"


async def test_a_page_may_call_and_read_the_ids_of_a_run(running: Engines, database_url: str) -> None:
    async with open_house(database_url, redis_url=running.redis_url, cors_origins=(ORIGIN,)) as house:
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        allowed = await house.admin.options("/v1/chat/completions", headers={"origin": ORIGIN, **asked})
        assert allowed.headers["access-control-allow-origin"] == ORIGIN
        body = {"model": "fake_echo_agent", "messages": [{"role": "user", "content": "hi"}]}
        answer = await house.admin.post("/v1/chat/completions", json=body, headers={"origin": ORIGIN})
        shown = answer.headers["access-control-expose-headers"].split(", ")
        for name in ("x-session-id", "x-run-id", "x-request-id"):
            assert name in shown
            assert answer.headers[name]
        stranger = await house.admin.post("/v1/chat/completions", json=body, headers={"origin": "https://else.example"})
        assert "access-control-allow-origin" not in stranger.headers
