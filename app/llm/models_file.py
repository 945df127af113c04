"""The models file: read as a catalog, and followed while the server runs. A broken edit changes nothing but `problem`."""

from __future__ import annotations

import asyncio
import logging
import re
import stat
import tomllib
from ast import literal_eval
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from app.errors import SettingsError
from app.llm.catalog import DEFAULT, Catalog, CatalogError, Model
from app.llm.model_tables import catalog
from app.llm.toml_lines import dotted, line_of

T = TypeVar("T")
log = logging.getLogger(__name__)

POLL = 0.3
"""Seconds between two looks at the file."""
MAX_BYTES = 262_144
"""The largest file that is read."""

_PLACE = re.compile(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", re.DOTALL)

_TABLE = re.compile(r"""\((?:'[^'"\\]*',? ?)+\)""")
"""How `tomllib` writes the name of a table: as a tuple of Python."""

Signature = tuple[int, int, int]
Variables = Callable[[], Mapping[str, str]]
Check = Callable[[Catalog], None]


def read(
    path: Path, variables: Mapping[str, str], default: Model | None = None, check: Check = lambda _: None
) -> Catalog:
    """The catalog of the file at `path`, or a `SettingsError` that names file, line and key.

    Keys of servers are looked up in `variables`. `default` is the alias of that name where the file defines none. `check` may object
    by a `SettingsError` too, which names the line when it is a `CatalogError`.
    """

    def make(tables: Mapping[str, Any]) -> Catalog:
        made = catalog(tables, variables, default)
        check(made)
        return made

    return parsed(path, make)


def parsed(path: Path, make: Callable[[Mapping[str, Any]], T]) -> T:
    """What `make` makes of the TOML at `path`, or a `SettingsError` that names file, line and key."""
    text = _text(path)
    try:
        return make(tomllib.loads(text))
    except CatalogError as error:
        line = line_of(text, error.keys)
        raise SettingsError(f"{path.name}{f', line {line}' if line else ''}, {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(_syntax(path.name, str(error))) from None
    except (ValueError, RecursionError):  # numbers and nesting beyond what Python reads
        raise SettingsError(f"{path.name}: holds a number or nesting that is too long to be read.") from None
    except SettingsError as error:
        raise SettingsError(f"{path.name}, {error}") from error.__cause__


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{path.name}: cannot be read ({error.strerror}).") from None
    if len(data) > MAX_BYTES:
        raise SettingsError(f"{path.name}: is larger than {MAX_BYTES} bytes.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"{path.name}, line {line}: is not UTF-8.") from None


def _syntax(name: str, message: str) -> str:
    found = _PLACE.fullmatch(message)
    if found is None:
        return f"{name}: {message[:200]}."
    said = _TABLE.sub(lambda table: dotted(literal_eval(table[0])), found[1])
    return f"{name}, {f'line {found[2]}' if found[2] else 'at its end'}: {said[:200]}."


class ModelsFile:
    """The catalog as the file has it now; an edit is live within a second, for calls that begin after it."""

    def __init__(
        self,
        path: Path,
        variables: Variables,
        openai: Catalog | None = None,
        check: Check = lambda _: None,
        *,
        strict: bool = True,
    ) -> None:
        """Read the file, if it is there; `SettingsError` when it cannot be used, or when `check` says so.

        Unless it is `strict`: a server that starts again beside a broken edit begins with what `openai` has.

        `openai` is what `OPENAI_*` define: all there is without a file, and the alias `default` where the file has none.
        `variables` is asked again at each reading.
        """
        self._path, self._variables, self._check = path, variables, check
        openai = openai or Catalog()
        self._default = openai.models.get(DEFAULT)
        self._signature = _signature(path)
        self.catalog = openai
        self.problem: str | None = None
        """Why the newest text of the file is not in use; it names no path and no value."""
        if self._signature is not None:
            try:
                self.catalog = self._read()
            except SettingsError as error:
                if strict:
                    raise
                self._refuse(error)

    async def watch(self) -> None:
        """Follow the file until cancelled. A file that is made later is read too; one that goes leaves what it said."""
        while True:
            await asyncio.sleep(POLL)
            await self.refresh()

    async def refresh(self) -> None:
        """Read the file if it has changed; when it cannot be used the last good catalog stays."""
        signature = await asyncio.to_thread(_signature, self._path)
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self.catalog = await asyncio.to_thread(self._read)
        except SettingsError as error:
            self._refuse(error)
        else:
            self.problem = None
            log.info("%s is loaded: %s", self._path.name, ", ".join(self.catalog.aliases))

    def _refuse(self, error: SettingsError) -> None:
        self.problem = str(error)
        log.warning("the models stay as they were: %s", self.problem)

    def _read(self) -> Catalog:
        try:
            variables = self._variables()
        except (OSError, ValueError) as error:
            raise SettingsError(f".env cannot be read ({type(error).__name__}).") from None
        return read(self._path, variables, self._default, self._check)

    def extend(self, known: Catalog, found: Iterable[Model]) -> None:
        """Add what the servers of a catalog list as their models, unless another catalog is in its place by now."""
        if known is self.catalog:
            more = {model.alias: model for model in found if model.alias not in known.models}
            self.catalog = Catalog({**known.models, **more}, known.passes_through)


def _signature(path: Path) -> Signature | None:
    """What tells a change; None when there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
