"""Credentials: API keys, password logins, and the one function that turns any of them into a Principal."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.domain import Credential, Page, Principal, Role, Scope, User, new_id, now
from app.errors import Conflict, InvalidInput, NotAllowed, NotAuthenticated, NotFound, RateLimited, Unavailable
from app.store import accounts, audit, credentials
from app.usecases.creations import claim
from app.usecases.platform import Platform

ACCESS_SECONDS = 900
REFRESH_DAYS = 30
MAX_KEYS = 100
"""The most API keys of one user."""
FAILURE_WINDOW = timedelta(minutes=15)
FAILURES_PER_NAME_AND_ADDRESS = 5
FAILURES_PER_NAME = 50
FAILURES_PER_ADDRESS = 100
"""How many wrong passwords are allowed in a window: few for one name from one address, so that a stranger cannot lock an account's
owner out; more for a name or an address as a whole. A login counts as wrong until it is found right."""
REFUSAL = "Name or password is wrong."
ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a password login gives: an access token for `expires_in` seconds, and a refresh token to get the next pair, once."""

    access: str
    refresh: str
    expires_in: int = ACCESS_SECONDS


def digest(secret: str) -> bytes:
    """How a secret is stored. Secrets carry 256 random bits, so a plain SHA-256 cannot be searched."""
    return hashlib.sha256(secret.encode()).digest()


async def authenticate(platform: Platform, secret: str) -> Principal:
    """Whom an API key or access token proves; `NotAuthenticated` when it is unknown, ended, or its user is suspended."""
    key = digest(secret)
    principal = await platform.proofs.get(key)
    if principal is None:
        raise NotAuthenticated
    platform.principals.put(key, principal)
    return principal


async def prove(engine: AsyncEngine, digests: Sequence[bytes]) -> Mapping[bytes, Principal]:
    """What `authenticate` has to know, for many in one statement."""
    async with engine.connect() as db:
        return await credentials.principals(db, digests)


async def recognise(platform: Platform, secret: str) -> Principal:
    """As `authenticate`, but what was proved a minute ago may do: for `messages.send` and `runs.resume`, which look again."""
    return platform.principals.get(digest(secret)) or await authenticate(platform, secret)


# API keys


async def create_key(
    platform: Platform,
    principal: Principal,
    *,
    name: str,
    scopes: Sequence[Scope] | None,
    days: int | None,
    once: str | None = None,
) -> tuple[Credential, str]:
    """Make an API key of the caller; its secret is given here and never again.

    With an idempotency key, `once`, equal requests make one; all but the first are a `Conflict` that names it, for nobody has its secret.
    It can do no more than the caller's credential, and lasts no longer when that is a key too.
    """
    wanted = frozenset(scopes) if scopes is not None else principal.scopes
    if not wanted <= principal.scopes:
        raise NotAllowed("scopes: a key cannot do more than the credential that makes it.", param="scopes")
    if not wanted:
        raise InvalidInput("scopes: name at least one.", param="scopes")
    return await _add_key(platform, principal, principal.user.id, name, wanted, days, once)


async def create_key_for(
    platform: Platform,
    principal: Principal,
    user_id: UUID,
    *,
    name: str,
    scopes: Sequence[Scope] | None,
    days: int | None,
    once: str | None = None,
) -> tuple[Credential, str]:
    """Make an API key for a user, as an administrator. Without `scopes` it can do all that its user may.

    It lasts no longer than the administrator's credential when that is a key. `once` is as in `create_key`.
    """
    require_admin(principal)
    async with platform.engine.connect() as db:
        user = await accounts.get_user(db, id=user_id)
    if user is None:
        raise NotFound("user", param="user_id")
    wanted = frozenset(scopes) if scopes is not None else scopes_of(user)
    if not wanted:
        raise InvalidInput("scopes: name at least one.", param="scopes")
    return await _add_key(platform, principal, user.id, name, wanted & scopes_of(user), days, once)


def require_admin(principal: Principal) -> None:
    """`NotAllowed` for everybody but administrators."""
    if not principal.is_admin:
        raise NotAllowed("Only an administrator may do that.")


def scopes_of(user: User) -> frozenset[Scope]:
    """All that a user's credentials can be good for."""
    return ALL_SCOPES if user.role is Role.ADMIN else ALL_SCOPES - {Scope.ADMIN}


async def _add_key(
    platform: Platform,
    maker: Principal,
    user_id: UUID,
    name: str,
    scopes: frozenset[Scope],
    days: int | None,
    once: str | None,
) -> tuple[Credential, str]:
    id = new_id()
    async with platform.engine.begin() as db:
        made = await claim(db, maker.user.id, once, id, "key", user_id, name, sorted(scopes), days)
        if made != id:
            raise Conflict(
                f"The API key {made} was made with this Idempotency-Key, and its secret was shown then. If it is lost, delete that key, "
                "and make another with another Idempotency-Key.",
                param="idempotency-key",
            )
        if await credentials.count_keys(db, user_id) >= MAX_KEYS:
            raise Conflict(f"There are {MAX_KEYS} keys already; delete one first.")
        ends = [now() + timedelta(days=days) if days else None, await credentials.key_expiry(db, maker.credential_id)]
        expires_at = min((end for end in ends if end), default=None)
        key = Credential(id, user_id, "key", name, "", scopes, None, now(), expires_at)
        if maker.user.id != user_id:
            await audit.add(db, maker, "key.create", id, {"user_id": str(user_id), "scopes": sorted(scopes)})
        return await _issue(db, key, "ck")


async def list_keys(platform: Platform, principal: Principal, *, after: UUID | None, limit: int) -> Page[Credential]:
    """The caller's keys."""
    async with platform.engine.connect() as db:
        return await credentials.list_keys(db, principal.user.id, after=after, limit=limit)


async def delete_key(platform: Platform, principal: Principal, key_id: UUID) -> None:
    """Revoke a key of the caller; it stops working at once."""
    async with platform.engine.begin() as db:
        if not await credentials.revoke(db, principal.user.id, key_id=key_id, kinds=["key"]):
            raise NotFound("key", param="key_id")


async def _issue(db: AsyncConnection, credential: Credential, prefix: str) -> tuple[Credential, str]:
    secret = f"{prefix}_{secrets.token_urlsafe(32)}"
    shown = replace(credential, hint=secret[-4:])
    await credentials.add(db, shown, digest(secret))
    return shown, secret


# Password logins


async def login(platform: Platform, name: str, password: str, *, address: str) -> Tokens:
    """Exchange name and password for tokens. Unknown names, wrong passwords and suspended users are told apart by nothing.

    The attempt is counted before the password is looked at, so that many at once get no further than one after the other.
    """
    here = f"{name.lower()}|{address}"
    limits = {
        here: FAILURES_PER_NAME_AND_ADDRESS,
        f"{name.lower()}|": FAILURES_PER_NAME,
        f"|{address}": FAILURES_PER_ADDRESS,
    }
    async with platform.engine.begin() as db:
        user = await accounts.get_user(db, name=name)
        stored = await accounts.password_hash(db, user.id) if user else None
        await count_failure(db, limits)
    if not await matches(platform, password, stored, limits) or user is None:
        raise NotAuthenticated(REFUSAL)
    async with platform.engine.begin() as db:
        user = await accounts.lock_user(db, user.id)
        if user is None or user.status != "active" or await accounts.password_hash(db, user.id) != stored:
            raise NotAuthenticated(REFUSAL)
        await credentials.uncount_login(db, list(limits))
        await credentials.clear_login_failures(db, here)
        return await open_login(db, user, new_id())


async def count_failure(db: AsyncConnection, limits: Mapping[str, int]) -> None:
    """Count a password as wrong for each subject; `RateLimited`, and not counted, where it is one more than a subject's limit."""
    counts = await credentials.count_login(db, list(limits), now() - FAILURE_WINDOW)
    if any(counts[subject] > limit for subject, limit in limits.items()):
        raise RateLimited("Too many wrong passwords. Try again later.", retry_after=FAILURE_WINDOW.total_seconds())


async def matches(platform: Platform, password: str, stored: str | None, limits: Mapping[str, int]) -> bool:
    """Whether a password fits that was counted as wrong; it is not when nobody has time to look."""
    try:
        return await platform.passwords.matches(password, stored)
    except Unavailable:
        async with platform.engine.begin() as db:
            await credentials.uncount_login(db, list(limits))
        raise


async def refresh(platform: Platform, token: str) -> Tokens:
    """Exchange a refresh token for a new pair. One that was used before ends its whole login, for it may be stolen."""
    async with platform.engine.begin() as db:
        user_id = await credentials.holder(db, digest(token))
        user = await accounts.lock_user(db, user_id) if user_id else None
        taken = await credentials.take_refresh_token(db, digest(token)) if user else None
        if user and taken:
            used, good = taken
            if good and used.login_id:
                await credentials.revoke(db, user.id, login_id=used.login_id, kinds=["access"])
                return await open_login(db, user, used.login_id)
            await credentials.revoke(db, user.id, login_id=used.login_id)
    raise NotAuthenticated("The refresh token is not valid; log in again.")


async def logout(platform: Platform, principal: Principal) -> None:
    """End the caller's login with all its tokens. An API key has no login: delete the key instead."""
    if principal.login_id is None:
        raise Conflict("This credential is no login; delete the key instead.")
    async with platform.engine.begin() as db:
        await accounts.lock_user(db, principal.user.id)
        await credentials.revoke(db, principal.user.id, login_id=principal.login_id)


async def open_login(db: AsyncConnection, user: User, login_id: UUID) -> Tokens:
    """Tokens for a user who was proved, and is locked."""
    scopes = scopes_of(user)
    ends = now() + timedelta(seconds=ACCESS_SECONDS)
    access = Credential(new_id(), user.id, "access", "login", "", scopes, login_id, now(), ends)
    renews = now() + timedelta(days=REFRESH_DAYS)
    renewal = Credential(new_id(), user.id, "refresh", "login", "", scopes, login_id, now(), renews)
    return Tokens((await _issue(db, access, "ca"))[1], (await _issue(db, renewal, "cr"))[1])
