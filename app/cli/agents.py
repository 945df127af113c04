"""`chattable agents`: for those who write them. Nothing here needs a server."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.output import AsJson

if TYPE_CHECKING:
    from app.agent.contract import Finding
    from app.agent.loader import Agents, Listed

agents = typer.Typer(
    help="The agents of AGENTS_DIR: make, list, check, run one, install what they need.", no_args_is_help=True
)

Params = Annotated[str, typer.Option(help="The agent's parameters, as JSON.")]


@agents.command()
def new(name: Annotated[str, typer.Argument(help="The id: 1 to 64 of a-z, 0-9, _, . and -.")]) -> None:
    """Write an agent that works into AGENTS_DIR, and its test into tests/agents beside that. Nothing is overwritten."""
    from app.agent.version import ID, RESERVED
    from app.cli.new_agent import write
    from app.errors import SettingsError
    from app.settings import load

    if not ID.fullmatch(name) or name.startswith("_"):
        raise SettingsError("The id must be 1 to 64 of a-z, 0-9, _, . and -, the first a letter or digit.")
    if RESERVED.fullmatch(name):
        raise SettingsError(f"The id {name} is taken by the platform.")
    folder = load().agents_dir
    if taken := [row.source for row in _listing(folder, None) if row.id == name]:
        raise SettingsError(f"The id {name} is taken by {taken[0]}.")
    for path in write(name, folder):
        typer.echo(path)


@agents.command("list")
def list_agents(as_json: AsJson = False) -> None:
    """Show every agent, and why a file could not be loaded."""
    from app.settings import load

    folder = load().agents_dir
    rows = _listing(folder, None)
    if as_json:
        data = [
            {"id": row.id, "source": row.source, "description": row.description, "error": _why(folder, row)}
            for row in rows
        ]
        typer.echo(json.dumps({"object": "list", "data": data}, indent=2, ensure_ascii=False))
        return
    for row in rows:
        reason = _why(folder, row)
        typer.echo(
            f"{row.id or '-'}  {row.source}  {f'failed: {reason}' if reason else _first(row.description)}".rstrip()
        )


@agents.command()
def check(
    which: Annotated[list[str] | None, typer.Argument(help="Ids or files; every agent by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Try on each agent what all of them promise, with a model that echoes in place of a real one; status 1 if any fails.

    It loads, answers, streams what it keeps, ends within 2 seconds of being cancelled, lets no session hear another's
    words, has parameters and state that serialise, and its calls are counted.
    """
    import asyncio

    from app.settings import load

    checked: list[dict[str, Any]] = []
    for folder, only, ids in _places(load().agents_dir, which or []):
        for row, found in asyncio.run(_checked(folder, only, ids)):
            loads = {"name": "loads", "status": "failed" if row.error else "ok", "note": _why(folder, row) or ""}
            findings = [loads, *({"name": one.name, "status": one.status, "note": one.note} for one in found)]
            ok = all(finding["status"] != "failed" for finding in findings)
            checked.append({"id": row.id, "source": row.source, "ok": ok, "findings": findings})
    if as_json:
        typer.echo(json.dumps({"object": "list", "data": checked}, indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join(line for one in checked for line in _lines(one)))
    raise typer.Exit(int(not all(one["ok"] for one in checked)))


@agents.command()
def run(
    agent_id: Annotated[str, typer.Argument(help="The id of an agent in AGENTS_DIR, or a file with one agent.")],
    text: Annotated[str | None, typer.Argument(help="One message; without it every line that is typed is one.")] = None,
    params: Params = "{}",
    scripted: Annotated[
        list[str] | None, typer.Option(help="What the language model says, call by call, in place of a real one.")
    ] = None,
) -> None:
    """Talk to one agent, whose models are those of MODELS_FILE and OPENAI_*; nothing is kept. Status 1 if it fails."""
    import asyncio

    from app.cli.talk import talk
    from app.errors import SettingsError
    from app.settings import load

    try:
        given = json.loads(params)
    except ValueError:
        raise SettingsError("--params must be JSON.") from None
    ((folder, only, ids),) = _places(load().agents_dir, [agent_id])

    async def work() -> bool:
        async with _loaded(folder, only) as loaded:
            (row, *others) = _chosen(folder, loaded.listing(), ids)
            if row.error or row.id is None:
                raise SettingsError(f"{row.source} failed: {_why(folder, row)}")
            if others:
                raise SettingsError(f"{row.source} has several agents: name one of {', '.join(loaded.ids)}.")
            return await talk(loaded.get(row.id), text, given, scripted, loaded.get)

    raise typer.Exit(int(not asyncio.run(work())))


@agents.command()
def install(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be installed.")] = False,
) -> None:
    """Install what the files of AGENTS_DIR name in their inline metadata (PEP 723) into this environment, with uv or pip."""
    import shutil
    import subprocess

    from app.cli import requirements
    from app.errors import SettingsError
    from app.settings import load

    folder = load().agents_dir
    if not folder.is_dir():
        raise SettingsError("The folder of agents, AGENTS_DIR, cannot be read.")
    found = list(requirements.of_folder(folder))
    for path, needs in found:
        typer.echo(f"{path.name}  {', '.join(needs)}")
    wanted = sorted({need for _, needs in found for need in needs})
    if not wanted:
        typer.echo("No agent names a dependency.")
    elif not dry_run:
        command = requirements.command(wanted, sys.executable, shutil.which("uv"))
        raise typer.Exit(subprocess.run(command, check=False).returncode)  # noqa: S603 - the files are the operator's own


def _places(folder: Path, which: Sequence[str]) -> list[tuple[Path, str | None, list[str]]]:
    """Where to look for what was named: folders, each with one file of it, or with ids."""
    files = [Path(name).absolute() for name in which if name.endswith(".py") or Path(name).is_dir()]
    ids = [name for name in which if not (name.endswith(".py") or Path(name).is_dir())]
    return [(file.parent, file.name, []) for file in files] + ([(folder, None, ids)] if ids or not which else [])


@asynccontextmanager
async def _loaded(folder: Path, only: str | None) -> AsyncIterator[Agents]:
    from app.agent.loader import Agents
    from app.errors import PluginError, SettingsError
    from app.settings import agent_variables

    agents = Agents(folder, agent_variables(), only=only)
    try:
        await agents.load()
    except PluginError as error:
        raise SettingsError(str(error)) from None
    try:
        yield agents
    finally:
        agents.close()


def _listing(folder: Path, only: str | None) -> Sequence[Listed]:
    import asyncio

    async def work() -> Sequence[Listed]:
        async with _loaded(folder, only) as agents:
            return agents.listing()

    return asyncio.run(work()) if folder.is_dir() else []


async def _checked(folder: Path, only: str | None, ids: Sequence[str]) -> list[tuple[Listed, list[Finding]]]:
    import asyncio

    from app.agent.contract import Contract
    from app.agent.watchdog import Watchdog

    watchdog = Watchdog(asyncio.get_running_loop())
    watchdog.start()
    try:
        async with _loaded(folder, only) as agents:
            rows = _chosen(folder / (only or ""), agents.listing(), ids)
            return [
                (row, await Contract(agents.get(row.id)).check() if row.id and not row.error else []) for row in rows
            ]
    finally:
        watchdog.stop()


def _chosen(place: Path, rows: Sequence[Listed], ids: Sequence[str]) -> Sequence[Listed]:
    from app.errors import SettingsError

    known = [row.id for row in rows if row.id]
    if missing := [name for name in ids if name not in known]:
        raise SettingsError(f"There is no agent {missing[0]}: known are {', '.join(known) or 'none'}.")
    if not rows:
        raise SettingsError(f"There is no agent in {place}.")
    return [row for row in rows if row.id in ids] if ids else rows


def _why(folder: Path, row: Listed) -> str | None:
    """Why an agent is not loaded, and what helps."""
    from app.cli import requirements

    if row.error and row.error.startswith("needs ") and not row.error.startswith("needs AGENT_"):
        path = folder / row.source
        if requirements.of(path / "__init__.py" if path.is_dir() else path):
            return f"{row.error} (chattable agents install)"
    return row.error


def _first(text: str) -> str:
    return text.partition("\n")[0]


def _lines(checked: dict[str, Any]) -> Iterator[str]:
    yield f"{checked['id'] or '-'}  {checked['source']}  {'ok' if checked['ok'] else 'failed'}"
    for finding in checked["findings"]:
        note = f": {finding['note']}" if finding["note"] else ""
        yield f"  {finding['name']:16}  {finding['status']}{note}"
