"""Runs one PostgreSQL program as a user PostgreSQL accepts, and ends it when the process that asked for it is gone.

A program of its own (``python -I -S watchdog.py IDENTITY LIFELINE COMMAND…``): it imports nothing of the application, so
it starts in milliseconds, and it outlives a ``kill -9`` of its owner by just the time the server needs to shut down.
"""

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

NOBODY = 65534
_PR_SET_PDEATHSIG = 1
# PostgreSQL's three shutdowns: fast (roll back and checkpoint), immediate (recover at the next start), and the kernel's.
_ENDINGS = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
_WATCHED = (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def enter_namespace() -> None:
    """Become uid 1000 in a user namespace of our own; outside of it, and to every file, we are still who we were."""
    uid, gid = os.geteuid(), os.getegid()
    os.unshare(os.CLONE_NEWUSER)
    # The kernel lets a process map its group only after it has given up setgroups.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"1000 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"1000 {gid} 1")


def become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def stay() -> None:
    """An ordinary user runs PostgreSQL as they are."""


IDENTITIES: dict[str, Callable[[], None]] = {"same": stay, "namespace": enter_namespace, "nobody": become_nobody}


def die_with(keeper: int) -> None:
    # Set after the identity has changed, because a change of credentials clears it. Where the kernel has no such signal, the
    # next start finds the orphan by its lock and stops it.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() != keeper:
        os._exit(1)


def execute(identity: str, command: list[str], keeper: int) -> None:
    try:
        signal.set_wakeup_fd(-1)
        for watched in _WATCHED:
            signal.signal(watched, signal.SIG_DFL)
        IDENTITIES[identity]()
        die_with(keeper)
        os.execv(command[0], command)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
    finally:
        os._exit(1)


def ended(child: int) -> int | None:
    """The child's exit status as a shell would give it, or None while it runs."""
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid == 0:
        return None
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def end(child: int) -> int:
    for ending, patience in _ENDINGS:
        os.kill(child, ending)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if (status := ended(child)) is not None:
                return status
            time.sleep(0.005)
    return 1


def keep(child: int, lifeline: int, wakeup: int) -> int:
    while True:
        readable, _, _ = select.select([lifeline, wakeup], [], [])
        arrived = os.read(wakeup, 64) if wakeup in readable else b""
        if (status := ended(child)) is not None:
            return status
        # Nothing is ever written to the lifeline: it becomes readable when its other end, the owner, is closed.
        if lifeline in readable or any(number != signal.SIGCHLD for number in arrived):
            return end(child)


def main(identity: str, lifeline: str, *command: str) -> int:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for watched in _WATCHED:
        signal.signal(watched, lambda *_: None)
    keeper = os.getpid()
    child = os.fork()
    if child == 0:
        execute(identity, list(command), keeper)
    return keep(child, int(lifeline), reader)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
