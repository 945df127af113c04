"""The folder of agents: loads what is there, and follows what changes, without ever stopping the server."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
import re
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from app.agent import sources
from app.agent.chattable import Chattable
from app.agent.threads import Threads
from app.agent.version import AgentVersion, Code, declared_in
from app.errors import NotFound, PluginError
from app.tasks import Tasks

log = logging.getLogger(__name__)

POLL = 0.3
"""Seconds between two looks at the folder."""
DEADLINE = 10.0
"""Seconds that others wait for a file to be imported."""
PATIENCE = 120.0
"""Seconds after which it is given up: a large library on a cold disk takes a minute."""
AGAIN = 10.0
"""Seconds between two looks at whether something was installed since a file failed for what it imports."""
IMPORTS = 64
"""Files that may be importing at once, those past their deadline included."""

Found = Mapping[str, AgentVersion | str]
"""What a file declares: an agent, or why it cannot be used, for each id."""


@dataclass(frozen=True, slots=True)
class _Import:
    """The import of one text of a file."""

    code: Code
    work: asyncio.Task[Found | BaseException]


@dataclass(frozen=True, slots=True)
class Listed:
    """An agent, or a file that gave none, as users see it. `id` None: nothing of the file could be loaded."""

    id: str | None
    source: str
    description: str = ""
    params_schema: Mapping[str, Any] | None = None
    error: str | None = None
    """Why the newest text of the file could not be used. While an earlier one is in service the agent still answers."""
    available: bool = True


@dataclass(slots=True)
class _Unit:
    """A file or package, as it was last looked at."""

    path: Path
    signature: sources.Signature | None = None
    versions: dict[str, AgentVersion] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """The reason for each id whose newest version cannot be used."""
    error: str | None = None
    """The reason why the file as a whole cannot."""
    waits: bool = False
    """Whether the reason is an id that another file has."""
    lacks: bool = False
    """Whether it is something that the file imports."""
    looked_at: float = 0.0
    """When it was last seen to that, in seconds since 1970."""
    importing: _Import | None = None
    """What goes on, for longer than others wait for it."""


class Agents:
    """The agents of one folder. All of it belongs to the event loop; only imports leave it."""

    def __init__(
        self,
        folder: Path,
        variables: Mapping[str, str],
        *,
        deadline: float = DEADLINE,
        again: float = AGAIN,
        own: Sequence[type[Chattable]] = (),
        servers: Collection[str] = (),
        only: str | None = None,
    ) -> None:
        """`own` are the platform's own agents: they have their ids before any file, and are in no list. `servers` are MCP's.

        With `only`, a file's or package's name, nothing else of the folder is loaded.
        """
        self._servers = servers
        self._folder = folder
        self._only = only
        self._variables = variables
        self._deadline = deadline
        self._again = again
        self._units: dict[str, _Unit] = {}
        self._own = frozenset(cls.id for cls in own)
        self._agents = {cls.id: _own_version(cls, variables) for cls in own}
        self._numbers = itertools.count(1)
        self._threads = Threads("agent import", IMPORTS)
        self._tasks = Tasks()
        self._refreshing = asyncio.Lock()
        self._finder = sources.Finder()

    async def load(self) -> None:
        """Load the folder for the first time; `PluginError` when it cannot be read."""
        sys.meta_path.insert(0, self._finder)
        try:
            await self.refresh()
        except OSError as error:
            self.close()
            raise PluginError(f"The folder of agents, AGENTS_DIR, cannot be read: {error.strerror}.") from error

    def close(self) -> None:
        """Let go of all modules."""
        for unit in self._units.values():
            self._forget(unit)
        self._units.clear()
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)

    async def watch(self) -> None:
        """Follow the folder until cancelled: an edit is live within a second."""
        while True:
            await asyncio.sleep(POLL)
            try:
                await self.refresh()
            except OSError as error:
                log.warning("the folder of agents cannot be read: %s", error.strerror)

    async def refresh(self) -> None:
        """Load what is new or changed, forget what is gone."""
        async with self._refreshing:
            there = await asyncio.to_thread(sources.scan, self._folder, self._only)
            gone = [name for name in self._units if name not in there]
            for name in gone:
                self._forget(self._units.pop(name))
                log.info("agents/%s is gone", name)
            changed = bool(gone)
            for name, signature in there.items():
                unit = self._units.setdefault(name, _Unit(self._folder / name))
                if unit.signature != signature or (unit.lacks and await self._is_worth_another_look(unit)):
                    unit.signature = signature
                    changed = await self._load(name, unit) or changed
                elif unit.importing and unit.importing.work.done():
                    changed = self._take(name, unit, unit.importing) or changed
            if changed:  # an id may be free now
                for unit in self._units.values():
                    unit.signature = None if unit.waits else unit.signature

    @property
    def ids(self) -> frozenset[str]:
        """The ids of all agents that can answer."""
        return frozenset(self._agents)

    def get(self, agent_id: str) -> AgentVersion:
        """The agent as it is now, or `NotFound`."""
        try:
            return self._agents[agent_id]
        except KeyError:
            raise NotFound("agent", param="agent.id") from None

    @contextmanager
    def lease(self, agent_id: str) -> Iterator[AgentVersion]:
        """The agent for one run: this version stays whole until the run has ended, whatever happens to its file."""
        version = self.get(agent_id)
        version.code.hold()
        try:
            yield version
        finally:
            version.code.release()

    def listing(self) -> Sequence[Listed]:
        """Every agent and every file that could not be loaded, by source."""
        return [row for name, unit in sorted(self._units.items()) for row in _rows(name, unit)]

    async def _is_worth_another_look(self, unit: _Unit) -> bool:
        """Whether something was installed since the last look, or shortly before it, as it takes its time."""
        since = unit.looked_at - self._again
        if time.time() < unit.looked_at + self._again:
            return False
        unit.looked_at = time.time()
        return await asyncio.to_thread(sources.installed_at) > since

    async def _load(self, name: str, unit: _Unit) -> bool:
        """Put the newest version of a file in service; False, with the reason kept, when it cannot be used, or not yet."""
        self._abandon(unit)
        unit.looked_at = time.time()
        code = Code(self._free_name(unit.path), await asyncio.to_thread(sources.digest, unit.path))
        code.hold()
        work = self._tasks.start(self._imported(name, unit.path, code), name=f"import of {name}")
        unit.importing = _Import(code, work)
        await asyncio.wait((work,), timeout=self._deadline)
        return self._take(name, unit, unit.importing)

    def _take(self, name: str, unit: _Unit, done: _Import) -> bool:
        """What has come of an import, as far as it has."""
        found = done.work.result() if done.work.done() else TimeoutError()
        try:
            if isinstance(found, BaseException):
                raise found
            self._check_free(unit, found)
        except BaseException as error:
            unit.error, unit.waits = _reason(error, unit.path), isinstance(error, _IdTakenError)
            unit.lacks = isinstance(error, ImportError)
            log.warning("agents/%s is not loaded: %s", name, unit.error, exc_info=_told_by(error, self._folder))
            return False
        else:
            unit.error, unit.waits, unit.lacks = None, False, False
            unit.failed = {key: value for key, value in found.items() if isinstance(value, str)}
            kept = {key: unit.versions[key] for key in unit.failed if key in unit.versions}
            self._replace(unit, kept | {key: value for key, value in found.items() if isinstance(value, AgentVersion)})
            for agent_id, reason in unit.failed.items():
                log.warning("agent %s in agents/%s is not loaded: %s", agent_id, name, reason)
            log.info("agents/%s is loaded: %s", name, ", ".join(unit.versions) or "no agent")
            return True
        finally:
            if done.work.done():
                self._abandon(unit)

    async def _imported(self, name: str, path: Path, code: Code) -> Found | BaseException:
        """What an import comes to. It never raises: `SystemExit` out of a task would end the event loop."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._threads.run(lambda: self._import(name, path, code), wait=True)
        except BaseException as error:
            return error

    def _import(self, name: str, path: Path, code: Code) -> Found:
        importlib.invalidate_caches()  # of what was not installed before
        module = sources.import_file(code.name, path)
        found = declared_in(code.name, vars(module))
        if not found:
            raise PluginError("declares no Chattable with an id")
        agents: dict[str, AgentVersion | str] = {}
        for cls in found:
            try:
                agents[cls.id] = AgentVersion(cls, name, code, self._variables, self._servers)
            except PluginError as error:
                agents[cls.id] = str(error)
        return agents

    def _abandon(self, unit: _Unit) -> None:
        """Let go of an import, whether or not it has ended."""
        if unit.importing:
            unit.importing.work.cancel()
            unit.importing.code.release()
            unit.importing = None

    def _forget(self, unit: _Unit) -> None:
        self._abandon(unit)
        self._replace(unit, {})

    def _check_free(self, unit: _Unit, found: Mapping[str, object]) -> None:
        for agent_id in found:
            if agent_id in self._own:
                raise _IdTakenError(f"the id {agent_id} is taken by the platform")
            for name, other in self._units.items():
                if other is not unit and (agent_id in other.versions or agent_id in other.failed):
                    raise _IdTakenError(f"the id {agent_id} is taken by {name}")

    def _replace(self, unit: _Unit, versions: dict[str, AgentVersion]) -> None:
        old, unit.versions = unit.versions, versions
        for version in versions.values():
            version.code.hold()
        for agent_id, version in old.items():
            self._agents.pop(agent_id, None)
            version.code.release()
        self._agents.update(versions)

    def _free_name(self, path: Path) -> str:
        stem = re.sub(r"\W", "_", path.name.removesuffix(".py"))
        return next(name for number in self._numbers if (name := f"agents_{stem}_v{number}") not in sys.modules)


def _own_version(cls: type[Chattable], variables: Mapping[str, str]) -> AgentVersion:
    code = Code(cls.__module__)
    code.hold()  # for ever
    return AgentVersion(cls, "", code, variables)


class _IdTakenError(PluginError):
    """Another file has the id."""


def _rows(name: str, unit: _Unit) -> Iterator[Listed]:
    for agent_id, version in unit.versions.items():
        error = unit.error or unit.failed.get(agent_id)
        yield Listed(agent_id, name, version.description, version.params_schema, error)
    for agent_id, reason in unit.failed.items():
        if agent_id not in unit.versions:
            yield Listed(agent_id, name, error=reason, available=False)
    if unit.error and not unit.versions:
        yield Listed(None, name, error=unit.error, available=False)


def _told_by(
    error: BaseException, folder: Path
) -> tuple[type[BaseException], BaseException, TracebackType | None] | None:
    """What the log shows of an error beside its reason: its way through the folder, or nothing where the reason says it all."""
    if isinstance(error, PluginError | ModuleNotFoundError | TimeoutError):
        return None
    way = error.__traceback__
    while way and not Path(way.tb_frame.f_code.co_filename).is_relative_to(folder):
        way = way.tb_next
    return type(error), error, way


def _reason(error: BaseException, path: Path) -> str:
    """Why a file could not be loaded, in words that hold no path and no value."""
    match error:
        case PluginError():
            return str(error)
        case TimeoutError():
            return "takes too long to import"
        case ModuleNotFoundError(name=str(missing)):
            return f"needs {missing.partition('.')[0]}"
        case ImportError() if known := re.match(r"cannot import name '\w+' from '[\w.]+'", str(error)):
            return known[0].replace("'", "")
        case SyntaxError():
            return f"has a syntax error in line {error.lineno}" if error.lineno else "has a syntax error"
    return f"{type(error).__name__} while importing{_line(error, path)}"


def _line(error: BaseException, path: Path) -> str:
    """The last line of the agent's own that took part."""
    line, trace = None, error.__traceback__
    while trace:
        if Path(trace.tb_frame.f_code.co_filename).is_relative_to(path):
            line = f", line {trace.tb_lineno}"
        trace = trace.tb_next
    return line or ""
