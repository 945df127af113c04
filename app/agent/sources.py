"""Files and packages of agents: which there are, what tells a change in them, and how one is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from hashlib import sha256
from importlib.abc import MetaPathFinder
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType

from app.errors import PluginError

Signature = tuple[tuple[str, int, int], ...]
"""The files of an agent, each with its time and size."""


def scan(folder: Path, only: str | None = None) -> dict[str, Signature]:
    """The files and packages of agents, each with what tells a change."""
    there = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(("_", ".")) or only not in (None, path.name):
            continue
        if (path.suffix == ".py" and path.is_file()) or (path / "__init__.py").is_file():
            there[path.name] = _signature(path)
    return there


def _signature(path: Path) -> Signature:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    found = []
    for file in files:
        if "__pycache__" in file.parts:
            continue
        try:
            status = file.stat()
        except OSError:  # gone since it was listed
            continue
        if file.is_file():
            found.append((str(file), status.st_mtime_ns, status.st_size))
    return tuple(found)


def installed_at() -> float:
    """When something was last put into a folder that libraries are imported from, in seconds since 1970."""
    folders = [folder for folder in map(Path, sys.path) if folder.is_dir()]
    return max((folder.stat().st_mtime for folder in folders), default=0.0)


def digest(path: Path) -> str:
    """What tells one text of a file or package from another, on every machine."""
    said = sha256()
    for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
        try:
            text = file.read_bytes()
        except OSError:  # gone since it was listed
            continue
        said.update(b"%b %d " % (file.relative_to(path.parent).as_posix().encode(), len(text)) + text)
    return said.hexdigest()[:16]


class _Source(SourceFileLoader):
    """Compiles the text as it is: the byte-code cache takes two edits in one second for the same."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class Finder(MetaPathFinder):
    """Finds what packages of agents import from inside themselves, past every cache."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is None or not fullname.startswith("agents_"):
            return None
        specs = (FileFinder(folder, (_Source, [".py"])).find_spec(fullname) for folder in path)
        return next((spec for spec in specs if spec), None)


def import_file(name: str, path: Path) -> ModuleType:
    """A file or package of agents, as the module `name`."""
    file = path / "__init__.py" if path.is_dir() else path
    inside = [str(path)] if path.is_dir() else None
    spec = spec_from_file_location(name, file, loader=_Source(name, str(file)), submodule_search_locations=inside)
    if spec is None or spec.loader is None:
        raise PluginError("is not a Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
