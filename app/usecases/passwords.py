"""Hashes and checks passwords, off the event loop and few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from app.errors import InvalidInput, RateLimited
from app.usecases.turns import Turns

MIN_LENGTH = 8
MAX_LENGTH = 256
PARALLEL = 2
"""A hash takes 19 MiB and a good part of a second of one core: more at once would only starve the rest."""
MAX_WAITING = 20
"""How many may wait for their turn; more are told to come back, for they would wait for seconds."""


class Passwords:
    """Argon2id with the parameters OWASP recommends (19 MiB, two passes, one lane).

    `hash` and `matches` raise `Unavailable` when too many wait already.
    """

    def __init__(self) -> None:
        self._hasher = PasswordHash((Argon2Hasher(memory_cost=19 * 1024, time_cost=2, parallelism=1),))
        self._turns = Turns(PARALLEL, MAX_WAITING, "Too many passwords are being checked at the moment.", retry_after=5)
        self._changing: set[UUID] = set()
        self._nobody: str | None = None

    @contextmanager
    def one_change(self, user_id: UUID) -> Iterator[None]:
        """One change of a user's password at a time; `RateLimited` for others meanwhile, so that nobody takes all the turns."""
        if user_id in self._changing:
            raise RateLimited("This password is being changed at the moment.", retry_after=1)
        self._changing.add(user_id)
        try:
            yield
        finally:
            self._changing.remove(user_id)

    async def hash(self, password: str) -> str:
        """The hash to store; `InvalidInput` when the password is too short or too long."""
        if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
            raise InvalidInput(f"password: use {MIN_LENGTH} to {MAX_LENGTH} characters.", param="password")
        async with self._turns.one():
            return await asyncio.to_thread(self._hasher.hash, password)

    async def matches(self, password: str, stored: str | None) -> bool:
        """Whether a password fits. Without a stored hash the same work is done, so that time tells nothing about accounts."""
        async with self._turns.one():
            if stored is None:
                if self._nobody is None:
                    self._nobody = await asyncio.to_thread(self._hasher.hash, "nobody's password")
                await asyncio.to_thread(self._hasher.verify, password, self._nobody)
                return False
            return await asyncio.to_thread(self._hasher.verify, password, stored)
