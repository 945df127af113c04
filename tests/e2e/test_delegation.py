"""What agents have had others do outlives the processes that did it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.e2e.cluster import Cluster, Listener, Server, cluster, slowly, until, words
from tests.integration.test_delegate import RESEARCHER

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]
TEXT = words(60)
AGENTS = (
    '''
from pydantic import BaseModel
from app.agent import BaseAgent, Chattable, Message, Reply


class Chain(Chattable):
    """Has one thing done after the other."""

    id = "chain"

    async def chat(self, message: Message) -> Reply:
        first = await (await self.delegate("simple_openai_agent", "say the first")).text()
        return await self.delegate("simple_openai_agent", f"{message.content}, after {first}")
'''
    + RESEARCHER
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Cluster, Server]]:
    """One server that does no jobs."""
    folder = tmp_path_factory.mktemp("delegation")
    async with cluster(folder, 1, JOBS="0") as made:
        (folder / "agents/delegating.py").write_text(AGENTS)
        yield made, made.servers[0]


async def test_an_answer_after_a_kill_goes_on_to_the_delegate(made: tuple[Cluster, Server]) -> None:
    it, server = made
    ann = await it.user(server, "ann")

    async def is_loaded() -> bool:
        return "researcher" in {agent["id"] for agent in (await ann.post(server, "/ListAgents", {}))["items"]}

    await until(is_loaded, 20)
    id = await ann.session(server, "researcher")
    before = (await it.fake.stats())["hits"]
    assert (await ann.say(server, id, "news"))["content"] == "Publish?"
    server.kill()
    await it.ready()
    assert (await ann.say(server, id, "yes"))["content"] == "You said: You said: Facts in: news"
    assert (await it.fake.stats())["hits"] - before == 2, "the facts once, the translation once"


async def test_the_next_worker_asks_no_delegate_again_that_has_answered(made: tuple[Cluster, Server]) -> None:
    it, server = made
    ben = await it.user(server, "ben")
    id = await ben.session(server, "chain")
    before = (await it.fake.stats())["hits"]
    one = await it.worker()
    body = {"session_id": id, "content": slowly(TEXT, 0.1), "mode": "background"}
    run = (await ben.post(server, "/SendMessage", body))["run_id"]

    async def is_stored() -> bool:
        return bool(await it.rows("SELECT FROM steps WHERE run_id = $1 AND kind = 'agent'", run))

    await until(is_stored, 20, "the first delegation is stored")
    await Listener(ben.follow(server, run)).began(20)
    one.kill()
    await it.worker()

    async def is_over() -> bool:
        return (await ben.get(server, f"/api/v1/runs/{run}"))["ended_at"] is not None

    await until(is_over, 40)
    answer = (await ben.post(server, "/ListMessages", {"session_id": id}))["items"][-1]
    assert answer["content"] == f"{TEXT}, after the first"
    assert (await it.fake.stats())["hits"] - before == 3, "the first once, the second once a worker"
