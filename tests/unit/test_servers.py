"""The parts of app/servers that need no database: locks, private folders, child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from app.errors import SettingsError
from app.servers import process
from app.servers.folders import SOCKET_PATH_LIMIT, leave_socket_folder, make_private, socket_folder
from app.servers.lock import lock_data_dir, try_lock
from app.servers.process import Child, Identity

ROOT = Path(__file__).parents[2]


def sleeper(tmp_path: Path, code: str = "", **options: object) -> Child:
    script = f"{code}\nimport time; print('awake', flush=True); time.sleep(60)"
    return process.start("sleeper", [sys.executable, "-c", script], log=tmp_path / "log" / "s.log", **options)  # type: ignore[arg-type]  # one of its keywords


def awake(child: Child) -> bool:
    return process.wait_until(lambda: "awake" in child.output(), 10)


def test_data_dir_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    with lock_data_dir(tmp_path / "new" / "data"):
        assert (tmp_path / "new" / "data").stat().st_mode & 0o777 == 0o700


def test_a_second_server_on_a_data_dir_is_told_who_has_it(tmp_path: Path) -> None:
    with (
        lock_data_dir(tmp_path),
        pytest.raises(SettingsError, match=rf"in use by another server \(process {os.getpid()}\)"),
    ):
        lock_data_dir(tmp_path)
    lock_data_dir(tmp_path).release()


def test_a_data_dir_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"cannot be written .*: set DATA_DIR") as caught:
        lock_data_dir(tmp_path / "file" / "data")
    assert "\n" not in str(caught.value)


def test_the_lock_goes_with_its_holder_and_not_with_its_children(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; from pathlib import Path; from app.servers.lock import lock_data_dir\n"
        f"lock = lock_data_dir(Path({str(tmp_path)!r}))\n"
        "child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout is not None
        grandchild = int(holder.stdout.readline())
        try:
            with pytest.raises(SettingsError):
                lock_data_dir(tmp_path)
            holder.kill()
            holder.wait()
            lock_data_dir(tmp_path).release()
        finally:
            os.kill(grandchild, signal.SIGKILL)


def test_a_lock_passed_to_a_child_is_held_until_the_child_ends(tmp_path: Path) -> None:
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    child = sleeper(tmp_path, pass_fds=(lock.file,))
    lock.release()
    assert try_lock(tmp_path / "lock") is None
    child.stop()
    again = try_lock(tmp_path / "lock")
    assert again is not None
    again.release()


def test_sockets_are_in_the_data_dir_when_its_path_allows_it() -> None:
    short = Path("/tmp") / f"chattable test {os.getpid()}"  # noqa: S108 - a short path is the point, and it is private
    make_private(short)
    try:
        assert socket_folder(short) == short / "run"
        leave_socket_folder(short)
        assert (short / "run").is_dir()
    finally:
        (short / "run").rmdir()
        short.rmdir()


@pytest.mark.parametrize("name", ["long" * 30, "com,ma", "co:lon"])
def test_sockets_are_elsewhere_when_the_path_is_too_long_or_odd(tmp_path: Path, name: str) -> None:
    data_dir = tmp_path / name
    make_private(data_dir)
    folder = socket_folder(data_dir)
    assert folder.parent != data_dir
    assert len(os.fsencode(folder)) < SOCKET_PATH_LIMIT
    assert folder.stat().st_mode & 0o777 == 0o700
    leave_socket_folder(data_dir)
    assert not folder.exists()


def test_a_socket_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    (tmp_path / "d,d").mkdir()
    folder = socket_folder(tmp_path / "d,d")
    folder.chmod(0o777)
    with pytest.raises(SettingsError, match="must be this user's alone"):
        socket_folder(tmp_path / "d,d")
    folder.rmdir()


def test_a_child_has_a_session_of_its_own_and_ends_at_the_first_signal(tmp_path: Path) -> None:
    child = sleeper(tmp_path)
    assert awake(child)
    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    child.stop((signal.SIGTERM, 10))
    assert child.popen.returncode == -signal.SIGTERM
    assert not child.alive()


def test_a_child_that_ignores_signals_is_killed(tmp_path: Path) -> None:
    child = sleeper(tmp_path, "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    assert awake(child)
    child.stop((signal.SIGTERM, 0.2))
    assert child.popen.returncode == -signal.SIGKILL


def test_the_last_words_of_a_child_are_its_own_and_not_an_earlier_ones(tmp_path: Path) -> None:
    log = tmp_path / "log" / "x.log"
    for words in ("one", "two"):
        child = process.start("x", ["/bin/sh", "-c", f"echo {words}"], log=log)
        child.wait(10)
        assert child.last_words() == words
    silent = process.start("x", ["/bin/sh", "-c", "exit 3"], log=log)
    silent.wait(10)
    assert "status 3" in silent.last_words()


def test_a_large_log_is_put_aside_at_the_next_start(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"." * (process.LOG_LIMIT + 1))
    process.start("x", ["/bin/sh", "-c", "echo new"], log=log).wait(10)
    assert log.read_text() == "new\n"
    assert (tmp_path / "x.log.1").stat().st_size > process.LOG_LIMIT


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from app.servers import process\n"
        f"child = process.start('s', ['/bin/sleep', '60'], log=Path({str(tmp_path / 'log')!r}))\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.2)
        assert psutil.pid_exists(pid)
        parent.kill()
        assert process.wait_until(lambda: gone(pid), 10)


def test_an_orphan_is_stopped_only_if_it_works_in_the_folder(tmp_path: Path) -> None:
    child = sleeper(tmp_path, f"import os; os.chdir({str(tmp_path)!r})")
    assert awake(child)
    process.stop_orphan(child.pid, tmp_path / "log", (signal.SIGTERM, 5))
    assert child.alive()
    process.stop_orphan(child.pid, tmp_path, (signal.SIGTERM, 5))
    assert child.wait(5)


def test_a_program_that_is_not_there_is_said_in_words(tmp_path: Path) -> None:
    child = process.start("x", [tmp_path / "missing"], log=tmp_path / "x.log")
    assert child.wait(10)
    assert child.popen.returncode == 126
    assert "No such file" in child.last_words()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes someone else")
@pytest.mark.parametrize("identity", [Identity.NAMESPACE, Identity.NOBODY])
def test_root_is_nobody_to_its_child_and_still_reaches_closed_folders(tmp_path: Path, identity: Identity) -> None:
    tmp_path.chmod(0o700)
    done = process.run(
        ["/bin/sh", "-c", f"id -u; touch '{tmp_path}/x' && echo made"], identity=identity, env={"PATH": "/usr/bin:/bin"}
    )
    if done.returncode != 0:
        pytest.skip(f"this machine forbids it: {done.stdout}")
    assert done.stdout.split() == ["65534", "made"]


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
