"""What fuzzing starts from: two users with objects of their own, an administrator, and what none of them may lose."""

from __future__ import annotations

from typing import Any

import aiohttp
import msgspec

from app.api.examples import WORDS
from tests.e2e.cluster import ADMIN_KEY, Caller, Cluster, Server

PASSWORD = WORDS["password"]
"""Everybody's, so that the document's example of a login is a good one."""
SEEDS = ("session_id", "message_id", "run_id", "user_id", "budget_id", "file_id")
SESSIONS = 3
"""Of each user, to be used by both."""


class Fuzzed(msgspec.Struct):
    """The server and who fuzzes it, for the hooks, which run in another process."""

    url: str
    keeper: str
    """The key of the administrator who mends what the others break; nobody fuzzes as him."""
    keys: dict[str, str]
    """By name."""
    owners: dict[str, str]
    """The name of the user whose object it is, by its id."""
    seeds: dict[str, list[str]]
    """Ids by what they are of."""
    spared: dict[str, str]
    """What is not to be harmed, by id: what kind of thing it is."""


async def furnish(found: Cluster, server: Server) -> Fuzzed:
    """Make the users, and what they have."""
    keeper = found.admin
    me = await keeper.get(server, "/api/v1/auth/users/me")
    groups = await keeper.get(server, "/api/v1/groups")
    spared = {me["id"]: "user", **{group["id"]: "group" for group in groups["data"]}}
    keys: dict[str, str] = {}
    owners: dict[str, str] = {}
    readers = await keeper.post(server, "/api/v1/groups", {"name": "readers"})
    seeds: dict[str, list[str]] = {name: [] for name in SEEDS}
    seeds["group_id"] = [readers["id"]]
    spared[readers["id"]] = "group"
    for name, role in (("ada", "user"), ("bob", "user"), ("warden", "admin")):
        user = await keeper.post(server, "/api/v1/users", {"name": name, "role": role, "password": PASSWORD})
        key = await keeper.post(server, f"/api/v1/users/{user['id']}/keys", {"name": name})
        keys[name] = key["key"]
        spared |= {user["id"]: "user", key["id"]: "key"}
        if role == "user":
            limit = {"scope": "user", "id": user["id"], "period": "day", "tokens": 10**15}
            budget = await keeper.post(server, "/api/v1/budgets", limit)
            seeds["budget_id"].append(budget["id"])
            seeds["user_id"].append(user["id"])
            await _converse(Caller(found.http, key["key"]), server, name, owners, seeds)
            await _upload(found.http, server.url, key["key"], name, owners, seeds)
    spared |= dict.fromkeys(seeds["session_id"], "session")
    assert server.serve is not None
    return Fuzzed(server.url, ADMIN_KEY, keys, owners, seeds, spared)


async def _converse(
    caller: Caller, server: Server, name: str, owners: dict[str, str], seeds: dict[str, list[str]]
) -> None:
    for number in range(SESSIONS):
        session_id = await caller.session(server, "scripted_agent")
        answer: dict[str, Any] = await caller.say(server, session_id, f"repeat: {name} {number}")
        for kind, id in (("session_id", session_id), *((kind, answer[kind]) for kind in ("message_id", "run_id"))):
            seeds[kind].append(id)
            owners[id] = name


async def _upload(
    http: aiohttp.ClientSession, url: str, key: str, name: str, owners: dict[str, str], seeds: dict[str, list[str]]
) -> None:
    form = aiohttp.FormData({"purpose": "user_data"})
    form.add_field("file", f"of {name}".encode(), filename=f"{name}.txt")
    headers = {"authorization": f"Bearer {key}"}
    async with http.post(f"{url}/v1/files", data=form, headers=headers) as answer:
        id = (await answer.json())["id"]
    seeds["file_id"].append(id)
    owners[id] = name


async def unharmed(found: Cluster, server: Server, fuzzed: Fuzzed) -> None:
    """Check that the server serves, that nobody lost his place, and that nothing unexpected happened inside."""
    for name, key in fuzzed.keys.items():
        caller = Caller(found.http, key)
        status, me = await caller.call(server, "GET", "/api/v1/auth/users/me")
        assert (status, me.get("name")) == (200, name), (name, me)
        session_id = await caller.session(server, "scripted_agent")
        assert (await caller.say(server, session_id, "repeat: still here"))["content"] == "still here"
    for sign in ("unexpected error", "Traceback", "an answer broke off", "for a server that died"):
        assert sign not in server.output, f"the server's log has: {sign}"
