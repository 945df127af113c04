"""Webhooks: registered by users, told of what has ended, given up when nobody listens.

A delivery is a job: it is there with the end that it tells of, survives its worker, and is sent at least once, always under the same id.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

from app.agent.addresses import is_public
from app.domain import Delivery, JobState, Page, Principal, Webhook, new_id, now
from app.errors import InvalidInput, LimitExceeded, NotAuthenticated, must_exist
from app.store import accounts, webhooks
from app.usecases.conduct import patiently
from app.usecases.courier import GONE, shown_secret, signature
from app.usecases.creations import claim
from app.usecases.jobs import Kind
from app.usecases.platform import Platform

log = logging.getLogger(__name__)

MAX_WEBHOOKS = 20
"""How many one user may have."""
SECRET_BYTES = 32
"""Standard Webhooks wants from 24 to 64."""
RETRY_SECONDS = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""How long after each attempt the next one is made (Standard Webhooks, "Deliverability and reliability")."""
RETRIED_SECONDS = sum(RETRY_SECONDS)
REST_SECONDS = 60.0
"""Between two attempts to tell one that does not hear: each time it is the oldest that is due."""
MAX_ASIDE = 1000
"""How many that were never sent are set aside for a webhook; the oldest beyond them are dropped."""


async def create(
    platform: Platform,
    principal: Principal,
    *,
    url: str,
    events: Sequence[str],
    runs: Literal["background", "all"],
    key: str | None = None,
) -> tuple[Webhook, str | None]:
    """Register an address for these kinds of events. Gives the webhook and its secret, which is never shown again.

    A repeated request with an idempotency `key` gives the webhook without it.
    """
    _check(url, private=platform.courier.private)
    hook = Webhook(new_id(), principal.user.id, url, tuple(dict.fromkeys(events)), runs, created_at=now())
    secret = secrets.token_bytes(SECRET_BYTES)
    async with platform.engine.begin() as db:
        if await accounts.lock_user(db, principal.user.id) is None:
            raise NotAuthenticated
        made = await claim(db, principal.user.id, key, hook.id, "webhook", url, hook.events, runs)
        if made != hook.id:
            found = await webhooks.get(db, made, owner=principal.user.id)
            return must_exist(found, "webhook", param="idempotency-key"), None
        if await webhooks.count(db, principal.user.id) >= MAX_WEBHOOKS:
            raise LimitExceeded(f"You have {MAX_WEBHOOKS} webhooks already.")
        await webhooks.add(db, hook, secret)
    return hook, shown_secret(secret)


def _check(url: str, *, private: bool) -> None:
    """Raise why nothing can be sent to an address; what its name leads to is looked at when something is."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port == 0 or parts.scheme not in ("https", "http") or not url.isascii() or not url.isprintable():
        raise InvalidInput("url: must be an address such as https://example.org/hook.", param="url")
    if parts.username or parts.password or parts.fragment or " " in url:
        raise InvalidInput("url: must be without a user, a password, a fragment and spaces.", param="url")
    if private:
        return
    if parts.scheme != "https":
        raise InvalidInput("url: must begin with https://.", param="url")
    try:
        public = is_public(ip_address(host))
    except ValueError:  # it is a name
        public = host != "localhost"
    if not public:
        raise InvalidInput("url: must be an address of the internet.", param="url")


async def get(platform: Platform, principal: Principal, id: UUID) -> Webhook:
    """A webhook of the caller."""
    async with platform.engine.connect() as db:
        return must_exist(await webhooks.get(db, id, owner=principal.owner), "webhook", param="webhook_id")


async def list_page(platform: Platform, principal: Principal, *, after: UUID | None, limit: int) -> Page[Webhook]:
    """The caller's webhooks, in the order they were made."""
    async with platform.engine.connect() as db:
        return await webhooks.list_page(db, owner=principal.owner, after=after, limit=limit)


async def update(platform: Platform, principal: Principal, id: UUID, changes: Mapping[str, Any]) -> Webhook:
    """Change any of `url`, `events`, `runs` and `enabled`. What is disabled is told nothing more, not even what it was to be told.

    One that is enabled again, or has another address, begins with no failures, and keeps its secret.
    """
    if "url" in changes:
        _check(changes["url"], private=platform.courier.private)
    async with platform.engine.begin() as db:
        before = await webhooks.get(db, id, owner=principal.owner, lock=True)
        before = must_exist(before, "webhook", param="webhook_id")
        fields = {name: changes[name] for name in ("url", "runs") if name in changes}
        if "events" in changes:
            fields["events"] = list(dict.fromkeys(changes["events"]))
        enabled = changes.get("enabled", before.enabled)
        if enabled != before.enabled:
            fields["disabled_at"] = None if enabled else now()
            await webhooks.drop(db, id)
        if fields.get("url", before.url) != before.url or (enabled and not before.enabled):
            fields |= {"failures": 0, "last_error": None}
        if fields:
            await webhooks.change(db, id, fields)
        return must_exist(await webhooks.get(db, id, owner=principal.owner), "webhook", param="webhook_id")


async def delete(platform: Platform, principal: Principal, id: UUID) -> None:
    """Tell it nothing more, not even what it was to be told already."""
    async with platform.engine.begin() as db:
        must_exist(await webhooks.get(db, id, owner=principal.owner), "webhook", param="webhook_id")
        await webhooks.erase(db, id)


# Its jobs


async def deliver(platform: Platform, id: UUID) -> JobState | float | None:
    """Make an attempt; gives the seconds until the next, if there is to be one, or `waiting` while the webhook is left alone."""
    if platform.courier.is_busy:
        return platform.courier.later()
    async with platform.engine.connect() as db:
        found = await webhooks.delivery(db, id)
    if found is None:
        return None
    if not found.is_wanted:
        await give_up(platform, id)
        return None
    if found.webhook.failures >= webhooks.FAILING and _is_left_alone(found.webhook):
        return JobState.WAITING
    return await _attempt(platform, found)


def _is_left_alone(hook: Webhook) -> bool:
    """Whether the last attempt, which was not heard, is not long ago."""
    return hook.last_at is not None and (now() - hook.last_at).total_seconds() < REST_SECONDS


async def release(platform: Platform) -> None:
    """Give their turn to deliveries that were set aside: one when a webhook has rested, all when it hears or is told nothing more."""
    async with platform.engine.begin() as db:
        await webhooks.release(db, REST_SECONDS)
        dropped = await webhooks.drop_oldest(db, MAX_ASIDE)
    if dropped:
        log.warning("%s deliveries were dropped: their webhooks do not hear, and more than %s wait", dropped, MAX_ASIDE)


async def _attempt(platform: Platform, sent: Delivery) -> float | None:
    """Heard is what is answered with a status of 2xx."""
    at = int(time.time())
    headers = {
        "webhook-id": str(sent.id),
        "webhook-timestamp": str(at),
        "webhook-signature": signature(sent.secret, sent.id, at, sent.body),
    }
    told = await platform.courier.send(sent.webhook.url, sent.body, headers)
    heard = isinstance(told, int) and 200 <= told < 300
    error = None if heard else f"status {told}" if isinstance(told, int) else told
    is_old = sent.created_at is not None and (now() - sent.created_at).total_seconds() > RETRIED_SECONDS
    is_last = heard or told == GONE or is_old or sent.attempts >= len(RETRY_SECONDS)
    again = None if is_last else float(RETRY_SECONDS[sent.attempts])

    async def note() -> None:
        async with platform.engine.begin() as db:
            done = again is None
            await webhooks.attempted(db, sent, error=error, ended=done, disable=done and error is not None)

    await patiently(note)
    return again


async def give_up(platform: Platform, id: UUID) -> None:
    """Send it no more."""
    async with platform.engine.begin() as db:
        await webhooks.end(db, id)


KINDS = {webhooks.KIND: Kind(deliver, give_up)}
"""What jobs do for webhooks."""
