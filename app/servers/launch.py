"""What a child runs first: tie its life to its parent's, become the wanted user, and turn into the real program.

Run as a script: `launch.py DEATH_SIGNAL PARENT_PID IDENTITY PROGRAM [ARGUMENT ...]`. Standard library only, for it is
started with `python -I -S` to be quick. It exits with 126 and a sentence when the program cannot be run that way.

Constants are from Linux's <sched.h>, <linux/prctl.h> and <linux/capability.h>. Elsewhere a child does not notice its
parent's death: the next start stops it.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import sys
from pathlib import Path

CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 8, 47, 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _prctl(*arguments: int) -> None:
    _call("prctl", *(ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:5]))


def enter_namespace() -> None:
    """Be `nobody` inside a user namespace of one user, and the same user as before to everything outside it."""
    outer_user, outer_group, nobody = os.geteuid(), os.getegid(), pwd.getpwnam("nobody")
    _call("unshare", CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{nobody.pw_uid} {outer_user} 1")
    Path("/proc/self/gid_map").write_text(f"{nobody.pw_gid} {outer_group} 1")


def become_nobody() -> None:
    """Be `nobody`, still allowed to pass folders that are closed to others."""
    nobody = pwd.getpwnam("nobody")
    _prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setgid(nobody.pw_gid)
    os.setuid(nobody.pw_uid)
    bit = 1 << CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    effective_permitted_inheritable = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)
    _call("capset", header, effective_permitted_inheritable)
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE)


def main(death_signal: int, parent: int, identity: str, command: list[str]) -> None:
    """Prepare this process and replace it by `command`. Python's own signal dispositions are not handed on."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    if identity == "namespace":
        enter_namespace()
    elif identity == "nobody":
        become_nobody()
    if sys.platform == "linux":  # after the change of user, which clears it
        _prctl(PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:
            raise OSError("the parent ended before its child began")
    os.execv(command[0], command)  # noqa: S606 - the command is ours, and there is no shell to avoid


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
    except (OSError, KeyError) as problem:
        sys.stderr.write(f"{sys.argv[4]}: {problem}\n")
        sys.exit(126)
