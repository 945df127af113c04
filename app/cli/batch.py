"""`chattable batch`: many requests in one file, which the server answers in the background."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from app.cli.asking import ApiKey, Server, Url, check, part, server
from app.cli.files import check_writable, written
from app.cli.output import AsJson, show, show_one
from app.errors import AppError, InvalidInput

LOOK_SECONDS = 1.0
UNDER_WAY = {"validating", "in_progress", "finalizing", "cancelling"}
CHAT = "/v1/chat/completions"
COLUMNS = ("id", "status", "completed", "failed", "total", "endpoint")
BatchId = Annotated[str, typer.Argument(metavar="BATCH", help="A batch's id.")]
Out = Annotated[Path | None, typer.Option(help="Write the results to this file and not to standard output.")]

batch = typer.Typer(help="Many requests in one file, answered in the background.", no_args_is_help=True)


@batch.command("run")
def run_batch(
    file: Annotated[
        typer.FileText,
        typer.Argument(
            help="Requests as OpenAI's batches have them; with --agent, a question a line. - is standard input."
        ),
    ],
    agent: Annotated[
        str | None, typer.Option("--agent", "-a", help="The agent or model that is asked each line.")
    ] = None,
    out: Out = None,
    wait: Annotated[bool, typer.Option(help="Wait for the end, and print the results.")] = True,
    url: Url = None,
    key: ApiKey = None,
) -> None:
    """Have all requests of a file answered. Status 1 if one was not. Ctrl-C leaves the batch at work: `batch results` fetches them."""
    check_writable(out)
    with server(url, key) as at, tempfile.TemporaryFile("w+b") as requests:
        endpoint = CHAT
        for number, line in enumerate(_lines(file), 1):
            request = _question(number, line, agent) if agent else _request(number, line)
            endpoint = str(request.get("url", endpoint))
            requests.write(json.dumps(request, ensure_ascii=False).encode() + b"\n")
        requests.seek(0)
        upload = {"file": ("requests.jsonl", requests)}
        sent = at.ask("POST", "/v1/files", data={"purpose": "batch"}, files=upload, timeout=None)
        wanted = {"input_file_id": sent["id"], "endpoint": endpoint, "completion_window": "24h"}
        made = at.ask("POST", "/v1/batches", json=wanted)
        typer.echo(made["id"], err=wait)
        if wait:
            _finish(at, _ended(at, made), out)


@batch.command("list")
def list_batches(url: Url = None, key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show your batches, newest first."""
    with server(url, key) as at:
        found = list(at.pages("/v1/batches"))
    show(found if as_json else [_row(each) for each in found], COLUMNS, as_json=as_json)


@batch.command("show")
def show_batch(id: BatchId, url: Url = None, key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show how far a batch is."""
    with server(url, key) as at:
        found = at.ask("GET", f"/v1/batches/{part(id)}")
    show_one(found, _told(found), as_json=as_json)


@batch.command("results")
def fetch_results(id: BatchId, out: Out = None, url: Url = None, key: ApiKey = None) -> None:
    """Wait for the end of a batch, and print what each request came to, a line of JSON each. Status 1 if one was not answered."""
    check_writable(out)
    with server(url, key) as at:
        _finish(at, _ended(at, at.ask("GET", f"/v1/batches/{part(id)}")), out)


@batch.command("cancel")
def cancel_batch(id: BatchId, url: Url = None, key: ApiKey = None, as_json: AsJson = False) -> None:
    """End a batch; what is answered is kept."""
    with server(url, key) as at:
        found = at.ask("POST", f"/v1/batches/{part(id)}/cancel")
    show_one(found, _told(found), as_json=as_json)


def _lines(file: IO[str]) -> Iterator[str]:
    found = False
    for line in file:
        if text := line.strip():
            found = True
            yield text
    if not found:
        raise InvalidInput("The file has no requests.", param="file")


def _question(number: int, text: str, agent: str) -> dict[str, Any]:
    body = {"model": agent, "messages": [{"role": "user", "content": text}]}
    return {"custom_id": str(number), "method": "POST", "url": CHAT, "body": body}


def _request(number: int, text: str) -> dict[str, Any]:
    try:
        request = json.loads(text)
    except ValueError as error:
        raise InvalidInput(
            f"Line {number} is not JSON ({error}); for a question a line, say --agent.", param="file"
        ) from None
    if not isinstance(request, dict) or "body" not in request:
        raise InvalidInput(f"Line {number} has no body; for a question a line, say --agent.", param="file")
    return request


def _ended(at: Server, found: dict[str, Any]) -> dict[str, Any]:
    """The batch at its end; how far it is goes to standard error meanwhile."""
    said = ""
    while found["status"] in UNDER_WAY:
        if sys.stderr.isatty() and (now := _told(found)) != said:
            typer.echo(said := now, err=True)
        time.sleep(LOOK_SECONDS)
        found = at.ask("GET", f"/v1/batches/{part(found['id'])}")
    typer.echo(_told(found), err=True)
    return found


def _finish(at: Server, ended: dict[str, Any], out: Path | None) -> None:
    with written(out) if out else nullcontext(typer.get_binary_stream("stdout")) as file:
        for id in filter(None, (ended["output_file_id"], ended["error_file_id"])):
            with at.client.stream("GET", f"/v1/files/{part(id)}/content", timeout=None) as answer:
                if answer.status_code >= 400:
                    answer.read()
                check(answer, at.url)
                for piece in answer.iter_bytes():
                    file.write(piece)
    if ended["status"] != "completed" or ended["request_counts"]["failed"]:
        errors = (ended.get("errors") or {}).get("data") or []
        raise AppError("; ".join(error["message"] for error in errors[:5]) or "Not all requests were answered.")


def _row(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, **(found["request_counts"] or {})}


def _told(found: dict[str, Any]) -> str:
    counts = found["request_counts"] or {"completed": 0, "failed": 0, "total": 0}
    return (
        f"{found['id']}  {found['status']}  {counts['completed']}/{counts['total']} answered, {counts['failed']} failed"
    )
