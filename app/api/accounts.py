"""REST: logins, keys, users and groups under `/api/v1`."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Request

from app.api.callers import Account, Admin, Here, StrictRoute
from app.api.fields import After, AgentOrAll, Id, Key, Limit, Name, Secret
from app.api.models import (
    GroupIn,
    GroupOut,
    KeyIn,
    KeyOut,
    ListOf,
    NewKeyOut,
    PasswordChange,
    RefreshIn,
    TokensOut,
    UserChange,
    UserIn,
    UserOut,
    page,
)
from app.usecases import accounts, groups, logins

router = APIRouter(prefix="/api/v1", route_class=StrictRoute)


def _tokens(tokens: logins.Tokens) -> TokensOut:
    return TokensOut(access_token=tokens.access, refresh_token=tokens.refresh, expires_in=tokens.expires_in)


@router.post("/auth/token", tags=["accounts"])
async def log_in(
    request: Request,
    here: Here,
    username: Annotated[Name, Form()],
    password: Annotated[Secret, Form()],
    grant_type: Annotated[Literal["password"], Form()] = "password",
) -> TokensOut:
    """Exchange name and password for a short token and a refresh token (RFC 6749, section 4.3)."""
    address = request.client.host if request.client else ""
    return _tokens(await logins.login(here, username, password, address=address))


@router.post("/auth/refresh", tags=["accounts"])
async def refresh(here: Here, body: RefreshIn) -> TokensOut:
    """Exchange a refresh token, once, for a new pair."""
    return _tokens(await logins.refresh(here, body.refresh_token))


@router.post("/auth/logout", status_code=204, tags=["accounts"])
async def log_out(here: Here, caller: Account) -> None:
    """End this login; all its tokens stop working at once."""
    await logins.logout(here, caller)


@router.post("/auth/password", status_code=204, tags=["accounts"])
async def change_password(here: Here, caller: Account, body: PasswordChange) -> None:
    """Set one's own password; every login ends."""
    await accounts.change_password(here, caller, old=body.old_password, new=body.new_password)


@router.get("/auth/users/me", tags=["accounts"])
async def me(caller: Account) -> UserOut:
    """The caller."""
    return UserOut.model_validate(caller.user)


@router.post("/keys", status_code=201, tags=["accounts"])
async def create_key(here: Here, caller: Account, body: KeyIn, idempotency_key: Key = None) -> NewKeyOut:
    """Make an API key; its secret is in this answer and never shown again, not even for the same `Idempotency-Key`: that is a 409."""
    key, secret = await logins.create_key(
        here, caller, name=body.name, scopes=body.scopes, days=body.days, once=idempotency_key
    )
    return NewKeyOut(**KeyOut.model_validate(key).model_dump(), key=secret)


@router.get("/keys", tags=["accounts"])
async def list_keys(here: Here, caller: Account, limit: Limit = 20, after: After = None) -> ListOf[KeyOut]:
    """The caller's keys."""
    return page(KeyOut.model_validate, await logins.list_keys(here, caller, after=after, limit=limit))


@router.delete("/keys/{key_id}", status_code=204, tags=["accounts"])
async def delete_key(here: Here, caller: Account, key_id: Id) -> None:
    """Revoke a key; it stops working at once."""
    await logins.delete_key(here, caller, key_id)


@router.post("/users", status_code=201, tags=["users"])
async def create_user(here: Here, caller: Admin, body: UserIn, idempotency_key: Key = None) -> UserOut:
    """Make an account. Requests with the same `Idempotency-Key` make one, for a day; whether their passwords are equal is not looked at."""
    made = await accounts.create_user(
        here, caller, name=body.name, role=body.role, password=body.password, key=idempotency_key
    )
    return UserOut.model_validate(made)


@router.get("/users", tags=["users"])
async def list_users(here: Here, caller: Admin, limit: Limit = 20, after: After = None) -> ListOf[UserOut]:
    """All accounts."""
    return page(UserOut.model_validate, await accounts.list_users(here, caller, after=after, limit=limit))


@router.get("/users/{user_id}", tags=["users"])
async def get_user(here: Here, caller: Account, user_id: Id) -> UserOut:
    """An account; for anybody but administrators only the own one exists."""
    return UserOut.model_validate(await accounts.get_user(here, caller, user_id))


@router.patch("/users/{user_id}", tags=["users"])
async def update_user(here: Here, caller: Admin, user_id: Id, body: UserChange) -> UserOut:
    """Change role, status or password. A suspended user is shut out at once."""
    changed = await accounts.update_user(
        here, caller, user_id, role=body.role, status=body.status, password=body.password
    )
    return UserOut.model_validate(changed)


@router.delete("/users/{user_id}", status_code=204, tags=["users"])
async def delete_user(here: Here, caller: Admin, user_id: Id) -> None:
    """Erase a user with everything that is his."""
    await accounts.delete_user(here, caller, user_id)


@router.post("/users/{user_id}/keys", status_code=201, tags=["users"])
async def create_key_for(here: Here, caller: Admin, user_id: Id, body: KeyIn, idempotency_key: Key = None) -> NewKeyOut:
    """Make an API key for a user; its secret is in this answer and never shown again, as with `POST /api/v1/keys`."""
    key, secret = await logins.create_key_for(
        here, caller, user_id, name=body.name, scopes=body.scopes, days=body.days, once=idempotency_key
    )
    return NewKeyOut(**KeyOut.model_validate(key).model_dump(), key=secret)


@router.post("/groups", status_code=201, tags=["groups"])
async def create_group(here: Here, caller: Admin, body: GroupIn, idempotency_key: Key = None) -> GroupOut:
    """Make a group. Requests with the same `Idempotency-Key` make one, for a day."""
    return GroupOut.model_validate(await groups.create_group(here, caller, name=body.name, key=idempotency_key))


@router.get("/groups", tags=["groups"])
async def list_groups(here: Here, caller: Admin, limit: Limit = 20, after: After = None) -> ListOf[GroupOut]:
    """All groups with the agents they may use. Everybody is in `everyone`."""
    return page(GroupOut.model_validate, await groups.list_groups(here, caller, after=after, limit=limit))


@router.delete("/groups/{group_id}", status_code=204, tags=["groups"])
async def delete_group(here: Here, caller: Admin, group_id: Id) -> None:
    """Delete a group."""
    await groups.delete_group(here, caller, group_id)


@router.get("/groups/{group_id}/members", tags=["groups"])
async def list_members(
    here: Here, caller: Admin, group_id: Id, limit: Limit = 20, after: After = None
) -> ListOf[UserOut]:
    """A group's members."""
    return page(UserOut.model_validate, await groups.list_members(here, caller, group_id, after=after, limit=limit))


@router.put("/groups/{group_id}/members/{user_id}", status_code=204, tags=["groups"])
async def add_member(here: Here, caller: Admin, group_id: Id, user_id: Id) -> None:
    """Put a user into a group."""
    await groups.add_member(here, caller, group_id, user_id)


@router.delete("/groups/{group_id}/members/{user_id}", status_code=204, tags=["groups"])
async def remove_member(here: Here, caller: Admin, group_id: Id, user_id: Id) -> None:
    """Take a user out of a group."""
    await groups.remove_member(here, caller, group_id, user_id)


@router.put("/groups/{group_id}/agents/{agent_id}", status_code=204, tags=["groups"])
async def add_grant(here: Here, caller: Admin, group_id: Id, agent_id: AgentOrAll) -> None:
    """Let a group use an agent; `*` stands for all."""
    await groups.add_grant(here, caller, group_id, agent_id)


@router.delete("/groups/{group_id}/agents/{agent_id}", status_code=204, tags=["groups"])
async def remove_grant(here: Here, caller: Admin, group_id: Id, agent_id: AgentOrAll) -> None:
    """Take the use of an agent from a group."""
    await groups.remove_grant(here, caller, group_id, agent_id)
