"""What is written beside the code says what the code does."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tomllib
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = "README.md", "README.zh-CN.md"
PAGES = [ENGLISH, CHINESE, "CONTRIBUTING.md", *(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LOCKS = ("requirements-full.lock", "requirements-dev.lock")
UNLISTED = {"/docs", "/openapi.json"}
"""Served, but not part of the document that they show."""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# Settings


def shown(default: Any) -> str:
    return "" if default is None or default in ((), {}) else str(default)


def settings() -> list[tuple[str, str, str | None]]:
    """Every setting as (name, default, description)."""
    fields = Settings.model_fields.items()
    return [(name.upper(), shown(field.default), field.description) for name, field in fields]


def table_of_settings(name: str) -> list[tuple[str, str, str]]:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (?:`(.*?)`)? ?\| (.*) \|$", read(name), re.MULTILINE)
    return [(name, default, description) for name, default, description in rows]


def test_the_table_of_settings_is_the_one_in_the_code() -> None:
    assert table_of_settings(ENGLISH) == settings()


def test_the_chinese_table_of_settings_has_the_same_names_and_defaults() -> None:
    assert [row[:2] for row in table_of_settings(CHINESE)] == [row[:2] for row in settings()]


def test_the_example_of_an_env_file_names_every_setting_and_nothing_else() -> None:
    lines = re.findall(r"^# (.*)\n# ([A-Z_]+)=(.*)$", read(".env.example"), re.MULTILINE)
    assert [(name, default, description) for description, name, default in lines] == settings()
    assert len(re.findall("=", read(".env.example"))) == len(lines)


def test_the_example_of_an_env_file_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, _, _ in settings():
        monkeypatch.delenv(name, raising=False)
    uncommented = re.sub("^# (?=[A-Z_]+=)", "", read(".env.example"), flags=re.MULTILINE)
    (tmp_path / ".env").write_text(uncommented)
    assert Settings(_env_file=tmp_path / ".env") == Settings(_env_file=None)


# Routes, links, agents, dependencies


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(Settings(_env_file=None, database_url="postgresql://nobody@localhost/nothing"))


ROUTE = re.compile(
    r"(?:-X (\w+) )?(?<![\w.}/])\"?(?:\$URL)?(/(?:api/v1|[A-Z][a-z]+[A-Z]|livez|readyz|health|docs\b)[\w./$*{}-]*)"
)


def routes_named(name: str) -> set[tuple[str, str]]:
    """The routes a page names, as (method, path); the method is empty where none is given by curl's -X."""
    text = read(name)
    variables = dict(re.findall(r"^(\w+)=\$URL(/\S+)$", text, re.MULTILINE))
    for variable, path in variables.items():
        text = text.replace(f"${variable}/", f"$URL{path}/")
    return {(method.lower(), path.rstrip("./")) for method, path in ROUTE.findall(text) if path != "/api/v1"}


def is_route(app: FastAPI, method: str, path: str) -> bool:
    for known, verbs in app.openapi()["paths"].items():
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(known))
        if re.fullmatch(pattern, path) and (not method or method in verbs):
            return True
    return path in UNLISTED


@pytest.mark.parametrize("page", PAGES)
def test_every_route_that_is_named_exists(app: FastAPI, page: str) -> None:
    assert [route for route in routes_named(page) if not is_route(app, *route)] == []


def test_routes_are_found_where_pages_name_them(app: FastAPI) -> None:
    found = routes_named(ENGLISH)
    assert {("", "/CreateSession"), ("", "/api/v1/users/$ADA/keys"), ("", "/docs")} <= found
    assert ("delete", "/api/v1/groups/00000000-0000-7000-8000-000000000001/agents/*") in found
    assert not is_route(app, "", "/CreateSessions")
    assert not is_route(app, "post", "/api/v1/groups/$X/members/$Y")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page: str) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", read(page)):
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_the_chinese_readme_has_the_same_blocks_and_headings() -> None:
    def skeleton(name: str) -> list[str]:
        return [heading.count("#") * "#" for heading in re.findall(r"^#+ ", BLOCK.sub("", read(name)), re.MULTILINE)]

    def blocks(name: str) -> list[tuple[str, str]]:
        return [(kind, "" if kind == "text" else block) for kind, block in BLOCK.findall(read(name))]

    assert skeleton(CHINESE) == skeleton(ENGLISH)
    assert blocks(CHINESE) == blocks(ENGLISH)


def test_the_agent_of_the_readme_has_twelve_lines() -> None:
    (agent,) = (block for kind, block in BLOCK.findall(read(ENGLISH)) if kind == "python")
    assert len([line for line in agent.splitlines() if line.strip()]) == 12


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    declared = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    names = {re.split(r"[>=;]", line)[0].strip() for line in declared}
    (section,) = re.findall(r"^## Dependencies\n(.*?)^## ", read("docs/decisions.md"), re.MULTILINE | re.DOTALL)
    cells = re.findall(r"^\| ([a-z].*?) \|", section, re.MULTILINE)
    assert {name for cell in cells for name in cell.split(", ")} == names


# Containers


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(read("docker-compose.yml"))
    return parsed


def test_the_services_are_there_with_fixed_images(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {
        *("app", "worker", "migrate", "secrets", "postgres", "redis"),
        *("replica", "nginx", "minio", "milvus"),
    }
    images = {name: service["image"].rpartition(":") for name, service in services.items()}
    assert all(name and tag != "latest" for name, _, tag in images.values())
    assert images["postgres"][0] == "pgvector/pgvector"
    assert images["redis"][0] == "redis"
    assert images["minio"][0] == "quay.io/minio/minio"  # Docker Hub has it no more
    assert services["milvus"]["environment"]["DEPLOY_MODE"] == "STANDALONE"
    froms = re.findall(r"^FROM (\S+)", read("Dockerfile"), re.MULTILINE)
    assert [image.partition(":")[0] for image in froms] == ["python", "node", "python"]
    assert all(re.search(r":\d", image) for image in froms)


def test_each_service_waits_for_what_it_needs(compose: dict[str, Any]) -> None:
    def waits(name: str) -> dict[str, str]:
        return {other: how["condition"] for other, how in compose["services"][name].get("depends_on", {}).items()}

    done, healthy = "service_completed_successfully", "service_healthy"
    needed = {"migrate": done, "postgres": healthy, "redis": healthy, "minio": healthy}
    assert waits("app") == waits("worker") == waits("replica") == needed
    assert compose["services"]["app"]["depends_on"]["minio"]["required"] is False
    assert waits("nginx") == {"replica": healthy}
    assert waits("migrate") == {"postgres": healthy}
    assert waits("postgres") == waits("redis") == {"secrets": done}
    assert all("test" in compose["services"][name]["healthcheck"] for name in ("postgres", "redis"))
    for once in ("migrate", "secrets"):
        assert compose["services"][once]["restart"] == "no"


def test_no_password_is_written_down_and_no_env_file_is_needed(compose: dict[str, Any]) -> None:
    assert compose["services"]["app"]["env_file"] == [{"path": ".env", "required": False}]
    asked = re.findall(r"\$\{(\w+)([^}]*)\}", read("docker-compose.yml"))
    assert all(default.startswith(":-") for _, default in asked)
    given = compose["services"]["postgres"]["environment"]
    assert given == {"POSTGRES_USER": "postgres", "POSTGRES_PASSWORD_FILE": "/run/chattable/postgres"}
    mounts = {name: service["volumes"] for name, service in compose["services"].items()}
    assert "secrets:/run/chattable" in mounts["secrets"]
    without = {"secrets", "nginx", "milvus"}
    assert all("secrets:/run/chattable:ro" in mounts[name] for name in mounts if name not in without)


def test_what_must_last_is_in_named_volumes_and_agents_are_mounted(compose: dict[str, Any]) -> None:
    mounts = [mount.split(":") for service in compose["services"].values() for mount in service["volumes"]]
    named = {source for source, *_ in mounts if not source.startswith(".")}
    assert (
        named
        == set(compose["volumes"])
        == {
            *("secrets", "objects", "postgres", "redis", "minio", "milvus"),
        }
    )
    assert all((ROOT / source).exists() for source, *_ in mounts if source.startswith("."))
    assert "./agents:/app/agents:ro" in compose["services"]["app"]["volumes"]
    assert {"objects:/data/objects", "secrets:/run/chattable:ro"} <= set(compose["services"]["app"]["volumes"])


def test_a_worker_is_started_when_asked_for_and_has_what_the_server_has(compose: dict[str, Any]) -> None:
    app, worker = compose["services"]["app"], compose["services"]["worker"]
    assert worker["profiles"] == ["scale"]
    assert worker["command"] == ["worker"]
    assert "ports" not in worker
    assert worker["healthcheck"] == {"disable": True}
    for same in ("image", "environment", "env_file", "volumes", "stop_grace_period"):
        assert worker[same] == app[same]
    profiles = {name: service["profiles"] for name, service in compose["services"].items() if "profiles" in service}
    scale, full = ["scale"], ["full"]
    assert profiles == {"replica": scale, "worker": scale, "nginx": scale, "minio": full, "milvus": full}


def test_servers_behind_nginx_trust_it_and_cannot_be_reached_past_it(compose: dict[str, Any]) -> None:
    app, replica = compose["services"]["app"], compose["services"]["replica"]
    assert "ports" not in replica
    proxies = replica["environment"]["TRUSTED_PROXIES"]
    assert replica["environment"] == app["environment"] | {"TRUSTED_PROXIES": proxies}
    assert Settings(_env_file=None, trusted_proxies=proxies).trusted_proxies == proxies
    assert "server replica:8080" in read("deploy/nginx.conf")


def test_the_containers_settings_are_settings(compose: dict[str, Any]) -> None:
    inside = compose["services"]["app"]["environment"]
    made = Settings(_env_file=None, **{name.lower(): value for name, value in inside.items()})
    assert ip_address(made.host).is_unspecified
    assert compose["services"]["app"]["ports"][0].endswith(f":{inside['PORT']}")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's last stage as (instruction, rest)."""
    joined = read("Dockerfile").replace("\\\n", " ")
    stage = joined[joined.rindex("FROM ") :]
    return [(word, rest) for word, rest in re.findall(r"^([A-Z]+) (.*)$", stage, re.MULTILINE)]


def test_the_image_installs_from_hashes_and_runs_as_nobody_special() -> None:
    assert "--require-hashes -r /requirements-full.lock" in read("Dockerfile")
    stage = instructions()
    names = [word for word, _ in stage]
    assert dict(stage)["USER"] == "10001:10001"  # a number can be seen not to be root, as Kubernetes asks
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert "RUN" not in names[names.index("USER") :]
    check = dict(stage)["HEALTHCHECK"]
    assert "/readyz" in check
    assert "curl" not in check
    compile(yaml.safe_load(check.partition("CMD ")[2])[2], "HEALTHCHECK", "exec")


def test_the_image_can_do_all_that_settings_ask_for() -> None:
    full, dev = (dict(re.findall(r"^([a-z0-9-]+)==(\S+)", read(name), re.MULTILINE)) for name in LOCKS)
    assert {"minio", "mcp"} <= full.keys()
    assert full.items() <= dev.items()


def test_the_image_holds_what_runs_and_no_more() -> None:
    copied = {rest.split()[-2] for word, rest in instructions() if word == "COPY" and "--from" not in rest}
    assert copied == {"pyproject.toml", "deploy/entrypoint", "migrations", "app", "agents"}
    let_in = set(re.findall(r"^!(.*)$", read(".dockerignore"), re.MULTILINE))
    assert let_in == {source.partition("/")[0] for source in copied} | {"requirements-full.lock", "web"}
    assert "\n*\n" in read(".dockerignore")


def test_an_image_of_ones_own_begins_with_this_one_and_ends_as_its_user(compose: dict[str, Any]) -> None:
    (block,) = re.findall(r"^```dockerfile\n(.*?)^```$", read("docs/operations.md"), re.MULTILINE | re.DOTALL)
    lines = [line.partition(" ") for line in block.splitlines()]
    assert [word for word, _, _ in lines] == ["FROM", "COPY", "USER", "RUN", "USER"]
    assert (lines[0][2], lines[-1][2]) == (compose["services"]["app"]["image"], dict(instructions())["USER"])
    assert ("COPY", lines[1][2]) in instructions()
    assert lines[3][2] == "chattable agents install"


def test_the_command_has_its_name_in_the_image_too() -> None:
    stage = instructions()
    assert ("COPY", "deploy/entrypoint /usr/local/bin/chattable") in stage
    assert dict(stage)["ENTRYPOINT"] == '["chattable"]'
    asked = re.findall(r"docker compose exec app (\S+)", read(ENGLISH) + read("docs/operations.md"))
    assert set(asked) == {"cat", "chattable"}


@pytest.mark.parametrize("own", ["", "postgresql://own"])
def test_the_entrypoint_makes_the_urls_that_are_not_set(tmp_path: Path, own: str) -> None:
    (tmp_path / "postgres").write_text("one")
    (tmp_path / "redis").write_text("two")
    (tmp_path / "secret").write_text("three")
    (tmp_path / "admin").write_text("four")
    (tmp_path / "minio").write_text("five")
    script = read("deploy/entrypoint").replace("/run/chattable", shlex.quote(str(tmp_path)))
    (tmp_path / "python").write_text(
        '#!/bin/sh\necho "$DATABASE_URL $REDIS_URL $SECRET_KEY $ADMIN_API_KEY $MINIO_ACCESS_KEY:$MINIO_SECRET_KEY $*"'
    )
    (tmp_path / "python").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DATABASE_URL": own, "MINIO_ENDPOINT": "minio:9000"}
    told = subprocess.run(["sh", "-c", script, "sh", "serve"], env=env, capture_output=True, text=True, check=True)
    database = own or "postgresql://chattable:one@postgres:5432/chattable"
    assert told.stdout == f"{database} redis://:two@redis:6379/0 three four chattable:five -m app.cli serve\n"


@pytest.mark.parametrize("handed_on", [{"POSTGRES_PASSWORD": "one"}, {}])
def test_the_applications_role_gets_its_password(tmp_path: Path, handed_on: dict[str, str]) -> None:
    """PostgreSQL's image reads POSTGRES_PASSWORD_FILE into POSTGRES_PASSWORD, and unsets it, before it runs a script."""
    (tmp_path / "psql").write_text('#!/bin/sh\necho "$*"\ncat')
    (tmp_path / "psql").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "POSTGRES_USER": "postgres", **handed_on}
    told = subprocess.run(["sh", ROOT / "deploy/postgres.sh"], env=env, capture_output=True, text=True, check=False)
    assert (told.returncode == 0) is bool(handed_on)
    assert ("-v password=one -U postgres\nCREATE ROLE chattable" in told.stdout) is bool(handed_on)
    assert handed_on or not told.stdout, "no role without a password is made"


def test_the_containers_scripts_can_be_run() -> None:
    for script in (path for path in (ROOT / "deploy").iterdir() if path.suffix != ".conf"):
        assert os.access(script, os.X_OK), script.name
        subprocess.run(["sh", "-n", script], check=True)
