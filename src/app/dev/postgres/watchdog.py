"""Runs one PostgreSQL program as a user that PostgreSQL accepts, and shuts it down when the owner process is gone.

A separate program: ``python -I -S watchdog.py IDENTITY OWNER_PIPE COMMAND…``. It imports nothing of the application, so it
starts in milliseconds. After a ``kill -9`` of its owner it runs only until the server has shut down.
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
# Signals and timeouts: a fast shutdown (rollback and checkpoint), an immediate one (recovery at the next start), and SIGKILL.
_SHUTDOWNS = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
_SIGNALS = (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def enter_namespace() -> None:
    """Become uid 1000 in a new user namespace. Outside of it, and for file permissions, the user stays the same."""
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


def keep_user() -> None:
    """Run PostgreSQL as the current, ordinary user."""


IDENTITIES: dict[str, Callable[[], None]] = {"same": keep_user, "namespace": enter_namespace, "nobody": become_nobody}


def end_with_parent(watchdog_pid: int) -> None:
    """On Linux, make the kernel send SIGINT to this process when the watchdog dies. Exit if the watchdog is dead already."""
    # A change of credentials clears this setting, so make the change first. On systems without this setting, the server outlives
    # a killed watchdog; the next start finds it by its lock and stops it.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() != watchdog_pid:
        os._exit(1)


def execute(identity: str, command: list[str], watchdog_pid: int) -> None:
    """Replace the child process by the command, as the user of the identity. This never returns."""
    try:
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        IDENTITIES[identity]()
        end_with_parent(watchdog_pid)
        os.execv(command[0], command)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
    finally:
        os._exit(1)


def exit_status(child: int) -> int | None:
    """Return the exit status of the child as a shell reports it, or None while it runs."""
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid == 0:
        return None
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def shut_down(child: int) -> int:
    """Send SIGINT, then SIGQUIT, then SIGKILL, until the child exits. Return its exit status, or 1 if it does not exit."""
    for shutdown_signal, timeout in _SHUTDOWNS:
        os.kill(child, shutdown_signal)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if (status := exit_status(child)) is not None:
                return status
            time.sleep(0.005)
    return 1


def watch(child: int, owner_pipe: int, wakeup: int) -> int:
    """Wait until the child exits, the owner is gone or a signal asks for a shutdown. Return the exit status of the child."""
    while True:
        readable, _, _ = select.select([owner_pipe, wakeup], [], [])
        arrived = os.read(wakeup, 64) if wakeup in readable else b""
        if (status := exit_status(child)) is not None:
            return status
        # Nothing is written to the owner pipe. It becomes readable when the owner closes its end or dies.
        if owner_pipe in readable or any(number != signal.SIGCHLD for number in arrived):
            return shut_down(child)


def main(identity: str, owner_pipe: str, *command: str) -> int:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)
    watchdog_pid = os.getpid()
    child = os.fork()
    if child == 0:
        execute(identity, list(command), watchdog_pid)
    return watch(child, int(owner_pipe), reader)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
