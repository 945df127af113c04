"""Keys that are kept on the disk of a machine: the first administrator's, and the one that its workers share."""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path

from app.errors import SettingsError
from app.store.database import connect
from app.usecases import accounts

MIN_SECRET = 32
"""The shortest key that is taken from the file, in characters, as for `ADMIN_API_KEY`."""


def first_administrator(database_url: str, data_dir: Path, admin_api_key: str | None, *, pooled: bool = False) -> str:
    """Make sure that there is an administrator with a key; gives the sentence that says where the key is.

    Without `ADMIN_API_KEY` a key is made once and kept in `DATA_DIR/admin.key`, readable by its owner only. A changed
    `ADMIN_API_KEY` ends the one before it; machines that share a database may each keep a file of their own.
    """
    path = data_dir / "admin.key"
    secret = admin_api_key or _kept_secret(path)
    place = "ADMIN_API_KEY" if admin_api_key else str(path)
    if asyncio.run(_first_admin(database_url, secret, alone=admin_api_key is not None, pooled=pooled)):
        return f"The administrator's key is in {place}."
    return f"The key in {place} is not, or no longer, an administrator's."


def secret_key(data_dir: Path) -> str:
    """The key that is kept in `DATA_DIR/secret.key` for the workers of one machine."""
    return _kept_secret(data_dir / "secret.key")


def _kept_secret(path: Path) -> str:
    """The key in a file, which is made when missing: readable by its owner only, and there whole or not at all."""
    if not path.exists():
        new = path.with_name(f"{path.name}.new")
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"ck_{secrets.token_urlsafe(32)}\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    secret = path.read_text().strip()
    if len(secret) < MIN_SECRET:
        raise SettingsError(f"{path} holds fewer than {MIN_SECRET} characters: delete it to have a new key made.")
    return secret


async def _first_admin(database_url: str, secret: str, *, alone: bool, pooled: bool) -> bool:
    engine = connect(database_url, pooled=pooled)
    try:
        return await accounts.first_admin(engine, secret, alone=alone)
    finally:
        await engine.dispose()
