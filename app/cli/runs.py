"""`chattable runs`: what runs did, asked of a server, and doing it once more."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.asking import ApiKey, Url, part, server
from app.cli.chat import Talk
from app.cli.output import AsJson, show, show_one
from app.errors import AppError, NotFound

if TYPE_CHECKING:
    from app.cli.asking import Server

runs = typer.Typer(help="Look at runs and their steps, and do them once more.", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id.")]
POLL_SECONDS = 1.0
COLUMNS = ("id", "begun", "agent_id", "kind", "status", "tokens", "cost")
STEP_COLUMNS = ("seq", "path", "kind", "model", "status", "tokens", "cost", "seconds")


@runs.command("list")
def list_runs(
    agent: Annotated[str | None, typer.Option(help="Of this agent.")] = None,
    model: Annotated[str | None, typer.Option(help="That called this language model.")] = None,
    status: Annotated[str | None, typer.Option(help="In this state.")] = None,
    user: Annotated[str | None, typer.Option(help="Of this user, or of all.")] = None,
    since: Annotated[str | None, typer.Option(help="Begun then or later, as 2026-01-31T12:00:00Z.")] = None,
    until: Annotated[str | None, typer.Option(help="Begun before.")] = None,
    cost: Annotated[str | None, typer.Option(help="That cost so much or more.")] = None,
    text: Annotated[str | None, typer.Option(help="With this text in a step's input or output.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many at most.")] = 20,
    url: Url = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List runs, the newest first."""
    asked = {"agent": agent, "model": model, "status": status, "user": user, "since": since, "until": until}
    asked |= {"cost": cost, "text": text, "limit": str(limit)}
    with server(url, key) as at:
        found = at.ask("GET", "/api/v1/runs", params={name: value for name, value in asked.items() if value})
    show([_row(run) for run in found["data"]], COLUMNS, as_json=as_json)


@runs.command("show")
def show_run(
    run: RunId,
    step: Annotated[int | None, typer.Option(min=1, help="Show the input and output of this step.")] = None,
    url: Url = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show the steps of a run, or what went into one of them and came out of it."""
    with server(url, key) as at:
        if step is None:
            show([_step_row(each) for each in _steps(at, run)], STEP_COLUMNS, as_json=as_json)
            return
        found = _step(at, run, step)
        values = {side: _value(at, run, found, side) for side in ("input", "output")}
    typer.echo(json.dumps(values, indent=2, ensure_ascii=False))


@runs.command()
def tail(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run to follow.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many runs.")] = None,
    url: Url = None,
    key: ApiKey = None,
) -> None:
    """Print what a run says as it says it, status 1 if it fails; without one, the runs that end from now on, until Ctrl-C."""
    with server(url, key) as at:
        if run is not None:
            session = at.ask("GET", f"/api/v1/runs/{part(run)}")["session_id"]
            raise typer.Exit(int(not Talk(at, session).follow(run)))
        for found in _ending(at, count):
            typer.echo("  ".join(str(_row(found)[column]) for column in COLUMNS))


@runs.command()
def rerun(
    run: RunId,
    step: Annotated[
        int | None, typer.Option(min=1, help="The step that is done anew; without it the run is replayed.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Another language model for it.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Another last message of the user, or template.")] = None,
    params: Annotated[str | None, typer.Option(help="Options of the call, as JSON.")] = None,
    given: Annotated[str | None, typer.Option("--input", help="Another input, as JSON.")] = None,
    downstream: Annotated[bool, typer.Option("--downstream", help="Also do anew what depends on it.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Call functions and tools that are not in the journal.")] = False,
    url: Url = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Do a run once more: one step anew, and all else from the journal."""
    changes = {"model": model, "prompt": prompt, "params": _json(params, "params"), "input": _json(given, "input")}
    body: dict[str, Any] = {"set": {name: value for name, value in changes.items() if value is not None}}
    body |= {"downstream": downstream, "tools": "live" if live else "recorded"} | ({"step": step} if step else {})
    with server(url, key) as at:
        made = at.ask("POST", f"/api/v1/runs/{run}/rerun", json=body, timeout=None)
        step_made = made["step"]
        said = made["answer"]
        if step_made and not downstream and step_made["output_hash"]:
            value = _value(at, made["id"], step_made, "output")
            said = value.get("text", value) if isinstance(value, dict) else value
    show_one(made, said if isinstance(said, str) else json.dumps(said, ensure_ascii=False), as_json=as_json)
    if not as_json:
        typer.echo(f"{made['id']}  {made['status']}", err=True)
    if made["error"]:
        raise AppError(made["error"].get("message"))


@runs.command()
def diff(
    run: RunId,
    other: Annotated[str, typer.Argument(metavar="OTHER", help="The run it is compared with.")],
    url: Url = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs: the steps that differ, with tokens, cost and seconds of the first and the second."""
    with server(url, key) as at:
        found = at.ask("GET", f"/api/v1/runs/{run}/diff", params={"other": other})
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    rows = [_change_row(change) for change in found["changed"]]
    if rows:
        show(rows, ("seq", "path", "differs", "tokens", "cost", "seconds"), as_json=False)
    typer.echo(f"{found['same']} steps are equal, {len(rows)} differ.")
    one, two = found["answers"]
    typer.echo("The answers are equal." if one == two else f"- {one}\n+ {two}")


@runs.command()
def why(
    run: RunId,
    sentence: Annotated[str, typer.Argument(help="A sentence of its answer.")],
    url: Url = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Tell which step said a sentence first, and what it had it from."""
    with server(url, key) as at:
        found = at.ask("GET", f"/api/v1/runs/{run}/why", params={"text": sentence})["data"]
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    if not found:
        typer.echo("No recorded step is known to have said that.")
    for each in found:
        typer.echo(f"{each['seq']}  {each['path']}  said  {each['text']!r}")
        typer.echo("".join(f"    from step {seq}\n" for seq in each["sources"]), nl=False)
        typer.echo("".join(f"    and, made by no step: {text!r}\n" for text in each["unknown"]), nl=False)


def _row(run: Mapping[str, Any]) -> dict[str, Any]:
    usage = run["usage"]
    begun = str(run["created_at"] or "-")[:19]
    return {**run, "begun": begun, "tokens": usage["total"], "cost": usage["cost"]}


def _step_row(step: Mapping[str, Any]) -> dict[str, Any]:
    from datetime import datetime

    ended = datetime.fromisoformat(step["ended_at"]) if step["ended_at"] else None
    seconds = f"{(ended - datetime.fromisoformat(step['started_at'])).total_seconds():.3f}" if ended else None
    return {**step, "tokens": step["usage"]["total"], "cost": step["usage"]["cost"], "seconds": seconds}


def _change_row(change: Mapping[str, Any]) -> dict[str, Any]:
    pairs = {name: " → ".join(map(_short, change[name])) for name in ("seq", "tokens", "cost", "seconds")}
    sides = [side for side in ("input", "output") if not change[f"same_{side}"]]
    missing = [side for side, seq in zip(("first", "second"), change["seq"], strict=True) if seq is None]
    return {"path": change["path"], "differs": f"not in the {missing[0]}" if missing else "+".join(sides), **pairs}


def _short(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _steps(at: Server, run: str) -> Iterator[dict[str, Any]]:
    after, more = 0, True
    while more:
        found = at.ask("GET", f"/api/v1/runs/{run}/steps", params={"after": after, "limit": 1000})
        yield from found["data"]
        after, more = found["last_seq"], found["has_more"]


def _step(at: Server, run: str, seq: int) -> dict[str, Any]:
    found = at.ask("GET", f"/api/v1/runs/{part(run)}/steps", params={"after": seq - 1, "limit": 1})["data"]
    if not found or found[0]["seq"] != seq:
        raise NotFound("step")
    return dict(found[0])


def _value(at: Server, run: str, step: Mapping[str, Any], side: str) -> Any:
    """What went into a step or came out of it; None where nothing did."""
    if step[f"{side}_hash"] is None:
        return None
    return at.ask("GET", f"/api/v1/runs/{part(run)}/steps/{step['seq']}/{side}")["value"]


def _json(text: str | None, name: str) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        raise AppError(f"--{name} is no JSON.") from None


def _ending(at: Server, count: int | None) -> Iterator[dict[str, Any]]:
    """Runs as they end, oldest first."""
    seen = {run["id"] for run in at.ask("GET", "/api/v1/runs", params={"limit": 100})["data"] if run["ended_at"]}
    while count is None or count > 0:
        found = at.ask("GET", "/api/v1/runs", params={"limit": 100})["data"]
        for run in reversed([run for run in found if run["ended_at"] and run["id"] not in seen]):
            seen.add(run["id"])
            yield run
            count = None if count is None else count - 1
            if count == 0:
                return
        time.sleep(POLL_SECONDS)
