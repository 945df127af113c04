"""API keys, login tokens and failed logins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    LargeBinary,
    Row,
    and_,
    any_,
    case,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Credential, Page, Principal, Scope, now
from app.store.accounts import user_of
from app.store.pages import page_by_id
from app.store.tables import credentials, login_failures, users

_PROOF = ("digest", "login_id", "scopes")


async def add(db: AsyncConnection, credential: Credential, digest: bytes) -> None:
    """Store the digest of a key or token; the secret itself is never stored."""
    await db.execute(
        insert(credentials).values(
            id=credential.id,
            user_id=credential.user_id,
            kind=credential.kind,
            digest=digest,
            name=credential.name,
            hint=credential.hint,
            scopes=sorted(credential.scopes),
            login_id=credential.login_id,
            expires_at=credential.expires_at,
        )
    )


async def exists(db: AsyncConnection, digest: bytes) -> bool:
    """Whether this digest was ever stored, good or not."""
    return (await db.execute(select(credentials.c.id).where(credentials.c.digest == digest))).first() is not None


async def key_expiry(db: AsyncConnection, id: UUID | None) -> datetime | None:
    """When an API key expires; None for one that does not, and for what is no API key."""
    query = select(credentials.c.expires_at).where(credentials.c.id == id, credentials.c.kind == "key")
    return (await db.execute(query)).scalar()


async def principals(db: AsyncConnection, digests: Sequence[bytes]) -> Mapping[bytes, Principal]:
    """Whom keys and access tokens prove, those left out that are no longer good, or whose users are not."""
    query = (
        select(users, credentials.c.id.label("credential_id"), *(credentials.c[name] for name in _PROOF))
        .join_from(credentials, users, users.c.id == credentials.c.user_id)
        .where(credentials.c.digest == any_(literal(list(digests), ARRAY(LargeBinary))))
        .where(credentials.c.kind != "refresh", users.c.status == "active", is_good())
    )
    return {
        row.digest: Principal(user_of(row), frozenset(map(Scope, row.scopes)), row.credential_id, row.login_id)
        for row in await db.execute(query)
    }


def is_good() -> ColumnElement[bool]:
    """A credential that is neither revoked nor expired."""
    lasting = or_(credentials.c.expires_at.is_(None), credentials.c.expires_at > func.now())
    return and_(credentials.c.revoked_at.is_(None), lasting)


async def holder(db: AsyncConnection, digest: bytes) -> UUID | None:
    """Whose credential this is, good or not."""
    return (await db.execute(select(credentials.c.user_id).where(credentials.c.digest == digest))).scalar()


async def take_refresh_token(db: AsyncConnection, digest: bytes) -> tuple[Credential, bool] | None:
    """Use up a refresh token, and whether it was still good. A used or revoked one is given back as not good."""
    row = (
        await db.execute(
            select(credentials, and_(is_good(), users.c.status == "active").label("good"))
            .join_from(credentials, users, users.c.id == credentials.c.user_id)
            .where(credentials.c.digest == digest, credentials.c.kind == "refresh")
            .with_for_update(of=credentials)
        )
    ).first()
    if row is None:
        return None
    await db.execute(update(credentials).where(credentials.c.id == row.id).values(revoked_at=func.now()))
    return credential_of(row), row.good


def credential_of(row: Row[Any] | Any) -> Credential:
    """The credential in a row of `credentials`."""
    return Credential(
        row.id,
        row.user_id,
        row.kind,
        row.name,
        row.hint,
        frozenset(map(Scope, row.scopes)),
        row.login_id,
        row.created_at,
        row.expires_at,
    )


async def list_keys(db: AsyncConnection, user_id: UUID, *, after: UUID | None, limit: int) -> Page[Credential]:
    """A user's API keys that are not revoked."""
    query = select(credentials).where(
        credentials.c.user_id == user_id, credentials.c.kind == "key", credentials.c.revoked_at.is_(None)
    )
    return await page_by_id(db, query, credentials.c.id, credential_of, after=after, limit=limit)


async def count_keys(db: AsyncConnection, user_id: UUID) -> int:
    """How many keys a user has."""
    query = select(func.count()).where(
        credentials.c.user_id == user_id, credentials.c.kind == "key", credentials.c.revoked_at.is_(None)
    )
    return (await db.execute(query)).scalar_one()


async def revoke(
    db: AsyncConnection,
    user_id: UUID,
    *,
    key_id: UUID | None = None,
    login_id: UUID | None = None,
    name: str | None = None,
    kinds: Sequence[str] = ("key", "access", "refresh"),
) -> bool:
    """Revoke one key, one login, or all credentials of these kinds or name; false when there was nothing to revoke.

    Tokens are revoked under the lock of their user: else those that a login or renewal stores meanwhile are not seen.
    """
    chosen = [credentials.c.user_id == user_id, credentials.c.revoked_at.is_(None), credentials.c.kind.in_(kinds)]
    if key_id:
        chosen.append(credentials.c.id == key_id)
    if login_id:
        chosen.append(credentials.c.login_id == login_id)
    if name:
        chosen.append(credentials.c.name == name)
    statement = update(credentials).where(*chosen).values(revoked_at=func.now()).returning(credentials.c.id)
    return (await db.execute(statement)).first() is not None


async def sweep(db: AsyncConnection) -> None:
    """Forget tokens that ended a day ago and failures that no longer count."""
    long_ago = now() - timedelta(days=1)
    ended = or_(credentials.c.expires_at < long_ago, credentials.c.revoked_at < long_ago)
    await db.execute(delete(credentials).where(credentials.c.kind != "key", ended))
    await db.execute(delete(login_failures).where(login_failures.c.since < long_ago))


# Failed logins


async def count_login(db: AsyncConnection, subjects: Sequence[str], since: datetime) -> Mapping[str, int]:
    """Count a login as failed for each subject, and give the new counts; a window that began before `since` starts anew."""
    old = login_failures.c.since <= since
    new = [{"subject": subject, "failures": 1, "since": func.now()} for subject in sorted(subjects)]
    changes = {
        "failures": case((old, 1), else_=login_failures.c.failures + 1),
        "since": case((old, func.now()), else_=login_failures.c.since),
    }
    statement = upsert(login_failures).values(new).on_conflict_do_update(index_elements=["subject"], set_=changes)
    rows = await db.execute(statement.returning(login_failures.c.subject, login_failures.c.failures))
    return {row.subject: row.failures for row in rows}


async def uncount_login(db: AsyncConnection, subjects: Sequence[str]) -> None:
    """Take back that a login was counted as failed."""
    fewer = func.greatest(login_failures.c.failures - 1, 0)
    for subject in sorted(subjects):  # one after the other, so that two logins lock the rows in the same order
        await db.execute(update(login_failures).where(login_failures.c.subject == subject).values(failures=fewer))


async def clear_login_failures(db: AsyncConnection, subject: str) -> None:
    """Forget the failures of a subject."""
    await db.execute(delete(login_failures).where(login_failures.c.subject == subject))
