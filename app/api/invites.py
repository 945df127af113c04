"""REST: links for new accounts and new passwords under `/api/v1/invites`, and what their receivers do with them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import Field

from app.api.callers import Admin, Here, StrictRoute
from app.api.fields import After, Id, Limit, Name, Secret, Table
from app.api.models import In, ListOf, Out, UserOut, page
from app.domain import Invite, Role
from app.usecases import invites, people

router = APIRouter(prefix="/api/v1", route_class=StrictRoute)
ACCEPT = "/auth/invite"
Days = Annotated[int, Field(ge=1, le=30, description="days until it ends")]


class InviteIn(In):
    """A link for a new account; its user chooses a name where there is none. With `user_id` it is for that user's new password."""

    name: Name | None = None
    role: Role = Role.USER
    groups: list[Name] = Field(default_factory=list, max_length=50, description="names of groups")
    user_id: Id | None = None
    days: Days = invites.DAYS


class InviteOut(Out):
    """A link that was not used yet."""

    id: UUID
    user_id: UUID | None
    name: str | None
    role: Role
    groups: list[UUID]
    created_by: UUID
    created_at: datetime | None
    expires_at: datetime


class NewInviteOut(InviteOut):
    """A link with its secret, which is shown this once. `path` follows the server's address."""

    secret: str
    path: str


class LinkIn(In):
    """The secret of a link."""

    secret: Secret


class LinkOut(Out):
    """What a link is for: an account of this name, or of one that is still to be chosen."""

    name: str | None
    role: Role
    is_new: bool
    expires_at: datetime


class AcceptIn(LinkIn):
    """What whoever has the link chooses; a name only where the link has none."""

    name: Name | None = None
    password: Secret


class PeopleIn(In):
    """A table as CSV: its first line names the columns `name`, and if wanted `role` and `groups` (`staff|editors`)."""

    csv: Table
    days: Days = invites.DAYS


class PersonOut(UserOut):
    """A new account, and the link by which its user sets his password."""

    path: str


class PeopleOut(Out):
    """The accounts that were made, in the order of the table."""

    data: list[PersonOut]


def _path(secret: str) -> str:
    return f"/#/invite/{secret}"


def _new(made: tuple[Invite, str]) -> NewInviteOut:
    invite, secret = made
    shown = InviteOut.model_validate(invite).model_dump()
    return NewInviteOut(**shown, secret=secret, path=_path(secret))


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


@router.post("/invites", status_code=201, tags=["users"])
async def create_invite(here: Here, caller: Admin, body: InviteIn) -> NewInviteOut:
    """Make a link for a new account, or for a user's new password. It works once; its secret is in this answer and never shown again."""
    if body.user_id is not None:
        return _new(await invites.create_for(here, caller, body.user_id, days=body.days))
    groups: Sequence[str] = list(dict.fromkeys(body.groups))
    return _new(await invites.create(here, caller, name=body.name, role=body.role, groups=groups, days=body.days))


@router.get("/invites", tags=["users"])
async def list_invites(here: Here, caller: Admin, limit: Limit = 20, after: After = None) -> ListOf[InviteOut]:
    """Links that can still be used."""
    return page(InviteOut.model_validate, await invites.list_page(here, caller, after=after, limit=limit))


@router.delete("/invites/{invite_id}", status_code=204, tags=["users"])
async def delete_invite(here: Here, caller: Admin, invite_id: Id) -> None:
    """Take a link back."""
    await invites.delete(here, caller, invite_id)


@router.post(f"{ACCEPT}/look", tags=["accounts"])
async def look_at_invite(request: Request, here: Here, body: LinkIn) -> LinkOut:
    """What a link is for; it stays as good as it is."""
    found = await invites.look(here, body.secret, address=_address(request))
    return LinkOut(name=found.name, role=found.role, is_new=found.user_id is None, expires_at=found.expires_at)


@router.post(ACCEPT, status_code=201, tags=["accounts"])
async def accept_invite(request: Request, here: Here, body: AcceptIn) -> UserOut:
    """Use a link: it makes the account, or sets the password, which ends all logins of the user."""
    user = await invites.accept(here, body.secret, name=body.name, password=body.password, address=_address(request))
    return UserOut.model_validate(user)


@router.post("/users/import", status_code=201, tags=["users"])
async def import_users(here: Here, caller: Admin, body: PeopleIn) -> PeopleOut:
    """Make the accounts of a table, all or none, each with a link for its password. An error names the line and the column."""
    made = await people.take(here, caller, body.csv, days=body.days)
    return PeopleOut(
        data=[PersonOut(**UserOut.model_validate(user).model_dump(), path=_path(secret)) for user, secret in made]
    )
