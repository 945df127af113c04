"""The agents a user can pick."""

from __future__ import annotations

from collections.abc import Sequence

from app.agent.loader import Listed
from app.domain import Principal, Role
from app.store import accounts
from app.usecases.platform import Platform


async def list_all(platform: Platform, principal: Principal) -> Sequence[Listed]:
    """The agents the caller may use. Administrators and the local caller also see the files that failed to load, and why."""
    listing = platform.agents.listing()
    if principal.user.role is Role.ADMIN or principal.acts_for_all:
        return listing
    async with platform.engine.connect() as db:
        granted = await accounts.granted_agents(db, principal.user.id)
    return [item for item in listing if item.id is not None and granted & {"*", item.id}]
