"""`chattable users`, `keys`, `budgets` and `audit`: what administrators do, asked of the server."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated, Any, Literal

import typer

from app.cli.asking import ApiKey, Url, part, server
from app.cli.output import AsJson, show, show_one

users = typer.Typer(help="Accounts: list, add, change and delete them.", no_args_is_help=True)
keys = typer.Typer(help="API keys: list your own, make one for anybody, revoke one.", no_args_is_help=True)
budgets = typer.Typer(help="Limits of tokens and money: list, add and delete them.", no_args_is_help=True)
Who = Annotated[str, typer.Argument(help="The user's name or id.")]
FromInput = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")]


Role = Literal["user", "admin"]
Status = Literal["active", "suspended"]
Of = Literal["user", "group", "agent", "session", "key"]
Period = Literal["hour", "day", "month", "total"]


class Scope(StrEnum):
    """What a key may be used for."""

    CHAT = "chat"
    ACCOUNT = "account"
    ADMIN = "admin"


@users.command("list")
def list_users(url: Url = None, key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show all accounts."""
    with server(url, key) as here:
        show(list(here.pages("/api/v1/users")), ("name", "role", "status", "created_at", "id"), as_json=as_json)


@users.command("add")
def add_user(
    name: Annotated[str, typer.Argument()],
    role: Annotated[Role, typer.Option(help="What he may do.")] = "user",
    password_stdin: FromInput = False,
    url: Url = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Make an account. Without a password it is used with keys alone."""
    body = {"name": name, "role": role} | _password(password_stdin)
    with server(url, key) as here:
        made = here.ask("POST", "/api/v1/users", json=body)
    show_one(made, f"The user {made['name']} is made: {made['id']}", as_json=as_json)


@users.command("set")
def change_user(
    who: Who,
    role: Annotated[Role | None, typer.Option(help="What he may do.")] = None,
    status: Annotated[Status | None, typer.Option(help="Suspended users are shut out at once.")] = None,
    password_stdin: FromInput = False,
    url: Url = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Change role, status or password of an account; a new password ends its logins."""
    body = {"role": role, "status": status}
    changes = {name: value for name, value in body.items() if value} | _password(password_stdin)
    if not changes:
        raise typer.BadParameter("Name what to change: --role, --status or --password-stdin.")
    with server(url, key) as here:
        changed = here.ask("PATCH", f"/api/v1/users/{here.user(who)['id']}", json=changes)
    show_one(changed, f"The user {changed['name']} is changed.", as_json=as_json)


Days = Annotated[int, typer.Option(min=1, max=30, help="How long a link can be used.")]


@users.command("invite")
def invite_user(
    name: Annotated[str | None, typer.Argument(help="The account's name; without it, its user chooses one.")] = None,
    role: Annotated[Role, typer.Option(help="What he may do.")] = "user",
    group: Annotated[list[str] | None, typer.Option(help="A group to be in; may be repeated.")] = None,
    days: Days = 7,
    url: Url = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Print a link by which somebody makes an account. It works once."""
    body = {"name": name, "role": role, "groups": group or [], "days": days}
    with server(url, key) as here:
        made = here.ask("POST", "/api/v1/invites", json=body)
        _show_link(made, here.page, as_json=as_json)


@users.command("reset")
def reset_user(who: Who, days: Days = 7, url: Url = None, key: ApiKey = None, as_json: AsJson = False) -> None:
    """Print a link by which a user sets a new password. It works once."""
    with server(url, key) as here:
        made = here.ask("POST", "/api/v1/invites", json={"user_id": here.user(who)["id"], "days": days})
        _show_link(made, here.page, as_json=as_json)


def _show_link(made: dict[str, Any], page: str, *, as_json: bool) -> None:
    link = page + made["path"]
    show_one(made | {"link": link}, link, as_json=as_json)


@users.command("import")
def import_users(
    file: Annotated[typer.FileText, typer.Argument(help="CSV with the columns name, role, groups; - is the input.")],
    days: Days = 7,
    url: Url = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Make the accounts of a table, all or none, and print a link for each, by which its user sets a password."""
    with server(url, key) as here:
        made = here.ask("POST", "/api/v1/users/import", json={"csv": file.read(), "days": days}, timeout=600)["data"]
        rows = [row | {"link": here.page + row["path"]} for row in made]
    show(rows, ("name", "role", "link"), as_json=as_json)


@users.command("delete")
def delete_user(
    who: Who,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: Url = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Erase a user with everything that is his. There is no way back."""
    with server(url, key) as here:
        found = here.user(who)
        if not yes:
            typer.confirm(f"Erase {found['name']} with all sessions and files?", abort=True, err=True)
        here.ask("DELETE", f"/api/v1/users/{found['id']}")
    show_one(found, f"The user {found['name']} is erased.", as_json=as_json)


def _password(from_input: bool) -> dict[str, Any]:
    """A password never stands in the arguments, which every user of a machine can read."""
    return {"password": sys.stdin.readline().rstrip("\n")} if from_input else {}


@keys.command("list")
def list_keys(url: Url = None, key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show the keys of the caller."""
    columns = ("name", "hint", "scopes", "expires_at", "id")
    with server(url, key) as here:
        show(list(here.pages("/api/v1/keys")), columns, as_json=as_json)


@keys.command("add")
def add_key(
    who: Who,
    name: Annotated[str, typer.Option(help="What it is for.")] = "command line",
    scope: Annotated[list[Scope] | None, typer.Option(help="What it may do; all that its user may by default.")] = None,
    days: Annotated[int | None, typer.Option(min=1, max=3650, help="How long it is good.")] = None,
    url: Url = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Make a key for a user, and print it: it is shown this once."""
    body = {"name": name, "days": days, "scopes": [one.value for one in scope] if scope else None}
    given = {field: value for field, value in body.items() if value is not None}
    with server(url, key) as here:
        made = here.ask("POST", f"/api/v1/users/{here.user(who)['id']}/keys", json=given)
    show_one(made, made["key"], as_json=as_json)


@keys.command("revoke")
def revoke_key(id: str, url: Url = None, key: ApiKey = None, as_json: AsJson = False) -> None:
    """End one of the caller's keys by its id; it stops working at once."""
    with server(url, key) as here:
        here.ask("DELETE", f"/api/v1/keys/{part(id)}")
    show_one({"id": id, "revoked": True}, "The key is revoked.", as_json=as_json)


@budgets.command("list")
def list_budgets(url: Url = None, key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show all limits, what was used and what is left."""
    with server(url, key) as here:
        rows = list(here.pages("/api/v1/budgets"))
    show(rows, ("scope", "scope_id", "period", "tokens", "money", "used", "left", "id"), as_json=as_json)


@budgets.command("add")
def add_budget(
    of: Annotated[Of, typer.Argument(help="Whose calls.")],
    id: Annotated[str, typer.Argument(help="Which: an id, or a user's name.")],
    period: Annotated[Period, typer.Option(help="For how long.")] = "month",
    tokens: Annotated[int | None, typer.Option(min=0, help="Prompt and completion together.")] = None,
    money: Annotated[str | None, typer.Option(help="In the currency of models.toml.")] = None,
    url: Url = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Limit what may be used in a period; what was used in it already counts."""
    body = {"scope": of, "period": period, "tokens": tokens, "money": money}
    with server(url, key) as here:
        given = {name: value for name, value in body.items() if value is not None}
        given["id"] = here.user(id)["id"] if of == "user" else id
        made = here.ask("POST", "/api/v1/budgets", json=given)
    show_one(made, f"The budget is made: {made['id']}", as_json=as_json)


@budgets.command("delete")
def delete_budget(id: str, url: Url = None, key: ApiKey = None, as_json: AsJson = False) -> None:
    """Take a limit away."""
    with server(url, key) as here:
        here.ask("DELETE", f"/api/v1/budgets/{part(id)}")
    show_one({"id": id, "deleted": True}, "The budget is deleted.", as_json=as_json)


def show_audit(
    action: Annotated[str | None, typer.Option(help="Only these, as user.create.")] = None,
    last: Annotated[int, typer.Option(min=1, max=100_000, help="How many.")] = 50,
    url: Url = None,
    key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show what administrators did, newest first."""
    from itertools import islice

    with server(url, key) as here:
        rows = list(islice(here.pages("/api/v1/audit", **({"action": action} if action else {})), last))
    show(rows, ("created_at", "actor_name", "action", "subject", "details"), as_json=as_json)
