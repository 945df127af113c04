"""Links by which people come in: for a new account, or for a new password of one. Each works once, and for some days.

The secret is shown when the link is made, stands in the part of an address that browsers do not send, and is stored as a digest.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Invite, Page, Principal, Role, User, new_id, now
from app.errors import Conflict, InvalidInput, NotFound, RateLimited, must_exist
from app.store import accounts, audit, credentials, invites
from app.usecases.logins import FAILURE_WINDOW, digest, require_admin
from app.usecases.platform import Platform

DAYS = 7
TRIES_PER_ADDRESS = 30
"""How many wrong links one address may try in a window of failed logins."""


async def create(
    platform: Platform, principal: Principal, *, name: str | None, role: Role, groups: Sequence[str], days: int
) -> tuple[Invite, str]:
    """A link for a new account with this role, in the groups of these names. Without a `name` its user chooses one."""
    require_admin(principal)
    async with platform.engine.begin() as db:
        if name and await accounts.get_user(db, name=name):
            raise Conflict("name: another user has this name.", param="name")
        ids = await group_ids(db, groups)
        return await _add(db, principal, days, name=name, role=role, groups=[ids[each] for each in groups])


async def create_for(platform: Platform, principal: Principal, user_id: UUID, *, days: int) -> tuple[Invite, str]:
    """A link by which a user sets a new password; it takes the place of an earlier one of his."""
    require_admin(principal)
    async with platform.engine.begin() as db:
        user = must_exist(await accounts.lock_user(db, user_id), "user", param="user_id")
        await invites.remove_of(db, user_id)
        return await add_for(db, principal, user, days)


async def add_for(db: AsyncConnection, principal: Principal, user: User, days: int) -> tuple[Invite, str]:
    """The same in the transaction of the caller."""
    return await _add(db, principal, days, user_id=user.id, name=user.name, role=user.role)


async def group_ids(db: AsyncConnection, names: Sequence[str]) -> Mapping[str, UUID]:
    """The ids of groups by their names; `InvalidInput` for one that is not there."""
    found = await accounts.group_ids(db, names)
    for index, name in enumerate(names):
        if name not in found or name == accounts.EVERYONE:
            raise InvalidInput(f"groups[{index}]: there is no such group to be put into.", param=f"groups[{index}]")
    return found


async def _add(
    db: AsyncConnection,
    principal: Principal,
    days: int,
    *,
    name: str | None,
    role: Role,
    groups: Sequence[UUID] = (),
    user_id: UUID | None = None,
) -> tuple[Invite, str]:
    moment = now()
    ends = [moment + timedelta(days=days), await credentials.key_expiry(db, principal.credential_id)]
    expires_at = min(end for end in ends if end)
    invite = Invite(new_id(), principal.user.id, expires_at, user_id, name, role, groups, moment)
    secret = f"ci_{secrets.token_urlsafe(32)}"
    await invites.add(db, invite, digest(secret))
    told = {"user_id": str(user_id)} if user_id else {"role": role, "groups": [str(id) for id in groups]}
    await audit.add(db, principal, "invite.create", invite.id, told)
    return invite, secret


async def list_page(platform: Platform, principal: Principal, *, after: UUID | None, limit: int) -> Page[Invite]:
    """Links that can still be used."""
    require_admin(principal)
    async with platform.engine.connect() as db:
        return await invites.list_page(db, after=after, limit=limit)


async def delete(platform: Platform, principal: Principal, id: UUID) -> None:
    """Take a link back."""
    require_admin(principal)
    async with platform.engine.begin() as db:
        if not await invites.remove(db, id):
            raise NotFound("invite", param="invite_id")
        await audit.add(db, principal, "invite.delete", id)


async def look(platform: Platform, secret: str, *, address: str) -> Invite:
    """What a link is for; `NotFound` when it is good for nothing. Wrong ones are counted by address, as failed logins are."""
    subject = f"invite|{address}"
    async with platform.engine.begin() as db:
        counts = await credentials.count_login(db, [subject], now() - FAILURE_WINDOW)
        if counts[subject] > TRIES_PER_ADDRESS:
            raise RateLimited("Too many wrong links. Try again later.", retry_after=FAILURE_WINDOW.total_seconds())
        invite = await invites.find(db, digest(secret))
        if invite:
            await credentials.uncount_login(db, [subject])
    if invite is None:
        raise NotFound("invite", param="secret")
    return invite


async def accept(platform: Platform, secret: str, *, name: str | None, password: str, address: str) -> User:
    """Use a link: the new account, or the one whose password is set, which ends its logins. Of several at once one succeeds.

    `name` is needed where the link has none. One that is taken is a `Conflict`, and leaves the link as it was.
    """
    invite = await look(platform, secret, address=address)
    wanted = invite.name or name
    if wanted is None:
        raise InvalidInput("name: choose one.", param="name")
    hashed = await platform.passwords.hash(password)
    async with platform.engine.begin() as db:
        if invite.user_id is None:
            user = await _new(db, invite, wanted, hashed)
        else:
            user = must_exist(await accounts.lock_user(db, invite.user_id), "invite", param="secret")
            await accounts.update_user(db, user.id, {"password_hash": hashed})
            await credentials.revoke(db, user.id, kinds=["access", "refresh"])
        if not await invites.take(db, invite.id):
            raise NotFound("invite", param="secret")
        maker = Principal(User(invite.created_by, ""), frozenset())
        if invite.user_id is None:
            await audit.add(db, maker, "user.create", user.id, {"role": user.role, "invite": str(invite.id)})
        else:
            await audit.add(db, maker, "user.update", user.id, {"password": "set", "invite": str(invite.id)})
    return user


async def _new(db: AsyncConnection, invite: Invite, name: str, hashed: str) -> User:
    user = User(new_id(), name, invite.role, "active", now())
    if not await accounts.add_user(db, user, hashed):
        raise Conflict("name: another user has this name.", param="name")
    await accounts.add_to_groups(db, user.id, invite.groups)
    return user
