"""Hashes and checks passwords, off the event loop and few at a time."""

from __future__ import annotations

import asyncio

from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from app.errors import InvalidInput

MIN_LENGTH = 8
MAX_LENGTH = 256
PARALLEL = 2
"""A hash takes 19 MiB and a good part of a second of one core: more at once would only starve the rest."""


class Passwords:
    """Argon2id with the parameters OWASP recommends (19 MiB, two passes, one lane)."""

    def __init__(self) -> None:
        self._hasher = PasswordHash((Argon2Hasher(memory_cost=19 * 1024, time_cost=2, parallelism=1),))
        self._room = asyncio.Semaphore(PARALLEL)
        self._nobody: str | None = None

    async def hash(self, password: str) -> str:
        """The hash to store; `InvalidInput` when the password is too short or too long."""
        if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
            raise InvalidInput(f"password: use {MIN_LENGTH} to {MAX_LENGTH} characters.", param="password")
        async with self._room:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def matches(self, password: str, stored: str | None) -> bool:
        """Whether a password fits. Without a stored hash the same work is done, so that time tells nothing about accounts."""
        async with self._room:
            if stored is None:
                if self._nobody is None:
                    self._nobody = await asyncio.to_thread(self._hasher.hash, "nobody's password")
                await asyncio.to_thread(self._hasher.verify, password, self._nobody)
                return False
            return await asyncio.to_thread(self._hasher.verify, password, stored)
