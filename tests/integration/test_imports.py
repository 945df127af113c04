"""Chats that ChatGPT and Open WebUI have exported become sessions, each once, with their branches."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from app.api.copies import MAX_VALUES
from app.api.fields import is_crowded
from app.cli.importing import _pieces
from app.domain import now
from app.usecases import upkeep
from app.usecases.platform import WAITING_IMPORTS
from app.usecases.upkeep import Keeping
from tests import exports
from tests.exports import chatgpt, entry, open_webui
from tests.house import House, send


@pytest.fixture
async def ann(house: House) -> httpx2.AsyncClient:
    return await house.user("ann")


async def imported(client: httpx2.AsyncClient, chats: Any, **query: str) -> dict[str, Any]:
    answer = await client.post("/api/v1/imports", json=chats, params={"agent": "scripted_agent", **query})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def messages(client: httpx2.AsyncClient, id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.get(f"/api/v1/sessions/{id}/messages")).json()["data"]
    return found


async def test_a_chat_of_chatgpt_keeps_its_branches_times_and_what_stood_beside(ann: httpx2.AsyncClient) -> None:
    made = await imported(ann, [chatgpt()])
    assert (made["format"], made["made"], made["data"][0]["left_out"]) == ("chatgpt", 1, 1)
    session = (await ann.get(f"/api/v1/sessions/{made['data'][0]['session_id']}")).json()
    assert (session["title"], session["updated_at"]) == ("Six by seven", "2023-11-14T22:13:25Z")
    rows = await messages(ann, session["id"])
    ids = {row["content"]: row["id"] for row in rows}
    ask = "What is six\n\n by seven?"
    shape = [(row["role"], row["content"], row["agent_id"]) for row in rows]
    assert shape == [
        ("user", ask, None),
        ("assistant", "41", "gpt-4o"),
        ("assistant", "It is 42.", "o3"),
        ("user", "And this?", None),
        ("assistant", "A cat.", "o3"),
    ]
    parents = [row["parent_id"] for row in rows]
    assert parents == [None, ids[ask], ids[ask], ids["It is 42."], ids["And this?"]]
    assert session["leaf_id"] == ids["A cat."]
    assert rows[2]["additional_kwargs"]["asides"] == [
        {"content_type": "thinking", "content": "Let me see."},
        {"content_type": "tool_call", "content": '{"name":"python","arguments":{"input":"```\\n6 * 7\\n```"}}'},
        {"content_type": "tool_result", "content": "42"},
    ]
    assert (rows[0]["created_at"], rows[3]["created_at"]) == ("2023-11-14T22:13:20Z", "2023-11-14T22:13:22Z")


async def test_a_chat_of_open_webui_keeps_its_models_pictures_and_thumbs(ann: httpx2.AsyncClient) -> None:
    made = await imported(ann, [open_webui()])
    assert (made["format"], made["data"][0]["left_out"]) == ("open-webui", 1)
    rows = await messages(ann, made["data"][0]["session_id"])
    assert [(row["content"], row["agent_id"], row["rating"]) for row in rows] == [
        ("When?", None, None),
        ("At noon.", "a", None),
        ("Sure?", None, None),
        ("Yes.", "a", None),
        ("Never.", "b", -1),
    ]
    kinds = [(aside["content_type"], aside["content"]) for aside in rows[1]["additional_kwargs"]["asides"]]
    assert kinds[0] == ("thinking", "Hm.")
    assert (kinds[1][0], json.loads(kinds[1][1])["name"], kinds[2]) == ("tool_call", "clock", ("tool_result", '"noon"'))
    document = (await ann.get(f"/api/v1/sessions/{made['data'][0]['session_id']}/export")).json()
    assert document["messages"][0]["parts"][1]["image_url"]["url"].startswith("data:image/png")


async def test_an_older_chat_of_open_webui_is_a_line(ann: httpx2.AsyncClient) -> None:
    rows = [entry("1", None, "user", "Hello"), entry("2", None, "assistant", "Hi"), entry("3", None, "user", "Bye")]
    made = await imported(ann, {"chat": {"messages": rows, "title": "Old"}})
    found = await messages(ann, made["data"][0]["session_id"])
    assert [row["parent_id"] for row in found] == [None, found[0]["id"], found[1]["id"]]


async def test_the_agent_goes_on_with_an_imported_chat(ann: httpx2.AsyncClient) -> None:
    made = await imported(ann, [open_webui()])
    id = made["data"][0]["session_id"]
    assert (await send(ann, id, "count")).json()["content"] == "5"  # those of the active branch, and itself
    assert [hit["content"] for hit in (await ann.get("/api/v1/messages", params={"q": "noon"})).json()["data"]]


async def test_a_chat_is_imported_once_for_each_owner_even_at_once(ann: httpx2.AsyncClient, house: House) -> None:
    bob = await house.user("bob")
    several = await asyncio.gather(*(imported(ann, [chatgpt(), chatgpt("two")]) for _ in range(4)))
    assert sum(each["made"] for each in several) == 2
    assert len({row["session_id"] for each in several for row in each["data"]}) == 2
    assert (await imported(bob, [chatgpt()]))["made"] == 1
    id = several[0]["data"][0]["session_id"]
    await ann.delete(f"/api/v1/sessions/{id}")
    again = await imported(ann, [chatgpt(), chatgpt("two")])
    assert [row["status"] for row in again["data"]] == ["made", "known"]
    assert len((await ann.get("/api/v1/sessions")).json()["data"]) == 2


async def test_what_was_erased_leaves_no_trace_of_the_import(ann: httpx2.AsyncClient, house: House) -> None:
    await imported(ann, [chatgpt()])
    assert (await house.admin.delete(f"/api/v1/users/{ann.headers['x-test-user']}")).status_code == 204
    async with house.platform.engine.connect() as db:
        assert (await db.execute(text("SELECT count(*) FROM imports"))).scalar_one() == 0


async def test_an_import_is_a_use_of_an_old_session(ann: httpx2.AsyncClient, house: House) -> None:
    await imported(ann, [chatgpt(), chatgpt("two")])
    async with house.platform.engine.begin() as db:
        old = (
            "UPDATE imports SET created_at = :then WHERE session_id = (SELECT min(session_id::text)::uuid FROM imports)"
        )
        await db.execute(text(old), {"then": now() - timedelta(days=40)})
    await upkeep.once(house.platform.engine, Keeping(sessions=30))
    assert len((await ann.get("/api/v1/sessions")).json()["data"]) == 1


def with_node(**fields: Any) -> dict[str, Any]:
    chat = chatgpt("broken")
    chat["mapping"]["ask"] |= fields
    return chat


REFUSED = [
    (chatgpt() | {"mapping": []}, "[1].mapping"),
    (chatgpt() | {"title": 5}, "[1].title"),
    (with_node(message={"author": {"role": 5}}), "[1].mapping[...].message.author.role"),
    (with_node(message=exports.place(None, "user", "x" * 9_000_000)["message"]), "[1]"),
    ("a chat", "[1]"),
]


@pytest.mark.parametrize(("given", "param"), REFUSED, ids=[param for _, param in REFUSED])
async def test_a_chat_that_cannot_be_read_is_named_and_holds_up_no_other(
    ann: httpx2.AsyncClient, given: Any, param: str
) -> None:
    made = await imported(ann, [chatgpt(), given, chatgpt("two")])
    assert [row["status"] for row in made["data"]] == ["made", "refused", "made"]
    assert made["data"][1]["param"] == param
    assert made["data"][1]["error"].startswith(param)


async def test_trees_that_are_none_are_taken_as_far_as_they_go(ann: httpx2.AsyncClient) -> None:
    chat = chatgpt()
    chat["mapping"]["ask"]["parent"] = "nowhere"
    chat["mapping"]["look"]["parent"] = "reply"  # a circle
    chat["create_time"] = 1e300
    chat["mapping"]["ask"]["message"]["content"]["parts"] = ["a\x00b", None, 5, {"text": "spoken"}]
    made = await imported(ann, [chat, {"mapping": {}}, {"mapping": {"a": {"message": None, "parent": "a"}}}])
    assert [row["status"] for row in made["data"]] == ["made", "empty", "empty"]
    rows = await messages(ann, made["data"][0]["session_id"])
    assert [row["content"] for row in rows] == ["ab\n\nspoken", "41", "It is 42."]
    session = (await ann.get(f"/api/v1/sessions/{made['data'][0]['session_id']}")).json()
    assert session["leaf_id"] == rows[-1]["id"]


async def test_a_long_chain_of_tools_before_many_answers_is_bounded(ann: httpx2.AsyncClient) -> None:
    chat = chatgpt("deep")
    chat["mapping"] = {"0": exports.place(None, "user", "go")}
    for at in range(1, 3000):
        chat["mapping"][str(at)] = exports.place(str(at - 1), "tool", "x" * 500)
    for at in range(3000):
        chat["mapping"][f"answer {at}"] = exports.place("2999", "assistant", "done")
    made = await imported(ann, [chat])
    assert made["data"][0]["status"] == "refused"


async def test_what_is_no_export_is_refused(ann: httpx2.AsyncClient) -> None:
    for body, param in (([], "body"), ([{}], "body"), ([5], "[0]"), ([{}] * 1001, "body")):
        answer = await ann.post("/api/v1/imports", json=body, params={"agent": "scripted_agent"})
        assert (answer.status_code, answer.json().get("param")) == (400, param), body[:1]
    nobody = await ann.post("/api/v1/imports", json=[chatgpt()])
    assert (nobody.status_code, nobody.json()["param"]) == (400, "agent")
    unknown = await ann.post("/api/v1/imports", json=[chatgpt()], params={"agent": "nobody"})
    assert unknown.status_code == 404
    wrong = await imported(ann, [chatgpt()], format="open-webui")
    assert wrong["data"][0]["param"] == "[0]"
    assert (await ann.get("/api/v1/sessions")).json()["data"] == []


JSON = {"content-type": "application/json"}
SESSION = b'{"format":"chattable.session","version":1,"session":{"created_at":"2030-01-01T12:00:00Z","agent":{"id":"x","params":{"a":['
CROWDS = [
    b"[" + b"1," * 15_500_000 + b"1]",
    SESSION + b"[]," * 10_000_000 + b"[]]}}}",
    b'{"mapping":[' + b'{"a":1},' * 3_800_000 + b"{}]}",
    b'{"mapping":{' + b'"a":"b",' * 3_800_000 + b'"a":"b"}}',
]


@pytest.mark.parametrize("crowd", range(len(CROWDS)))
async def test_what_would_be_millions_of_values_is_refused_before_it_is_decoded(
    ann: httpx2.AsyncClient, crowd: int
) -> None:
    answer = await ann.post("/api/v1/imports", content=CROWDS[crowd], headers=JSON, params={"agent": "scripted_agent"})
    assert (answer.status_code, f"at most {MAX_VALUES} values" in answer.json()["detail"]) == (400, True)


def long_chat(number: int, messages: int = 40) -> dict[str, Any]:
    """A chat of so many messages, with all that ChatGPT puts beside them."""
    beside = {"model_slug": "o3", "citations": [], "finish_details": {"type": "stop", "stop_tokens": [200002]}}
    beside |= {"is_complete": True, "request_id": "x" * 20, "message_type": "next", "parent_id": "y" * 36}
    said = 'One, two [three], {"four": 5}, and "so on".\n' * 10
    chat = chatgpt(f"chat {number}")
    for at in range(messages):
        role = "assistant" if at % 2 else "user"
        chat["mapping"][str(at)] = exports.place(
            str(at - 1) if at else None, role, said, at=exports.TIME + at, metadata=beside, recipient="all"
        )
    return chat


async def test_an_export_of_ten_thousand_chats_is_not_too_much(ann: httpx2.AsyncClient) -> None:
    short, one = (json.dumps(long_chat(0, messages)).encode() for messages in (4, 40))
    bodies = [body for body, _ in _pieces(b"[" + b",".join([short] * 10_000) + b"]")]
    assert len(bodies) == 100
    assert not any(is_crowded(body, MAX_VALUES // 4) for body in bodies[::20])
    largest = b"[" + b",".join([one] * (31_900_000 // (len(one) + 1))) + b"]"
    assert not is_crowded(largest, MAX_VALUES)
    assert (await imported(ann, [long_chat(number) for number in range(20)]))["made"] == 20


async def test_one_import_is_read_at_a_time_and_only_some_wait(ann: httpx2.AsyncClient, house: House) -> None:
    chats = [[chatgpt(str(at))] for at in range(WAITING_IMPORTS + 1)]
    async with house.platform.imports.one():
        sent = [asyncio.ensure_future(ann.post("/api/v1/imports?agent=scripted_agent", json=each)) for each in chats]
        done, waiting = await asyncio.wait(sent, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = [each.result() for each in done]
    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "unavailable", "10")
    assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [201] * WAITING_IMPORTS
