"""Sending, streaming, editing, regenerating and listing messages."""

from __future__ import annotations

import asyncio

from tests.fakes.upstream import FakeUpstream
from tests.house import House, events, send, session


async def test_a_conversation_of_two_turns_has_history_and_is_kept(llm_house: House) -> None:
    client = await llm_house.user("bo")
    id = await session(client, "simple_openai_agent")
    first = (await send(client, id, "My name is Bo")).json()
    assert first["type"] == "ai"
    assert first["content"] == "You said: My name is Bo"
    assert "create_at" in first["additional_kwargs"]
    second = (await send(client, id, "What was the first thing I said?")).json()
    assert second["content"] == "My name is Bo"
    listed = (await client.post("/ListMessages", json={"session_id": id})).json()["items"]
    assert [item["type"] for item in listed] == ["human", "ai", "human", "ai"]
    assert [item["seq"] for item in listed] == [1, 2, 3, 4]
    assert [item["parent_id"] for item in listed] == [None, *(item["id"] for item in listed[:3])]
    assert listed[3]["id"] == second["message_id"]
    assert listed[3]["run_id"] == second["run_id"]


async def test_the_system_prompt_and_the_sessions_parameters_are_used(llm_house: House, fake: FakeUpstream) -> None:
    client = await llm_house.user("bo")
    params = {"system_prompt": "Be brief.", "temperature": 0.9}
    wanted = {"model": "m7", "temperature": 0.1}
    id = await session(client, "simple_openai_agent", params, session_params=wanted)
    await send(client, id, "hello")
    body = fake.requests[-1].body
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["model"], body["temperature"]) == ("m7", 0.1)
    changed = {
        "agent": {"id": "simple_openai_agent", "params": {"system_prompt": "Be long."}},
        "session_params": {"temperature": None},
    }
    await client.post("/UpdateSession", json={"session_id": id, **changed})
    await send(client, id, "hello")
    body = fake.requests[-1].body
    assert body["messages"][0]["content"] == "Be long."
    assert "temperature" not in body


async def test_a_streamed_answer_equals_the_whole_one(llm_house: House) -> None:
    client = await llm_house.user("bo")
    id = await session(client, "simple_openai_agent")
    found = await events(client, "/SendMessage", {"session_id": id, "content": "say one two three", "stream": True})
    assert found[0][0] == "run"
    chunks = [event for event in found if event[0] == "chunk"]
    assert int(chunks[-1][1]) == 13  # ids are positions, however the chunks were cut
    assert "".join(data["content"] for _, _, data in chunks) == "one two three"
    name, _, end = found[-1]
    assert (name, end["status"], end["content"]) == ("end", "completed", "one two three")
    stored = (await client.get(f"/api/v1/messages/{end['message_id']}")).json()
    assert stored["content"] == "one two three"
    assert end["usage"]["total"] > 0


async def test_thinking_is_shown_beside_the_answer_and_kept(house: House) -> None:
    id = await session(house.admin)
    found = await events(house.admin, "/SendMessage", {"session_id": id, "content": "think: hm", "stream": True})
    assert next(data["content_type"] for name, _, data in found if name == "chunk") == "thinking"
    end = found[-1][2]
    assert end["content"] == "done"
    assert end["additional_kwargs"]["asides"] == [{"content_type": "thinking", "content": "hm"}]


async def test_braces_in_a_message_are_just_text(house: House) -> None:
    for text in ("{brace}", "{{ 7*7 }}", "{% raw %}", "%s {0}", "\\u0041 'quote\" -- ;DROP TABLE users"):
        id = await session(house.admin, "fake_echo_agent")
        assert (await send(house.admin, id, text)).json()["content"] == text


async def test_an_edited_message_makes_a_branch_of_its_own(llm_house: House) -> None:
    client = llm_house.admin
    id = await session(client, "simple_openai_agent")
    await send(client, id, "say red")
    answer = (await send(client, id, "say blue")).json()
    listed = (await client.post("/ListMessages", json={"session_id": id})).json()["items"]
    edited = (await send(client, id, "say green", parent_id=listed[1]["id"])).json()
    assert edited["content"] == "green"
    after = (await client.post("/ListMessages", json={"session_id": id})).json()["items"]
    assert [item["seq"] for item in after] == list(range(1, 7))
    assert after[4]["parent_id"] == after[2]["parent_id"] == listed[1]["id"]
    assert (await send(client, id, "What was the first thing I said?")).json()["content"] == "say red"
    first = (await send(client, id, "say nothing", parent_id=None)).json()
    again = (await send(client, id, "What was the first thing I said?")).json()
    assert again["content"] == "say nothing"
    back = await client.post("/UpdateSession", json={"session_id": id, "leaf_id": answer["message_id"]})
    assert back.json()["leaf_id"] == answer["message_id"]
    assert first["run_id"] != answer["run_id"]


async def test_a_regenerated_answer_is_a_sibling(house: House) -> None:
    id = await session(house.admin)
    answer = (await send(house.admin, id, "repeat: once")).json()
    again = await house.admin.post(f"/api/v1/messages/{answer['message_id']}/regenerate", json={})
    assert again.json()["content"] == "once"
    listed = (await house.admin.get(f"/api/v1/sessions/{id}/messages")).json()["data"]
    assert [item["role"] for item in listed] == ["user", "assistant", "assistant"]
    assert listed[1]["parent_id"] == listed[2]["parent_id"] == listed[0]["id"]


async def test_a_busy_session_refuses_a_second_message(house: House) -> None:
    id = await session(house.admin)
    slow = asyncio.ensure_future(send(house.admin, id, "sleep: 1"))
    await asyncio.sleep(0.3)
    second = await send(house.admin, id, "repeat: x")
    assert (second.status_code, second.json()["code"]) == (409, "session_busy")
    assert (await slow).status_code == 200
    assert (await send(house.admin, id, "repeat: x")).status_code == 200


async def test_many_sessions_answer_at_once_with_gapless_numbers(house: House) -> None:
    client = await house.user("busy")
    ids = [await session(client) for _ in range(12)]

    async def talk(id: str) -> list[int]:
        for word in ("a", "b", "c"):
            assert (await send(client, id, f"repeat: {word}")).json()["content"] == word
        listed = (await client.post("/ListMessages", json={"session_id": id})).json()["items"]
        return [item["seq"] for item in listed]

    assert await asyncio.gather(*map(talk, ids)) == [[1, 2, 3, 4, 5, 6]] * 12


async def test_a_cancelled_run_keeps_what_it_said_and_what_it_cost(llm_house: House, fake: FakeUpstream) -> None:
    client = llm_house.admin
    id = await session(client, "simple_openai_agent")
    text = "say " + "word " * 50 + "[[fault: slow delay=0.1]]"
    sending = asyncio.ensure_future(send(client, id, text))
    run_id = await llm_house.until_live()
    await asyncio.sleep(0.5)
    cancelled = (await client.post("/CancelRun", json={"run_id": run_id})).json()
    assert cancelled["status"] == "cancelled"
    assert cancelled["usage"]["completion"] > 0
    assert cancelled["usage"]["estimated"] is True
    answer = (await sending).json()
    assert answer["content"].startswith("word")
    assert answer["additional_kwargs"]["status"] == "cancelled"
    again = (await client.post(f"/api/v1/runs/{run_id}/cancel")).json()
    assert again["status"] == "cancelled"


async def test_a_client_that_leaves_changes_nothing(house: House) -> None:
    id = await session(house.admin)
    body = {"session_id": id, "content": "sleep: 1", "stream": True}
    async with house.admin.stream("POST", "/SendMessage", json=body) as answer:
        async for _ in answer.aiter_bytes():
            break
    await house.until_idle()
    listed = (await house.admin.post("/ListMessages", json={"session_id": id})).json()["items"]
    assert listed[1]["content"] == "asleep and awake"
    assert listed[1]["additional_kwargs"] == {}


async def test_usage_is_recorded_per_message_run_and_session(llm_house: House) -> None:
    client = llm_house.admin
    id = await session(client, "simple_openai_agent")
    answers = [(await send(client, id, text)).json() for text in ("say a b", "say c")]
    run = (await client.get(f"/api/v1/runs/{answers[0]['run_id']}")).json()
    assert run["status"] == "completed"
    assert run["usage"] == answers[0]["usage"]
    total = (await client.get(f"/api/v1/sessions/{id}")).json()["usage"]
    assert total["total"] == sum(answer["usage"]["total"] for answer in answers)
    assert total["estimated"] is False
    runs = (await client.get(f"/api/v1/sessions/{id}/runs")).json()
    assert [item["id"] for item in runs["data"]] == [answer["run_id"] for answer in answers]


async def test_feedback_is_kept_and_can_be_taken_back(house: House) -> None:
    id = await session(house.admin)
    answer = (await send(house.admin, id, "repeat: x")).json()
    path = f"/api/v1/messages/{answer['message_id']}/feedback"
    rated = (await house.admin.patch(path, json={"rating": -1, "comment": "no"})).json()
    assert (rated["rating"], rated["comment"]) == (-1, "no")
    rated = (await house.admin.patch(path, json={"rating": None})).json()
    assert (rated["rating"], rated["comment"]) == (None, "no")
    listed = (await house.admin.post("/ListMessages", json={"session_id": id})).json()["items"]
    refused = await house.admin.patch(f"/api/v1/messages/{listed[0]['id']}/feedback", json={"rating": 1})
    assert refused.status_code == 404


async def test_lists_are_paged_without_gaps(house: House) -> None:
    client = await house.user("pages")
    id = await session(client)
    for number in range(6):
        await send(client, id, f"repeat: {number}")
    seen: list[int] = []
    after = None
    while True:
        page = (await client.post("/ListMessages", json={"session_id": id, "limit": 5, "after": after})).json()
        seen += [item["seq"] for item in page["items"]]
        if not page["has_more"]:
            break
        after = page["items"][-1]["id"]
    assert seen == list(range(1, 13))


async def test_an_agents_state_follows_its_branch(house: House) -> None:
    id = await session(house.admin)
    await send(house.admin, id, "state: one")
    first = (await send(house.admin, id, "state: two")).json()
    assert first["content"] == "one"
    await send(house.admin, id, "state: three")
    branch = (await send(house.admin, id, "state: other", parent_id=first["message_id"])).json()
    assert branch["content"] == "two"
