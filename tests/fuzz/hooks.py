"""Schemathesis' hooks: whose objects it uses, what it must not break, and that nobody gets what is another's.

Nothing is excluded but:

- What ends a fuzzing user's own access, or everybody's, or the objects that both are to use, is done to something of the same kind that
  is made for it: `SPARED` has their ids. Otherwise all that follows would be a 401, and nothing would be found any more.
"""

from __future__ import annotations

import re
import uuid
import zlib
from pathlib import Path
from typing import Any

import msgspec
import requests
import schemathesis
from schemathesis import Case, CheckContext, HookContext, Response

from tests.fuzz.house import Fuzzed

FUZZED = msgspec.json.decode(Path("fuzzed.json").read_bytes(), type=Fuzzed)
_ID = re.compile(r"(?:[a-z]+[-_])?[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)
_ALIKE = {"leaf_id": "message_id", "parent_id": "message_id", "x-session-id": "session_id"}
_MAKES: dict[str, tuple[str, dict[str, Any]]] = {
    "user": ("/api/v1/users", {}),
    "group": ("/api/v1/groups", {}),
    "key": ("/api/v1/keys", {}),
    "session": ("/api/v1/sessions", {"agent": {"id": "scripted_agent"}}),
}


def _seeded(values: Any) -> Any:
    """Three of four ids become those of objects that exist, of one user or the other."""
    if not isinstance(values, dict):
        return values
    for name, value in values.items():
        known = FUZZED.seeds.get(_ALIKE.get(name, name))
        if known and isinstance(value, str) and _ID.fullmatch(value):
            chosen = zlib.crc32(value.encode())
            if chosen % 4:
                values[name] = known[chosen // 4 % len(known)]
    return values


@schemathesis.hook
def map_path_parameters(context: HookContext, path_parameters: Any) -> Any:
    return _seeded(path_parameters)


@schemathesis.hook
def map_query(context: HookContext, query: Any) -> Any:
    return _seeded(query)


@schemathesis.hook
def map_headers(context: HookContext, headers: Any) -> Any:
    return _seeded(headers)


@schemathesis.hook
def map_body(context: HookContext, body: Any) -> Any:
    return _seeded(body)


@schemathesis.hook
def before_call(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    if not _harms(case):
        return
    for values in (case.path_parameters, case.body, case.query):
        if isinstance(values, dict):
            for name, value in values.items():
                if isinstance(value, str) and (kind := FUZZED.spared.get(_canonical(value))):
                    values[name] = _made_for_it(kind, case)


def _harms(case: Case) -> bool:
    """Whether it takes something away, or limits it."""
    path = case.operation.path
    is_change = case.method in ("DELETE", "PATCH", "PUT") and path.startswith(("/api/v1/users", "/api/v1/groups"))
    return case.method == "DELETE" or is_change or path in ("/DeleteSession", "/api/v1/budgets")


def _made_for_it(kind: str, case: Case) -> str:
    """The id of a new thing of that kind, of whoever is to lose it."""
    path, fields = _MAKES[kind]
    if kind in ("user", "group"):
        fields = {"name": uuid.uuid4().hex}
    elif kind == "key":
        fields = {"name": "made to be lost"}
    key = FUZZED.keys.get(case.auth_identity or "", FUZZED.keeper) if kind in ("key", "session") else FUZZED.keeper
    made = requests.post(FUZZED.url + path, json=fields, headers={"authorization": f"Bearer {key}"}, timeout=30)
    if made.status_code == 409:  # he has as many keys as he may have
        return str(uuid.uuid4())
    made.raise_for_status()
    return str(made.json()["id"])


def _canonical(value: str) -> str:
    try:
        return str(uuid.UUID(value))
    except ValueError:
        return value


@schemathesis.check
def another_users_objects_are_not_found(ctx: CheckContext, response: Response, case: Case) -> None:
    """A request that names an object of the other user, in its path or as what it is about, has no success."""
    me = case.auth_identity
    if me not in ("ada", "bob") or response.status_code >= 300:
        return
    for values in (case.path_parameters, case.body):
        for name, value in values.items() if isinstance(values, dict) else ():
            owner = FUZZED.owners.get(_canonical(value)) if isinstance(value, str) and name != "after" else None
            assert owner in (None, me), f"{me} could use {name} of {owner}"


@schemathesis.check
def errors_are_small_and_say_nothing_of_the_inside(ctx: CheckContext, response: Response, case: Case) -> None:
    """An error is one sentence, without SQL, paths or traces."""
    if response.status_code < 400:
        return
    assert len(response.content) < 4096, "an error is large"
    for word in (b"Traceback", b"asyncpg", b"sqlalchemy", b'.py\\"', b"/home", b"SELECT ", b"INSERT "):
        assert word not in response.content, f"an error says {word!r}"
    assert response.headers.get("x-request-id"), "an answer has no id"
