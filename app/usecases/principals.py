"""Callers this process has recognised a moment ago.

Only for use cases whose own transaction looks again whether credential and user are still good: there it saves a query, and a revoked
key or suspended user is refused at once all the same.
"""

from __future__ import annotations

import time

from app.domain import Principal

SECONDS = 60.0
MAX_ENTRIES = 10_000


class Principals:
    """Principals by the digest of their secret, for a minute."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[float, Principal]] = {}

    def get(self, digest: bytes) -> Principal | None:
        """Whom the secret proved, less than a minute ago."""
        until, principal = self._known.get(digest, (0.0, None))
        return principal if time.monotonic() < until else None

    def put(self, digest: bytes, principal: Principal) -> None:
        """Remember; when too many are known, all are forgotten."""
        if len(self._known) >= MAX_ENTRIES:
            self._known.clear()
        self._known[digest] = (time.monotonic() + SECONDS, principal)
