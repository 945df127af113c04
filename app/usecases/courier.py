"""Sends what webhooks are told: by the rules that hold for MCP servers, so many at once, signed by Standard Webhooks 1.0.

Addresses that are not public are refused unless the operator allows them, no redirect is followed, and of an answer only its status is
read, within a few seconds.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from httpx2 import AsyncClient

SEND_SECONDS = 10.0
"""What an attempt may take in all."""
MAX_AT_ONCE = 4
"""How many attempts a process makes at once: slow receivers must not take the places of all jobs."""
APART_SECONDS = 0.1
LATEST_SECONDS = 60.0
SECRET_PREFIX = "whsec_"  # noqa: S105 - what a secret begins with (Standard Webhooks, "Signature scheme")
GONE = 410
"""Tells that a receiver wants nothing more (Standard Webhooks, "Deliverability and reliability")."""


def signature(secret: bytes, id: UUID | str, timestamp: int, body: str) -> str:
    """The header `webhook-signature` (Standard Webhooks, "Signature scheme": v1 is HMAC-SHA256)."""
    signed = hmac.new(secret, f"{id}.{timestamp}.{body}".encode(), sha256).digest()
    return f"v1,{base64.b64encode(signed).decode()}"


def shown_secret(secret: bytes) -> str:
    """A secret as its user is shown it."""
    return SECRET_PREFIX + base64.b64encode(secret).decode()


class Courier:
    """One for the process. With `private`, any address will do."""

    def __init__(self, *, private: bool = False) -> None:
        self.private = private
        self._sending = 0
        self._promised = 0.0
        self._client: AsyncClient | None = None

    @property
    def is_busy(self) -> bool:
        """Whether as much is being sent as may be."""
        return self._sending >= MAX_AT_ONCE

    def later(self) -> float:
        """In how many seconds to come again: each who asks is given a moment of his own, so that a backlog does not come all at once."""
        moment = asyncio.get_running_loop().time()
        self._promised = min(max(self._promised + APART_SECONDS, moment + 1), moment + LATEST_SECONDS)
        return self._promised - moment

    async def send(self, url: str, body: str, headers: Mapping[str, str]) -> int | str:
        """The status of the answer, or why there is none, in words for the webhook's owner."""
        import httpx2  # with the first webhook: most processes send none

        self._sending += 1
        try:
            async with asyncio.timeout(SEND_SECONDS):
                return await self._send(url, body, headers)
        except TimeoutError:
            return f"no answer within {SEND_SECONDS:.0f} seconds"
        except (httpx2.ConnectError, httpx2.RemoteProtocolError) as error:
            known = ("the name is not known", "the address is not public", "redirects are not followed")
            return str(error) if str(error) in known else "cannot be reached"
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError):
            return "cannot be reached"
        finally:
            self._sending -= 1

    async def _send(self, url: str, body: str, headers: Mapping[str, str]) -> int:
        if self._client is None:
            from httpx2 import AsyncClient

            from app.agent.egress import Egress

            transport = Egress(private=self.private, keep_alive=False)
            self._client = AsyncClient(transport=transport, trust_env=False, timeout=SEND_SECONDS)
        given = {"content-type": "application/json", "user-agent": "Chattable", **headers}
        async with self._client.stream("POST", url, content=body.encode(), headers=given) as answer:
            return answer.status_code

    async def close(self) -> None:
        """Close what is open."""
        if self._client is not None:
            await self._client.aclose()
