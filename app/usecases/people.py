"""Many accounts at once, from a table: all of them, or none. Each user gets a link by which he sets his password."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from app.domain import Principal, Role, User, new_id, now
from app.errors import Conflict, InvalidInput
from app.store import accounts, audit
from app.usecases import invites
from app.usecases.logins import require_admin
from app.usecases.platform import Platform

COLUMNS = ("name", "role", "groups")
MAX_ROWS = 1000
MAX_NAME = 100
DELIMITERS = ",;\t"
"""Of the table, as its first line has it. Several groups of one user are divided by a bar: `staff|editors`."""


class Person(NamedTuple):
    """A row of the table."""

    line: int
    name: str
    role: Role
    groups: Sequence[str]


async def take(platform: Platform, principal: Principal, table: str, *, days: int) -> Sequence[tuple[User, str]]:
    """Make the accounts of a table, each with the secret of its link. `InvalidInput` and `Conflict` name line and column."""
    require_admin(principal)
    people = list(_read(table))
    async with platform.engine.begin() as db:
        known = await accounts.group_ids(db, sorted({group for person in people for group in person.groups}))
        made = []
        for person in people:
            user = User(new_id(), person.name, person.role, "active", now())
            for group in person.groups:
                if group not in known or group == accounts.EVERYONE:
                    raise _wrong(person.line, "groups", "there is no such group to be put into")
            if not await accounts.add_user(db, user, None):
                raise Conflict(f"Line {person.line}, column name: another user has this name.", param="csv")
            await accounts.add_to_groups(db, user.id, [known[group] for group in person.groups])
            await audit.add(db, principal, "user.create", user.id, {"role": user.role})
            made.append((user, (await invites.add_for(db, principal, user, days))[1]))
    return made


def _wrong(line: int, column: str, what: str) -> InvalidInput:
    return InvalidInput(f"Line {line}, column {column}: {what}.", param="csv")


def _read(table: str) -> Iterator[Person]:
    """The rows, checked. The first line names the columns: `name`, and if wanted `role` and `groups`."""
    table = table.removeprefix("\ufeff")
    first = table.partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(table, newline=""), delimiter=delimiter, strict=True)
    seen: set[str] = set()
    try:
        columns = [cell.strip().lower() for cell in next(reader, [])]
        if "name" not in columns or len(set(columns)) < len(columns) or not set(columns) <= set(COLUMNS):
            raise InvalidInput("Line 1: name the columns name, and if wanted role and groups.", param="csv")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(seen) == MAX_ROWS:
                raise InvalidInput(f"Line {reader.line_num}: at most {MAX_ROWS} users are made at once.", param="csv")
            if len(cells) != len(columns):
                raise InvalidInput(
                    f"Line {reader.line_num}: it has {len(cells)} columns, and the first line {len(columns)}.",
                    param="csv",
                )
            given = dict(zip(columns, map(str.strip, cells), strict=True))
            person = _person(reader.line_num, given)
            if person.name.lower() in seen:
                raise _wrong(person.line, "name", "an earlier line has it")
            seen.add(person.name.lower())
            yield person
    except csv.Error as error:
        raise InvalidInput(f"Line {reader.line_num}: {error}.", param="csv") from None
    if not seen:
        raise InvalidInput("The table has no users.", param="csv")


def _person(line: int, given: dict[str, str]) -> Person:
    name, role = given["name"], given.get("role") or "user"
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise _wrong(line, "name", f"must have 1 to {MAX_NAME} visible characters")
    if role not in list(Role):
        raise _wrong(line, "role", "must be user or admin")
    groups = [group.strip() for group in given.get("groups", "").split("|")]
    return Person(line, name, Role(role), [group for group in groups if group])
