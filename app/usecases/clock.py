"""The clock: when a schedule is due, and the servers' look at which are.

Each time is claimed in one transaction, with the job that begins its run: by one server however many look, and once however late. Times
that were missed while no server ran are one.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from app.domain import new_id, now
from app.errors import InvalidInput
from app.reports import report
from app.store import schedules
from app.store.database import is_passing
from app.usecases.platform import Platform

log = logging.getLogger(__name__)

TICK_SECONDS = 2.0
_CRON = re.compile(r"[0-9A-Za-z*/,#-]+( +[0-9A-Za-z*/,#-]+){4}")
"""Five fields: with a sixth, cronsim would count seconds."""
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*")


def next_time(cron: str, timezone: str, after: datetime) -> datetime:
    """The first time after a moment, in UTC; `InvalidInput` names the field at fault.

    As Debian's cron has it: what falls into the hour that is skipped in spring happens right after it, and what falls into the hour that
    is repeated in autumn happens once, unless it happens every hour.
    """
    if not _CRON.fullmatch(cron):
        raise InvalidInput("cron: must be five fields: minute, hour, day of month, month, day of week.", param="cron")
    try:
        if not _ZONE.fullmatch(timezone):
            raise ValueError
        zone = ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):
        raise InvalidInput("timezone: there is none of this name; one is Europe/Berlin.", param="timezone") from None
    try:
        return next(CronSim(cron, after.astimezone(zone))).astimezone(UTC)
    except CronSimError as error:
        raise InvalidInput(f"cron: {str(error).lower()}.", param="cron") from None
    except StopIteration:
        raise InvalidInput("cron: there is no such day.", param="cron") from None


async def tick(platform: Platform) -> None:
    """Claim what is due. Without the database, nothing."""
    if platform.draining.is_set():
        return
    try:
        async with platform.engine.begin() as db:
            for schedule, is_active in await schedules.due(db):
                try:
                    after = max(
                        now(), schedule.next_at or now()
                    )  # it is due by the database's clock, which may be ahead
                    next_at = next_time(schedule.cron, schedule.timezone, after)
                except InvalidInput as error:  # this server's time zones are others
                    await schedules.change(db, schedule.id, {"next_at": None, "error": error.to_dict()})
                    continue
                if is_active:
                    await schedules.begin(db, schedule, new_id(), next_at, new_id())
                else:
                    await schedules.change(db, schedule.id, {"next_at": next_at})
    except Exception as error:
        if not is_passing(error):
            report(log, "schedules cannot be looked at; trying again", error)
