"""One step of a run done anew and the rest from the journal; whole runs replayed; runs compared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import House, open_house, send, session

AGENT = '''
import asyncio
from pathlib import Path

from app.agent import BaseAgent, Chattable, Message, tool

CALLS = []


@tool
async def mail(to: str) -> str:
    """Sends a letter."""
    CALLS.append(to)
    return f"sent {len(CALLS)} to {to}"


async def outline(text: str) -> str:
    CALLS.append(text)
    return f"outline {len(CALLS)} of {text}"


class Chain(Chattable):
    """Twenty calls, each of which has what the last one gave."""

    id = "chain"

    async def chat(self, message: Message) -> str:
        said = message.content
        for number in range(20):
            said = str(await self.llm.ainvoke(f"say {number} after {said[:20]}"))
        return said


class Fan(Chattable):
    """Forty calls at once, six of them equal, and one of what they give."""

    id = "fan"

    async def chat(self, message: Message) -> str:
        asked = (self.llm.ainvoke(f"say part {max(number, 5)}") for number in range(40))
        parts = await asyncio.gather(*asked)
        return str(await self.llm.ainvoke("say " + "+".join(parts)))


class Mailer(Chattable):
    """Calls a tool as the model wants."""

    id = "mailer"
    tools = [mail]

    async def chat(self, message: Message) -> str:
        return str(await (await self.run_tools(message.content)).text())


class Nested(BaseAgent):
    """A step with calls inside, a prompt, and a clock."""

    id = "nested"

    async def chat(self, message: Message) -> str:
        async def inner(topic: str) -> str:
            plan = await self.step(outline, topic)
            return str(await self.llm.ainvoke(f"say {plan}"))

        first, second = await asyncio.gather(self.step(inner, "cats"), self.step(inner, "dogs"))
        made = await self.create_prompt("say {{a}} and {{b}} at {{now}}").update_placeholder(
            a=first, b=second, now=self.now().isoformat()
        ).acall()
        return str(made)


class Asking(BaseAgent):
    """Asks a person, and looks up what it says."""

    id = "asking"

    async def chat(self, message: Message) -> str:
        await self.knowledge.add(["about cats", "about dogs"])
        about = await self.ask("About what?")
        (found,) = await self.knowledge.search(f"about {about}", k=1)
        return f"{self.random()} {found.content}"


class Changed(Chattable):
    """Says something else every time it is read."""

    id = "changed"

    async def chat(self, message: Message) -> str:
        CALLS.append("changed")
        try:
            return str(await self.llm.ainvoke(f"say {message.content} for the time {len(CALLS)}"))
        except Exception:
            return "never mind"
'''


@pytest.fixture
async def here(running: Engines, database_url: str, fake: FakeUpstream, tmp_path: Path) -> AsyncIterator[House]:
    (tmp_path / "agents.py").write_text(AGENT)
    settings = {"redis_url": running.redis_url, "openai_base_url": fake.base_url, "openai_api_key": "sk-test"}
    async with open_house(database_url, agents_dir=tmp_path, **settings) as house:
        yield house


async def done(client: httpx2.AsyncClient, agent: str, content: str = "x") -> dict[str, Any]:
    answer = await send(client, await session(client, agent), content)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def steps(client: httpx2.AsyncClient, run_id: str, kind: str | None = None) -> list[dict[str, Any]]:
    found = await client.get(f"/api/v1/runs/{run_id}/steps", params={"limit": 1000})
    assert found.status_code == 200, found.text
    return [step for step in found.json()["data"] if kind in (None, step["kind"])]


async def rerun(client: httpx2.AsyncClient, run_id: str, **how: Any) -> dict[str, Any]:
    again = await client.post(f"/api/v1/runs/{run_id}/rerun", json=how)
    assert again.status_code == 200, again.text
    return dict(again.json())


async def output(client: httpx2.AsyncClient, run_id: str, seq: int) -> Any:
    return (await client.get(f"/api/v1/runs/{run_id}/steps/{seq}/output")).json()["value"]


async def test_rerunning_one_of_twenty_steps_makes_one_call(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    run = await done(ann, "chain")
    assert fake.hits == 20
    (seventh,) = [step for step in await steps(ann, run["run_id"]) if step["seq"] == 7]
    again = await rerun(ann, run["run_id"], step=7, set={"prompt": "say something else", "params": {"temperature": 1}})
    assert (again["status"], again["kind"], again["answer"]) == ("completed", "rerun", run["content"]), again
    assert (again["parent_id"], again["forked_at"]) == (run["run_id"], 7)
    assert fake.hits == 21
    assert fake.requests[-1].body["messages"] == [{"role": "user", "content": "say something else"}]
    assert fake.requests[-1].body["temperature"] == 1
    assert (again["step"]["path"], again["step"]["status"]) == (seventh["path"], "completed")
    assert (await output(ann, again["id"], again["step"]["seq"]))["text"] == "something else"
    found = await steps(ann, again["id"], "llm")
    assert [step["status"] for step in found].count("replayed") == 19
    assert again["usage"]["total"] == again["step"]["usage"]["total"] < run["usage"]["total"]
    compared = (await ann.get(f"/api/v1/runs/{run['run_id']}/diff", params={"other": again["id"]})).json()
    assert (compared["same"], [change["seq"] for change in compared["changed"]]) == (19, [[7, 7]])
    assert (compared["changed"][0]["same_input"], compared["changed"][0]["same_output"]) == (False, False)
    assert fake.hits == 21
    told = (await ann.get(f"/api/v1/runs/{again['id']}/events")).text
    assert f'"content":"{run["content"]}"' in told


async def test_of_a_fan_out_all_others_come_from_the_journal(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    run = await done(ann, "fan")
    before = fake.hits
    equal = [step["seq"] for step in await steps(ann, run["run_id"], "llm")][3]
    again = await rerun(ann, run["run_id"], step=equal, set={"prompt": "say new"}, downstream=True)
    assert again["status"] == "completed", again
    assert fake.hits == before + 2  # the step, and the one that joins them all
    assert again["answer"] != run["content"]
    assert sorted(again["answer"].split("+")) == sorted(["new", *run["content"].split("+")[1:]])
    found = await steps(ann, again["id"], "llm")
    assert [step["status"] for step in found].count("replayed") == 39
    alone = await rerun(ann, run["run_id"], step=equal, set={"prompt": "say other"})
    assert (alone["answer"], fake.hits) == (run["content"], before + 3)


async def test_a_run_is_replayed_without_any_call(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    for agent, content in (("chain", "x"), ("fan", "x"), ("nested", "x"), ("mailer", 'call mail {"to": "Bo"}')):
        run = await done(ann, agent, content)
        before = fake.hits
        again = await rerun(ann, run["run_id"])
        assert (again["status"], again["answer"]) == ("completed", run["content"]), again
        assert (fake.hits, again["usage"]["total"], again["step"]) == (before, 0, None)
        twice = await rerun(ann, again["id"])
        assert (twice["answer"], twice["parent_id"]) == (run["content"], again["id"])


async def test_a_step_inside_another_is_done_anew(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    run = await done(ann, "nested")
    inner = next(step for step in await steps(ann, run["run_id"], "llm") if step["path"] == "/inner/default")
    before = fake.hits
    again = await rerun(ann, run["run_id"], step=inner["seq"], set={"prompt": "say birds"}, downstream=True)
    assert (again["status"], fake.hits) == ("completed", before + 2), again
    assert "birds" in again["answer"]
    assert "of dogs" in again["answer"] or "of cats" in again["answer"]
    (prompt,) = await steps(ann, run["run_id"], "prompt")
    again = await rerun(ann, run["run_id"], step=prompt["seq"], set={"prompt": "say only {{a}}"}, downstream=True)
    assert (again["status"], fake.hits) == ("completed", before + 3), again
    assert again["answer"].startswith("only outline ")
    (clock,) = await steps(ann, run["run_id"], "now")
    again = await rerun(ann, run["run_id"], step=clock["seq"], set={"input": "2020-01-01T00:00:00Z"}, downstream=True)
    assert again["answer"].endswith("at 2020-01-01T00:00:00+00:00"), again


async def test_tools_are_called_again_only_where_they_may(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    run = await done(ann, "mailer", 'call mail {"to": "Bo"}')
    first = (await steps(ann, run["run_id"], "llm"))[0]["seq"]
    changed = {"step": first, "set": {"prompt": 'call mail {"to": "Cy"}'}, "downstream": True}
    refused = await rerun(ann, run["run_id"], **changed)
    assert (refused["status"], refused["error"]["code"]) == ("failed", "replay_diverged"), refused
    assert refused["error"]["path"] == "/mail"
    assert '+ "arguments": "{\\"to\\": \\"Cy\\"}"' in refused["error"]["difference"]
    live = await rerun(ann, run["run_id"], **changed, tools="live")
    assert (live["status"], live["answer"]) == ("completed", "The tool said: sent 2 to Cy"), live
    (tool,) = await steps(ann, run["run_id"], "tool")
    again = await rerun(ann, run["run_id"], step=tool["seq"], set={"input": {"to": "Di"}})
    assert (again["status"], again["answer"]) == ("completed", run["content"]), again
    assert await output(ann, again["id"], again["step"]["seq"]) == "sent 3 to Di"


async def test_another_answer_of_a_person_leads_elsewhere(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    id = await session(ann, "asking")
    run = (await send(ann, id, "x")).json()
    done = (await send(ann, id, "cats")).json()
    assert (done["run_id"], done["content"].split(" ", 1)[1]) == (run["run_id"], "about cats")
    again = await rerun(ann, run["run_id"])
    assert (again["status"], again["answer"]) == ("completed", done["content"]), again
    (asked,) = await steps(ann, run["run_id"], "ask")
    refused = await ann.post(f"/api/v1/runs/{run['run_id']}/rerun", json={"step": asked["seq"]})
    assert (refused.status_code, refused.json()["param"]) == (400, "set.input")
    before = fake.hits
    other = await rerun(ann, run["run_id"], step=asked["seq"], set={"input": "dogs"}, downstream=True)
    assert (other["status"], other["answer"].split(" ", 1)[1]) == ("completed", "about dogs"), other
    assert fake.hits == before  # its embedding is in the cache
    _, search = await steps(ann, run["run_id"], "retrieval")
    found = await rerun(ann, run["run_id"], step=search["seq"], set={"input": {"query": "about dogs"}})
    assert (found["answer"], found["status"]) == (done["content"], "completed"), found
    assert [passage["content"] for passage in await output(ann, found["id"], found["step"]["seq"])] == ["about dogs"]


async def test_a_run_that_does_something_else_has_diverged_whatever_its_agent_makes_of_it(
    here: House, fake: FakeUpstream
) -> None:
    ann = await here.user("ann")
    run = await done(ann, "changed", "news")
    before = fake.hits
    again = await rerun(ann, run["run_id"])
    assert (again["status"], again["error"]["code"], fake.hits) == ("failed", "replay_diverged", before)
    lines = again["error"]["difference"].splitlines()
    assert [line for line in lines if line[:2] == "- "] == ['-   "content": "say news for the time 1",']
    assert [line for line in lines if line[:2] == "+ "] == ['+   "content": "say news for the time 2",']
    stored = (await ann.get(f"/api/v1/runs/{again['id']}")).json()
    assert (stored["status"], stored["error"]["code"]) == ("failed", "replay_diverged")


async def test_equal_reruns_with_one_key_are_one_run_at_every_server(
    here: House, running: Engines, database_url: str, fake: FakeUpstream, tmp_path: Path
) -> None:
    ann = await here.user("ann")
    run = await done(ann, "fan")
    first, other = [step["seq"] for step in await steps(ann, run["run_id"], "llm")][:2]
    path, key = f"/api/v1/runs/{run['run_id']}/rerun", {"idempotency-key": "again"}
    body = {"step": first, "set": {"prompt": "say new [[fault: x delay=0.5]]"}, "downstream": True}
    before = fake.hits
    settings = {"redis_url": running.redis_url, "openai_base_url": fake.base_url, "openai_api_key": "sk-test"}
    async with open_house(database_url, agents_dir=tmp_path, **settings) as there:
        elsewhere = await there.client(authorization=ann.headers["authorization"])
        clients = [ann, elsewhere] * 3
        told = await asyncio.gather(*(client.post(path, json=body, headers=key) for client in clients))
        told += [await client.post(path, json=body, headers=key) for client in (ann, elsewhere)]
    assert {answer.status_code for answer in told} == {200}
    assert fake.hits == before + 2
    (made,) = {answer.text for answer in told}
    assert '"status":"completed"' in made
    assert (told[0].json()["step"]["path"], told[0].json()["step"]["status"]) == ("/default", "completed")
    assert "new" in told[0].json()["answer"].split("+")
    for changed in ({"step": other}, {"set": {"prompt": "say newer"}}, {"downstream": False}, {"tools": "live"}):
        refused = await ann.post(path, json=body | changed, headers=key)
        assert (refused.status_code, refused.json()["param"]) == (409, "idempotency-key"), changed
    said = {"session_id": (await ann.get(f"/api/v1/runs/{run['run_id']}")).json()["session_id"], "content": "x"}
    assert (await ann.post("/SendMessage", json=said, headers=key)).status_code == 409
    assert (await ann.post(path, json=body, headers={"idempotency-key": "more"})).json()["id"] != told[0].json()["id"]


async def test_a_rerun_that_failed_is_begun_anew_under_its_key(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    run = await done(ann, "changed", "news")
    path, key = f"/api/v1/runs/{run['run_id']}/rerun", {"idempotency-key": "again"}
    first, second = [(await ann.post(path, json={}, headers=key)).json() for _ in range(2)]
    assert (first["status"], second["status"]) == ("failed", "failed")
    assert first["id"] != second["id"]


async def test_a_rerun_leaves_the_session_as_it_is(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    id = await session(ann, "chain")
    run = (await send(ann, id, "x")).json()
    before = (await ann.post("/GetSession", json={"session_id": id})).json()
    await rerun(ann, run["run_id"], step=1, set={"model": "default"})
    after = (await ann.post("/GetSession", json={"session_id": id})).json()
    assert after.pop("usage")["total"] > before.pop("usage")["total"]
    assert after == before
    items = (await ann.post("/ListMessages", json={"session_id": id})).json()["items"]
    assert [item["content"] for item in items] == ["x", run["content"]]
    assert len((await ann.get(f"/api/v1/sessions/{id}/runs")).json()["data"]) == 1
    async with here.platform.engine.connect() as db:
        calls = (await db.execute(text("SELECT count(*) FROM ledger"))).scalar_one()
    assert calls == fake.hits == 21
    assert (await send(ann, id, "y")).status_code == 200
    assert (await ann.delete(f"/api/v1/sessions/{id}")).status_code == 204
    async with here.platform.engine.connect() as db:
        assert (await db.execute(text("SELECT count(*) FROM steps"))).scalar_one() == 0


async def test_a_request_without_a_session_is_done_again(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    said = [
        {"role": "user", "content": "say a"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
    ]
    answer = await ann.post("/v1/chat/completions", json={"model": "default", "messages": said, "temperature": 0.5})
    assert answer.status_code == 200, answer.text
    (run,) = (await ann.get("/api/v1/runs")).json()["data"]
    again = await rerun(ann, run["id"])
    assert (again["status"], again["answer"], fake.hits) == ("completed", "You said: b", 1), again
    (call,) = await steps(ann, run["id"], "llm")
    await rerun(ann, run["id"], step=call["seq"], set={"prompt": "say c"})
    assert fake.requests[-1].body["messages"] == [*said[:2], {"role": "user", "content": "say c"}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"step": 99}, "step"),
        ({"step": 0}, "step"),
        ({"set": {"prompt": "x"}}, "step"),
        ({"step": 1, "set": {"colour": "red"}}, "set.colour"),
        ({"step": 1, "tools": "some"}, "tools"),
        ({"step": 1, "set": {"params": {"temperature": 9}}}, None),
    ],
)
async def test_what_cannot_be_done_is_refused(here: House, body: dict[str, Any], param: str | None) -> None:
    ann = await here.user("ann")
    run = await done(ann, "mailer")
    answer = await ann.post(f"/api/v1/runs/{run['run_id']}/rerun", json=body)
    if param is None:  # the call itself refuses it
        assert answer.json()["status"] == "failed", answer.text
    else:
        assert (answer.status_code, answer.json()["param"]) == (400, param), answer.text


async def test_no_model_is_asked_at_the_price_of_another(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    run = await done(ann, "changed")
    (call,) = await steps(ann, run["run_id"], "llm")
    body = {"step": call["seq"], "set": {"params": {"model": "dear"}}}
    answer = await ann.post(f"/api/v1/runs/{run['run_id']}/rerun", json=body)
    assert (answer.status_code, answer.json().get("param")) == (400, "set.params.model"), answer.text
    assert fake.hits == 1


async def test_a_functions_arguments_are_not_its_users_to_choose(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    for client, code in ((ann, 403), (here.admin, 200)):
        run = (await done(client, "nested"))["run_id"]
        (outlined, *_) = [step for step in await steps(client, run, "step") if step["name"] == "outline"]
        body = {"step": outlined["seq"], "set": {"input": {"args": ["of another"]}}}
        answer = await client.post(f"/api/v1/runs/{run}/rerun", json=body)
        assert answer.status_code == code, answer.text
        assert (await client.post(f"/api/v1/runs/{run}/rerun", json={"step": outlined["seq"]})).status_code == 200


async def test_a_search_is_bounded_in_a_rerun_too(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    id = await session(ann, "asking")
    run = (await send(ann, id, "x")).json()["run_id"]
    await send(ann, id, "cats")
    _, search = await steps(ann, run, "retrieval")
    for wanted, name in (
        ({"k": -1}, "k"),
        ({"k": 10**9}, "k"),
        ({"k": "all"}, "k"),
        ({"query": "x" * 10_000}, "query"),
    ):
        again = await rerun(ann, run, step=search["seq"], set={"input": wanted}, downstream=True)
        assert (again["status"], again["error"].get("param")) == ("failed", name), again


async def test_of_many_reruns_at_once_only_so_many_begin(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    run = (await done(ann, "changed", "[[fault: first=0.5]]x"))["run_id"]
    (call,) = await steps(ann, run, "llm")
    how = {"step": call["seq"], "set": {"prompt": "[[fault: first=1]]x"}}
    many = [ann.post(f"/api/v1/runs/{run}/rerun", json=how) for _ in range(25)]
    codes = [answer.status_code for answer in await asyncio.gather(*many)]
    assert codes.count(429) >= 10, codes
    assert codes.count(200) + codes.count(429) == 25, codes
    assert not here.platform.rerunning


async def test_runs_of_others_are_unknown(here: House) -> None:
    ann, ben = await here.user("ann"), await here.user("ben")
    run = await done(ann, "changed")
    own = await done(ben, "changed")
    for client in (ben, here.admin):
        path = f"/api/v1/runs/{run['run_id']}"
        answers = [
            await client.get(f"{path}/steps"),
            await client.get(f"{path}/steps/1/input"),
            await client.get(f"{path}/why", params={"text": "x"}),
            await client.get(f"{path}/diff", params={"other": own["run_id"]}),
            await client.post(f"{path}/rerun", json={}),
        ]
        assert [answer.status_code for answer in answers] == [404] * 5
    (step,) = await steps(ann, run["run_id"])
    assert (await ann.get(f"/api/v1/values/{step['output_hash']}")).status_code == 200
    assert (await ben.get(f"/api/v1/values/{step['output_hash']}")).status_code == 404
